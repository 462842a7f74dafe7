"""Temperature scaling of exits: fitted, predicted with, saved and exported."""

import dataclasses

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from keras_selfdistill.early_exit.temperature import fit_temperature
from keras_selfdistill.files.archive import RefusedFileError
from tests.conftest import small_base
from tests.early_exit.test_early_exit import data, labelled, make_model, softmax
from tests.early_exit.test_export import answer_of, check, on_tensorflow


def crossentropy(logits, labels, temperature):
    rows = softmax(logits.astype("float64") / temperature)
    return -np.log(rows[np.arange(len(labels)), labels]).mean()


@pytest.fixture(scope="module", params=["softmax", None], ids=["softmax", "logits"])
def model(request):
    return make_model(request.param)


def all_logits(model, x, scores_from="exit", last_resort="final"):
    """Logits of each exit's prediction, by the network in one piece."""
    network = model.exit_graph.training_network.predict(x, verbose=0)["exits"]
    own = [network[name]["logits"] for name in model.exit_names]
    means = [np.mean(own[: i + 1], axis=0) for i in range(3)]
    chosen = means if scores_from == "running_mean" else own
    return [*chosen[:-1], (means if last_resort == "ensemble" else own)[-1]]


@pytest.mark.once
@pytest.mark.parametrize("scale", [0.3, 1.0, 7.0])
def test_the_fit_is_the_minimum_of_the_crossentropy(scale):
    random = np.random.default_rng(0)
    logits = scale * random.normal(size=(400, 5))
    chances = softmax(logits / (2 * scale))
    labels = np.array([random.choice(5, p=row) for row in chances])
    found = fit_temperature(logits, labels)
    grid = np.geomspace(0.05, 20.0, 6000)
    values = [crossentropy(logits, labels, each) for each in grid]
    assert found == pytest.approx(grid[np.argmin(values)], rel=2e-3)
    assert found == pytest.approx(2 * scale, rel=0.2)


@pytest.mark.once
@pytest.mark.parametrize("mask", [-np.inf, np.finfo("float32").min, -1e300])
def test_masked_classes_do_not_change_the_fit(mask):
    random = np.random.default_rng(0)
    logits = 7 * random.normal(size=(400, 5))
    labels = np.array([random.choice(5, p=row) for row in softmax(logits / 9)])
    expected = fit_temperature(logits, labels)
    assert expected == pytest.approx(9, rel=0.2)
    masked = np.insert(logits, 2, mask, axis=1)
    moved = labels + (labels >= 2)
    assert fit_temperature(masked, moved) == pytest.approx(expected, rel=1e-6)
    # A right class that is masked has no finite crossentropy at any temperature.
    if mask == -np.inf:
        more, known = np.concatenate([masked, masked[:9]]), np.append(moved, [2] * 9)
        assert fit_temperature(more, known) == pytest.approx(expected, rel=1e-6)


@pytest.mark.once
def test_exits_that_are_always_right_or_wrong_stay_in_range():
    logits, labels = np.eye(3)[[0, 1, 2, 0]] * 4, np.array([0, 1, 2, 0])
    assert fit_temperature(logits, labels) == pytest.approx(0.05)
    assert fit_temperature(-logits, labels) == pytest.approx(20.0)
    assert fit_temperature(np.zeros((4, 3)), labels) == 1.0
    broken = np.concatenate([[[np.nan, 0, 0], [np.inf, 0, 0]], 0.1 * logits])
    more = np.concatenate([[0, 0], labels])
    assert fit_temperature(broken, more) == fit_temperature(0.1 * logits, labels)


@pytest.mark.parametrize(
    ("scores_from", "last_resort"), [("exit", "final"), ("running_mean", "ensemble")]
)
def test_predictions_and_scores_are_of_scaled_logits(model, scores_from, last_resort):
    x, y = labelled(model, 60)
    options = {"scores_from": scores_from, "last_resort": last_resort}
    fast = ksd.EarlyExit(model, thresholds=0.7, **options)
    assert fast.temperatures is None
    assert fast.calibrate(x, y, temperature=True) is fast
    logits = all_logits(model, x, **options)
    expected = [fit_temperature(each, y) for each in logits]
    assert list(fast.temperatures) == fast.exit_names
    assert list(fast.temperatures.values()) == pytest.approx(expected, rel=1e-3)
    assert set(fast.thresholds.values()) == {0.7}  # Set by hand: kept.
    result = fast.predict(x)
    scaled = [each / t for each, t in zip(logits, expected, strict=True)]
    rows = np.array([softmax(each) for each in scaled])
    scores = rows.max(axis=-1)
    scores[-1] = 1.0
    exits = (scores >= 0.7).argmax(axis=0)
    names = np.array(fast.exit_names)[exits]
    unclear = (np.abs(scores - 0.7) < 1e-3).any(axis=0)
    np.testing.assert_array_equal(result.exits[~unclear], names[~unclear])
    of_softmax = (
        model.exit_graph.base.layers[-1].activation is keras.activations.softmax
    )
    outputs = rows if of_softmax else np.array(scaled)
    np.testing.assert_allclose(
        result.predictions[~unclear],
        outputs[exits, np.arange(60)][~unclear],
        rtol=2e-3,
        atol=1e-4,
    )


