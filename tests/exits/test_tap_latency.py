"""Taps at equal shares of time: by brute force, from tables and a moved clock."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.costs import latency
from keras_selfdistill.exits import suggestion, tap_latency
from keras_selfdistill.exits.block_ends import BlockEnd
from keras_selfdistill.exits.placement import Tap
from keras_selfdistill.graph.nodes import readers_of, unrecorded
from tests.costs.test_latency import Clock
from tests.exits.test_placement import ends_of, stack

WIDTHS = [(4, 1), (8, 2), (8, 1), (8, 1), (8, 1), (16, 2), (16, 1), (16, 1), (16, 2)]


def table_of(base, seed):
    """Times that multiply-adds do not tell, for all block ends and the base."""
    names = [*(end.name for end in ends_of(base)), "final"]
    times = np.cumsum(np.random.default_rng(seed).gamma(0.5, 2.0, len(names)) + 0.01)
    return dict(zip(names, times.tolist(), strict=True))


def by_trying_all(base, times, exits):
    """The documented rule, applied to every choice there is."""
    sizes = {end.name: end.tensor.shape[1:-1] for end in ends_of(base)}

    def badness(choice):
        shares = np.array([times[name] for name in choice]) / times["final"]
        targets = np.arange(1, exits + 1) / (exits + 1)
        alike = sum(sizes[a] == sizes[b] for a, b in itertools.pairwise(choice))
        return np.abs(shares - targets).sum() + alike * 0.5 / (exits + 1)

    names = [name for name in sizes if name in times]
    return list(min(itertools.combinations(names, exits), key=badness))


@pytest.mark.once
@pytest.mark.parametrize("exits", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_no_choice_by_a_table_is_better(exits, seed):
    base = stack(*WIDTHS)
    costs = table_of(base, seed)
    taps = ksd.suggest_taps(base, exits, by="latency", costs=costs)
    assert taps.names == by_trying_all(base, costs, exits)
    assert [tap.latency_ms for tap in taps] == [costs[tap.name] for tap in taps]
    ratios = [costs[tap.name] / costs["final"] for tap in taps]
    assert [tap.latency_ratio for tap in taps] == pytest.approx(ratios)
    shares = {end.name: end.macs_ratio for end in ends_of(base)}
    assert [tap.macs_ratio for tap in taps] == [shares[tap.name] for tap in taps]


@pytest.mark.once
def test_a_table_chooses_other_taps_than_multiply_adds():
    base = stack(*WIDTHS)
    names = [end.name for end in ends_of(base)]
    slow_start = {name: 80.0 + i for i, name in enumerate(names)} | {"final": 100.0}
    (tap,) = ksd.suggest_taps(base, 1, by="latency", costs=slow_start)
    assert tap.name == names[0] != ksd.suggest_taps(base, 1).names[0]


@pytest.mark.once
def test_taps_lie_only_where_a_table_has_times():
    base = stack(*WIDTHS)
    costs = table_of(base, 5)
    part = {name: costs[name] for name in ("final", "conv_6", "conv_1", "conv_2")}
    for exits in (1, 2, 3):
        taps = ksd.suggest_taps(base, exits, by="latency", costs=part)
        assert taps.names == by_trying_all(base, part, exits)
    # Of these three, one change of resolution.
    assert len(ksd.suggest_taps(base, "auto", by="latency", costs=part)) == 1


@pytest.mark.once
def test_the_result_is_passed_on_and_printed():
    base = stack(*WIDTHS)
    costs = {"conv_1": 1.25, "conv_5": 3.0, "final": 5.0}
    taps = ksd.suggest_taps(base, 2, by="latency", costs=costs)
    assert ksd.SelfDistiller(base, taps, "byot").taps == ["conv_1", "conv_5"]
    heading, first, *_ = str(taps).splitlines()
    assert heading.split()[-3:] == ["latency", "latency", "ratio"]
    assert first.split()[-3:] == ["1.250", "ms", "25.0%"]
    assert "latency" not in str(ksd.suggest_taps(base, 2))
    mixed = type(taps)([*taps, Tap("own", (None, 4), 0.9)])
    assert str(mixed).splitlines()[3].split()[-3:] == ["90.0%", "?", "?"]


def slow_calls(monkeypatch, milliseconds):
    """Let every layer take a time, and every fifth call of a model far longer."""
    clock, made = Clock(), []

    def call_of(model, arrays):
        made.append((model, [array.shape for array in arrays]))
        own = sum(milliseconds.get(layer.name, 0.0) for layer in model.layers)
        calls = itertools.count()
        return lambda: clock.takes(own if next(calls) % 5 else 70 * own)()

    monkeypatch.setattr(latency, "time", clock)
    monkeypatch.setattr(tap_latency, "model_call", call_of)
    return made


@pytest.mark.once
def test_measured_times_are_those_of_the_layers_up_to_each_tap(monkeypatch):
    base = stack(*WIDTHS)
    random = np.random.default_rng(2)
    each = {layer.name: random.uniform(0.5, 9.0) for layer in base.layers}
    made = slow_calls(monkeypatch, each)
    images = np.zeros((3, 16, 16, 4), "float32")
    before = [len(readers_of(layer)) for layer in base.layers]
    taps = ksd.suggest_taps(base, 3, by="latency", sample=images)
    assert [len(readers_of(layer)) for layer in base.layers] == before
    path = np.cumsum([each[layer.name] for layer in base.layers])
    up_to = {layer.name: t for layer, t in zip(base.layers, path, strict=True)}
    costs = {end.name: up_to[end.name] for end in ends_of(base)} | {"final": path[-1]}
    assert taps.names == by_trying_all(base, costs, 3)
    assert [tap.latency_ms for tap in taps] == pytest.approx(
        [costs[tap.name] for tap in taps]
    )
    assert len(made) == len(costs)
    assert all(shapes == [(3, 16, 16, 4)] for _, shapes in made)
    again = ksd.suggest_taps(base, 3, by="latency", sample=images)
    assert again.names == taps.names


def test_what_is_timed_computes_every_tap(monkeypatch):
    """The models that are called, on each backend, with two inputs in any order."""
    image, table = keras.Input((8, 8, 3), name="image"), keras.Input((4,), name="table")
    x = layers.Conv2D(4, 3, name="conv_1")(image)
    x = layers.Conv2D(4, 3, strides=2, name="conv_2")(x)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 2, name="conv_3")(x))
    x = layers.Concatenate()([x, layers.Dense(3)(table)])
    outputs = layers.Dense(3, "softmax", name="end")(x)
    base = keras.Model({"table": table, "image": image}, outputs)
    random = np.random.default_rng(0)
    sample = {
        "image": random.random((2, 8, 8, 3), "float32"),
        "table": random.random((2, 4), "float32"),
    }
    found = {}

    def once(calls):
        found.update({name: call() for name, call in calls.items()})
        return {name: float(i) for i, name in enumerate(calls, start=1)}

    monkeypatch.setattr(suggestion, "median_milliseconds", once)
    taps = ksd.suggest_taps(base, 1, by="latency", sample=sample)
    assert list(found) == ["conv_1", "conv_2", "conv_3", "final"]
    assert taps.names == ["conv_2"]  # At half of 4 ms.
    for name, values in found.items():
        layer = base.get_layer("end" if name == "final" else name)
        part = keras.Model(base.input, layer.output)
        outputs = part.predict(sample, verbose=0)
        expected = outputs.max(axis=tuple(range(1, outputs.ndim)))
        np.testing.assert_allclose(values, expected, atol=1e-5)


@pytest.mark.once
def test_a_deeper_tap_that_seemed_faster_is_as_slow(monkeypatch):
    def noisy(calls):
        times = [4.0, 3.0, 5.0, 4.5]
        return dict(zip(calls, times, strict=True))

    monkeypatch.setattr(suggestion, "median_milliseconds", noisy)
    base, images = stack((4, 1), (8, 2), (8, 1), (8, 1)), np.zeros((1, 16, 16, 4))
    taps = ksd.suggest_taps(base, 3, by="latency", sample=images)
    assert [tap.latency_ms for tap in taps] == [4.0, 4.0, 5.0]
    assert [tap.latency_ratio for tap in taps] == [0.8, 0.8, 1.0]


@pytest.mark.once
def test_real_measurements_grow_with_depth():
    base = stack((4, 1), (8, 2), (8, 1))
    weights = base.get_weights()
    images = np.zeros((1, 16, 16, 4), "float32")
    taps = ksd.suggest_taps(base, 2, by="latency", sample=images)
    first, second = taps
    assert 0 < first.latency_ms <= second.latency_ms
    assert 0 < first.latency_ratio <= second.latency_ratio <= 1
    for before, now in zip(weights, base.get_weights(), strict=True):
        np.testing.assert_array_equal(before, now)


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"by": "time"}, ValueError, "by='time'. Expected: 'macs' or 'latency'"),
        ({"by": "latency"}, ValueError, "with neither sample nor costs"),
        (
            {"by": "latency", "sample": np.zeros((1, 16, 16, 4)), "costs": {}},
            ValueError,
            "with sample and costs. Expected: either",
        ),
        ({"costs": {"final": 1}}, ValueError, "by='macs' with costs"),
        ({"by": "latency", "costs": [1]}, TypeError, "of type list"),
        (
            {"by": "latency", "costs": {"conv1": 1}},
            ValueError,
            r"costs\['conv1'\](.|\n)*Did you mean",
        ),
        (
            {"by": "latency", "costs": {"conv_0": 1.0}},
            ValueError,
            r"Received: \['conv_0'\]. Expected: 'final', the whole base, and at least",
        ),
        (
            {"by": "latency", "costs": {"conv_0": 1.0, "final": 2.0}, "exits": 2},
            ValueError,
            "too few times for exits=2",
        ),
        (
            {"by": "latency", "costs": {"conv_0": 3.0, "final": 2.0}, "exits": 1},
            ValueError,
            "must not decrease with depth",
        ),
        (
            {"by": "latency", "sample": np.zeros((1, 9, 16, 4))},
            ValueError,
            r"\(1, 9, 16, 4\). Expected: \(samples, 16, 16, 4\)",
        ),
        ({"by": "latency", "costs": {}, "exits": 1.5}, TypeError, "of type float"),
    ],
)
def test_errors_come_before_any_measurement(monkeypatch, arguments, error, message):
    made = slow_calls(monkeypatch, {})
    with pytest.raises(error, match=message):
        ksd.suggest_taps(stack((4, 1), (4, 1), (4, 1)), **arguments)
    assert not made


@pytest.mark.once
def test_a_fixed_batch_size_is_that_of_the_sample():
    inputs = keras.Input(batch_shape=(4, 6))
    x = layers.Dense(6, name="tap")(inputs)
    base = keras.Model(inputs, layers.Dense(3, "softmax")(layers.Dense(6)(x)))
    with pytest.raises(ValueError, match=r"Received: 2 samples. Expected: 4"):
        ksd.suggest_taps(base, 1, by="latency", sample=np.zeros((2, 6)))
    taps = ksd.suggest_taps(base, 1, by="latency", sample=np.zeros((4, 6)))
    assert taps.names == ["tap"]


@pytest.mark.once
def test_a_block_end_of_the_name_of_the_base_is_no_tap_of_a_table():
    inputs = keras.Input((6,))
    x = layers.Dense(6, name="first")(inputs)
    x = layers.Dense(6, name="final")(x)
    base = keras.Model(inputs, layers.Dense(3, "softmax")(layers.Dense(6)(x)))
    costs = {"first": 1.0, "final": 4.0}
    assert ksd.suggest_taps(base, 1, by="latency", costs=costs).names == ["first"]
    with unrecorded(base):
        ends = [BlockEnd("final", x, 0.5)]
        with pytest.raises(ValueError, match=r"at least 1 of \[\]"):
            tap_latency.given_latencies(ends, {"final": 4.0}, 1)
