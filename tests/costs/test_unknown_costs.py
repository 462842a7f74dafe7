"""What is said, and what is refused, where the cost of a layer is not known."""

import logging
import math

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.costs.counting import Count, macs_ratio

pytestmark = pytest.mark.once
X = np.random.default_rng(0).normal(size=(60, 6)).astype("float32")
Y = np.arange(60) % 3


@keras.saving.register_keras_serializable(package="tests")
class Mixer(layers.Layer):
    """Mixes features by an operation whose cost shapes do not tell."""

    def call(self, x):
        return keras.ops.fft((x, keras.ops.zeros_like(x)))[0]


@keras.saving.register_keras_serializable(package="tests")
class KnownMixer(Mixer):
    """The same, once its cost is registered."""


@ksd.register_macs(KnownMixer)
def count_mixer(layer, inputs, outputs):
    return 1000


def wrapper(mixer, place):
    """A wrapper of two exits; the mixer stands before the first tap or behind it."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    x = mixer(name="mixer")(inputs) if place == "before" else inputs
    x = layers.Dense(6, "relu", name="tap_1")(x)
    x = layers.Dense(6, "relu", name="tap_2")(x)
    x = mixer(name="mixer")(x) if place == "behind" else x
    x = layers.Dense(9, "relu")(x)
    base = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    return ksd.SelfDistiller(base, ["tap_1", "tap_2"], "byot", head="linear")


@pytest.fixture(scope="module", params=["before", "behind"])
def both(request):
    """An early exit that does not know its costs, and its twin that does."""
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr(
            "keras_selfdistill.early_exit.temperature.logging.warning",
            lambda template, *values: said.append(template % values),
        )
        fast = ksd.EarlyExit(wrapper(Mixer, request.param))
        (warning,) = said
        twin = ksd.EarlyExit(wrapper(KnownMixer, request.param))
        assert len(said) == 1
    assert "mixer/fft" in warning
    for way in ("register_macs", "pick_exit(model, max_latency_ms="):
        assert way in warning
    return fast, twin


def test_no_share_is_told_that_is_not_known(both):
    fast, twin = both
    assert all(math.isnan(share) for share in fast.macs_ratios.values())
    assert all(share > 0 for share in twin.macs_ratios.values())
    fast.thresholds = twin.thresholds = 0.4
    result, expected = fast.predict(X), twin.predict(X)
    np.testing.assert_array_equal(result.exits, expected.exits)
    assert len(set(result.exits)) > 1
    assert math.isnan(result.macs_ratio)
    assert expected.macs_ratio > 0


@pytest.mark.parametrize("goal", [{"max_accuracy_drop": 0.05}, {"target_accuracy": 0}])
@pytest.mark.parametrize("guarantee", [None, 0.9])
def test_goals_that_need_no_costs_are_reached_alike(both, goal, guarantee):
    fast, twin = both
    for each in both:
        each.calibrate(X, Y, **goal, guarantee=guarantee)
    if guarantee is None:  # With one, the path is tried at even steps of cost.
        assert fast.thresholds == pytest.approx(twin.thresholds)
    assert math.isnan(fast.calibration.macs_ratio)
    assert fast.calibration.samples == (60 if guarantee is None else 30)
    assert fast.exit_shares(points=3).shares.shape == (3, 3)


@pytest.mark.parametrize(
    "goal",
    [{"macs_budget": 0.5}, {"max_accuracy_drop": 0.0, "per_exit": True}],
)
def test_goals_that_need_costs_are_refused(both, goal):
    fast, _ = both
    before = fast.thresholds
    received = "macs_budget=0.5" if "macs_budget" in goal else "per_exit=True"
    with pytest.raises(ValueError, match=f"mixer/fft.*Received: {received}"):
        fast.calibrate(X, Y, **goal)
    assert fast.thresholds == before
    fast.calibrate(X, Y, max_accuracy_drop=0.1)
    with pytest.raises(ValueError, match=r"mixer/fft.*Received: frontier\(\)"):
        fast.frontier()


def test_a_file_keeps_that_the_cost_is_not_known(both, tmp_path):
    fast, _ = both
    fast.calibrate(X, Y, max_accuracy_drop=0.1)
    fast.save(tmp_path / "fast.earlyexit")
    loaded = ksd.EarlyExit.load(tmp_path / "fast.earlyexit")
    assert math.isnan(loaded.calibration.macs_ratio)
    assert loaded.calibration == fast.calibration
    assert loaded.thresholds == fast.thresholds


@pytest.mark.parametrize("place", ["before", "behind"])
def test_profile_and_report_tell_no_share_that_is_not_known(place):
    model = wrapper(Mixer, place)
    cost = ksd.profile(model)
    # What is unknown is in the base: no share of it is known but its own.
    assert math.isnan(cost["exit_1"].macs_ratio)
    assert cost["final"].macs_ratio == 1.0
    lines = cost.render().splitlines()
    assert lines[1].split()[-1] == "unknown"
    assert lines[3].split()[-1] == "100.0%"
    found = ksd.report(model, (X, Y), repeats=0, verbose=0)
    assert found["exit_1"].macs_ratio is None
    assert found["final"].macs_ratio == 1.0
    assert "mixer/fft" in found.render()
    drawn = {text.get_text() for text in found.plot().axes[0].texts}
    assert drawn - {"exit_2"} == {"final"}


def test_shares_of_counts():
    share = lambda one, other: macs_ratio(Count(*one), Count(*other))  # noqa: E731
    assert share((2, ()), (8, ())) == 0.25
    assert share((8, ("fft",)), (8, ("fft",))) == 1.0
    assert math.isnan(share((8, ()), (8, ("fft",))))
    assert math.isnan(share((4, ("fft",)), (8, ("fft",))))
    assert math.isnan(share((0, ()), (0, ())))
    assert math.isnan(share((2, ()), (0, ())))


def test_no_share_is_made_up_of_a_base_without_multiply_adds(caplog):
    inputs = keras.Input((6,))
    x = layers.ReLU(name="tap")(inputs)
    x = layers.Reshape((3, 2))(x)
    x = layers.BatchNormalization()(layers.GlobalMaxPooling1D()(x))
    base = keras.Model(inputs, layers.Softmax()(x))
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
    cost = ksd.profile(model)
    assert cost["final"].macs == 0 < cost["exit_1"].macs
    assert all(math.isnan(each.macs_ratio) for each in cost.values())
    assert "undefined" in cost.render()
    assert "unknown" not in cost.render()
    assert (
        ksd.report(model, (X, Y % 2), repeats=0, verbose=0)["final"].macs_ratio is None
    )
    with caplog.at_level(logging.WARNING):
        fast = ksd.EarlyExit(model)
    assert "the base has no multiply-adds" in caplog.text
    fast.calibrate(X, Y % 2, max_accuracy_drop=0.05)
    assert fast.calibration.accuracy >= fast.calibration.base_accuracy - 0.05
    assert all(map(math.isnan, fast.macs_ratios.values()))
    with pytest.raises(ValueError, match=r"no multiply-adds.*Received: macs_budget"):
        fast.calibrate(macs_budget=0.5)


def test_a_head_is_not_narrowed_for_a_base_of_unknown_cost(caplog):
    caplog.set_level(logging.WARNING)
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(2, 3, strides=4, activation="relu", name="tap")(inputs)
    x = layers.Conv2D(64, 1, activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = Mixer(name="mixer")(x)
    base = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    ksd.SelfDistiller(base, ["tap"], "byot")
    assert "adds" not in caplog.text