@pytest.mark.once
def test_thresholds_are_chosen_on_scaled_scores():
    model = make_model()
    x, y = labelled(model, 80)
    fast = ksd.EarlyExit(model).calibrate(x, y, macs_budget=0.8, temperature=True)
    by_hand = ksd.EarlyExit(model)
    by_hand.temperatures = fast.temperatures
    by_hand.calibrate(x, y, macs_budget=0.8)
    assert by_hand.thresholds == pytest.approx(fast.thresholds, rel=1e-6)
    assert by_hand.calibration.accuracy == fast.calibration.accuracy
    np.testing.assert_allclose(fast._outcomes.scores, by_hand._outcomes.scores)
    # Without new data, the scores of the last pass serve again.
    assert fast.calibrate(macs_budget=0.9).temperatures == by_hand.temperatures
    # Alone, it drops thresholds that were chosen on other scores.
    assert fast.calibrate(x, y, temperature=True).thresholds is None


@pytest.mark.once
@pytest.mark.parametrize("temperatures", [0.2, None])
def test_temperatures_drop_thresholds_that_were_chosen_on_other_scores(temperatures):
    model = make_model()
    x, y = labelled(model, 40)
    fast = ksd.EarlyExit(model)
    fast.temperatures = 2.0
    fast.calibrate(x, y, macs_budget=0.9)
    chosen = fast.thresholds
    with pytest.raises(ValueError, match="temperatures"):
        fast.temperatures = -1.0
    assert fast.thresholds == chosen  # An error changes nothing.
    fast.temperatures = temperatures
    assert (fast.thresholds, fast.calibration) == (None, None)
    with pytest.raises(ValueError, match="no thresholds yet"):
        fast.submit(x)
    fast.thresholds = chosen  # Set by hand, they stay.
    fast.temperatures = 3.0
    assert fast.thresholds == chosen
    assert fast.calibrate(x, y, temperature=True).thresholds == chosen


def test_only_the_first_temperatures_need_a_compilation():
    model = make_model()
    fast = ksd.EarlyExit(model, thresholds=0.5).warm_up(4)
    compiled = fast.compile_count
    x = np.zeros((4, *model.input_shape[1:]), "float32")
    fast.temperatures = 2.0
    fast.predict(x, batch_size=4)
    assert (fast.compile_count > 0) == (compiled > 0)  # None on PyTorch.
    fast.warm_up(4)
    assert fast.compile_count == compiled
    fast.temperatures = 3.0
    fast.predict(x, batch_size=4)
    assert fast.compile_count == compiled


@pytest.mark.once
def test_a_guarantee_is_tested_on_samples_that_nothing_was_fitted_on():
    model = make_model()
    x, y = labelled(model, 80)
    order = np.random.default_rng(3).permutation(80)
    first = order[:40]
    options = {"macs_budget": 0.8, "temperature": True}
    fast = ksd.EarlyExit(model).calibrate(x, y, guarantee=0.9, seed=3, **options)
    half = ksd.EarlyExit(model).calibrate(x[first], y[first], temperature=True)
    assert fast.temperatures == pytest.approx(half.temperatures)


@pytest.mark.once
def test_samples_that_temperatures_were_fitted_on_give_no_guarantee():
    model = make_model()
    x, y = labelled(model, 80)
    later = {"macs_budget": 0.9, "guarantee": 0.9}
    fast = ksd.EarlyExit(model).calibrate(x, y, temperature=True)
    with pytest.raises(ValueError, match=r"fitted on 80 of .* Expected: calibrate\("):
        fast.calibrate(**later)
    assert fast.thresholds is None
    fast.calibrate(macs_budget=0.9)  # Without a guarantee they may be used again.
    with pytest.raises(ValueError, match="fitted on 80"):
        fast.calibrate(**later)
    fast.calibrate(x, y, temperature=True, seed=3, **later)
    chosen = fast.calibration
    with pytest.raises(ValueError, match=r"fitted on 40 .* Expected: the seed"):
        fast.calibrate(seed=1, **later)
    assert fast.calibration == chosen
    assert fast.calibrate(seed=3, **later).calibration == chosen
    other, labels = data(40, seed=7)  # Nothing was fitted on new samples.
    fast.calibrate(other, labels, seed=1, **later)
    fast.calibrate(seed=2, **later)


