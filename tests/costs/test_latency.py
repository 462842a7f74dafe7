"""Medians with a clock that the test moves, and tables given by users."""

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from keras_selfdistill.costs import latency
from keras_selfdistill.costs.latency import (
    WARM_UP,
    check_latencies,
    cumulative,
    median_milliseconds,
    model_call,
)

pytestmark = pytest.mark.once


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.seconds = 1e4

    def perf_counter(self):
        return self.seconds

    def takes(self, *milliseconds):
        """Return a call that takes these times in turn, the last one from then on."""
        left = list(milliseconds)

        def call(*_):
            self.seconds += (left.pop(0) if len(left) > 1 else left[0]) / 1000

        return call


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    return clock


def test_the_median_is_that_of_the_calls_after_the_warm_up(clock):
    compiling = [5000.0] * WARM_UP
    calls = {
        "even": clock.takes(*compiling, 4.0, 1.0, 900.0, 2.0),
        "steady": clock.takes(*compiling, 0.5),
    }
    assert WARM_UP > 0
    found = median_milliseconds(calls, 4)
    assert found == pytest.approx({"even": 3.0, "steady": 0.5})


def test_measurements_take_turns_and_report_each_round():
    order, rounds = [], []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    median_milliseconds(calls, 3, rounds.append)
    assert order == ["a", "b"] * (3 + WARM_UP)
    assert rounds == list(range(1, 3 + WARM_UP + 1))


def test_one_disturbed_round_changes_nothing(clock):
    """Another process that runs for a while makes some of the calls slow."""
    quiet = [1.0] * 20
    disturbed = [1.0] * 8 + [50.0] * 7 + [1.0] * 5
    for times in (quiet, disturbed):
        calls = {"call": clock.takes(*[9.0] * WARM_UP, *times)}
        assert median_milliseconds(calls) == pytest.approx({"call": 1.0})


def test_a_call_is_that_of_the_model():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    x = np.random.default_rng(0).random((2, 4), "float32")
    found = model_call(model, [x])()
    kernel, bias = model.layers[-1].get_weights()
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, x @ kernel + bias, atol=1e-5)


def test_noise_makes_nothing_deeper_faster():
    times = {"a": 2.0, "b": 1.5, "c": 3.0, "d": 2.9}
    expected = np.maximum.accumulate(list(times.values()))
    assert cumulative(times) == dict(zip(times, expected, strict=True))


def test_a_good_table_may_hold_equal_times_and_any_numbers():
    check_latencies({"a": 1, "b": np.float32(1.0), "final": 2.5})


@pytest.mark.parametrize("value", [0, -1.0, "1", None, True, np.nan, np.inf])
def test_a_time_is_a_number_above_zero(value):
    with pytest.raises(ValueError, match=r"costs\['b'\]=.*a number above 0"):
        check_latencies({"a": 1.0, "b": value, "final": 2.0})


def test_times_of_single_sections_are_refused():
    with pytest.raises(ValueError, match=r"2 ms for 'b', but 1.5 ms for 'final'"):
        check_latencies({"a": 1.0, "b": 2, "final": 1.5})


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (np.zeros((0, 8, 8, 3)), "Received: no samples"),
        (iter([]), "Received: no batch"),
        (iter([np.zeros((1, 8, 8, 3))] * 2), "Received: several batches"),
    ],
)
def test_a_sample_is_one_batch(base, sample, message):
    model = ksd.SelfDistiller(base, ["out_1"], "byot", head="linear")
    with pytest.raises(ValueError, match=message):
        ksd.pick_exit(model, 5, sample)