@pytest.mark.once
def test_a_goal_that_is_not_reached_changes_nothing():
    model = make_model()
    x, y = labelled(model, 40)
    fast = ksd.EarlyExit(model).calibrate(x, y, macs_budget=0.9)
    before = fast.thresholds, fast.calibration, fast._outcomes
    with pytest.raises(ValueError, match="No thresholds reach the goal"):
        fast.calibrate(x, y, macs_budget=1e-6, temperature=True)
    assert fast.temperatures is None
    assert (fast.thresholds, fast.calibration, fast._outcomes) == before
    with pytest.raises(ValueError, match="temperature=True without x"):
        fast.calibrate(macs_budget=0.9, temperature=True)


@pytest.mark.once
def test_options_of_thresholds_are_refused_without_a_goal():
    model = make_model()
    x, y = labelled(model, 20)
    fast = ksd.EarlyExit(model)
    options = {"guarantee": 0.9, "per_exit": True, "sample": x[:1], "costs": {}}
    for name, value in options.items():
        with pytest.raises(ValueError, match=f"Received: {name} with temperature=True"):
            fast.calibrate(x, y, temperature=True, **{name: value})
    assert fast.temperatures is None


@pytest.mark.once
def test_temperatures_are_set_by_hand_and_checked():
    fast = ksd.EarlyExit(make_model(), thresholds=0.5)
    x, _ = data(20)
    before = fast.predict(x)
    fast.temperatures = 2.0
    assert fast.temperatures == dict.fromkeys(fast.exit_names, 2.0)
    fast.temperatures = {"final": 3.0, "exit_1": 1.0, "exit_2": 2.0}
    assert fast.temperatures == {"exit_1": 1.0, "exit_2": 2.0, "final": 3.0}
    fast.temperatures = [1e-3, 1e3, 1.0]
    assert np.isfinite(fast.predict(x).predictions).all()
    beyond = 1e-40, 9e-4, 1001, 1e300  # Float32 divides to NaN, or to equal logits.
    for wrong in (0.0, -1.0, np.inf, np.nan, *beyond, [1.0, 2.0], {"exit_1": 1.0}):
        with pytest.raises(ValueError, match="temperatures"):
            fast.temperatures = wrong
    fast.temperatures = None
    np.testing.assert_array_equal(fast.predict(x).predictions, before.predictions)


@pytest.fixture
def scaled():
    """An early exit with temperatures, at which half of the samples exit early."""
    keras.utils.set_random_seed(5)
    model = ksd.SelfDistiller(small_base(), ["out_1"], "byot")
    fast = ksd.EarlyExit(model)
    fast.temperatures = [0.25, 0.5]
    x, _ = data(24)
    first = fast.model.exit_graph.training_network.predict(x, verbose=0)["exits"]
    scores = np.sort(softmax(first["exit_1"]["logits"] / 0.25).max(axis=-1))
    fast.thresholds = float(scores[11:13].mean())
    return fast, x


def test_temperatures_are_saved(scaled, tmp_path):
    fast, x = scaled
    fast.save(tmp_path / "model.earlyexit")
    loaded = ksd.EarlyExit.load(tmp_path / "model.earlyexit")
    assert loaded.temperatures == fast.temperatures
    predictions = loaded.predict(x).predictions
    np.testing.assert_allclose(predictions, fast.predict(x).predictions, atol=1e-6)


@pytest.mark.once
def test_a_file_with_temperatures_out_of_range_is_refused(scaled, tmp_path):
    fast, _ = scaled
    fast._scorer = dataclasses.replace(fast._scorer, temperatures=(1e-40, 0.5))
    fast.save(tmp_path / "model.earlyexit")
    with pytest.raises(RefusedFileError, match="`temperatures` are out of range"):
        ksd.EarlyExit.load(tmp_path / "model.earlyexit")


@on_tensorflow
def test_temperatures_are_exported(scaled, tmp_path):
    fast, x = scaled
    fast.export(tmp_path / "exported")
    found = answer_of(tmp_path / "exported", "tf_saved_model", x, fast.exit_names)
    check(fast, x, found)
