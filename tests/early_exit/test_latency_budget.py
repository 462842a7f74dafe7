"""Thresholds within a budget of milliseconds: by brute force, and from end to end."""

import dataclasses
import importlib.util
import itertools
import json
import math

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.costs import latency
from keras_selfdistill.early_exit.thresholds import exit_latency
from keras_selfdistill.early_exit.thresholds.choice import choose
from keras_selfdistill.early_exit.thresholds.goal import ThresholdGoal
from tests.conftest import miss
from tests.costs import test_unknown_costs
from tests.costs.test_latency import Clock
from tests.early_exit.test_calibration import (
    brute_force,
    candidates,
    leave_one_by_one,
    outcomes,
)
from tests.early_exit.test_early_exit import (
    NAMES,
    data,
    labelled,
    make_model,
    run_everything,
)
from tests.files.test_safe_files import MODEL, SETTINGS
from tests.fuzz import mutations

# Where exit 2 costs next to nothing more than exit 1, which multiply-adds do not tell.
MILLISECONDS = np.array([2.0, 2.25, 8.0])
COSTS = dict(zip(NAMES, MILLISECONDS.tolist(), strict=True))


def timed(**options):
    return dataclasses.replace(outcomes(**options), latencies=MILLISECONDS)


@pytest.mark.once
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [2.0, 3.1, 5.0, 8.0])
def test_the_best_accuracy_within_the_budget_is_found(seed, budget):
    timed_data = timed(seed=seed)
    by_time = dataclasses.replace(timed_data, costs=MILLISECONDS)
    every = brute_force(by_time, shared=True)
    reached = [pair for pair in every if pair[1] <= budget + 1e-9]
    best = max(accuracy for accuracy, _ in reached)
    choice = choose(timed_data, ThresholdGoal(latency_budget_ms=budget))
    assert choice.accuracy == pytest.approx(best)
    assert choice.latency_ms <= budget + 1e-9
    fastest = min(cost for accuracy, cost in reached if accuracy == best)
    assert choice.latency_ms == pytest.approx(fastest)
    expected = leave_one_by_one(timed_data, choice.thresholds)
    assert (choice.accuracy, choice.macs_ratio) == pytest.approx(expected)


@pytest.mark.once
@pytest.mark.parametrize("seed", range(3))
def test_own_thresholds_are_searched_by_milliseconds(seed):
    timed_data = timed(seed=seed)
    by_time = dataclasses.replace(timed_data, costs=MILLISECONDS)
    goal = ThresholdGoal(latency_budget_ms=4.0, per_exit=True)
    own = choose(timed_data, goal)
    shared = choose(timed_data, ThresholdGoal(latency_budget_ms=4.0))
    assert own.accuracy >= shared.accuracy
    expected = leave_one_by_one(by_time, own.thresholds)
    assert (own.accuracy, own.latency_ms) == pytest.approx(expected)
    assert own.latency_ms <= 4.0
    for i, threshold in itertools.product(range(2), candidates(by_time.scores)):
        trial = list(own.thresholds)
        trial[i] = threshold
        accuracy, cost = leave_one_by_one(by_time, trial)
        assert cost > 4.0 + 1e-9 or accuracy <= own.accuracy + 1e-9


def rows_of(outcomes, rows):
    """Return the outcomes of some samples, taken one by one."""
    names = ("scores", "correct", "reference")
    taken = {
        name: np.array([getattr(outcomes, name)[row] for row in rows]) for name in names
    }
    return dataclasses.replace(outcomes, **taken)


@pytest.mark.once
def test_a_guarantee_is_given_for_a_budget_of_milliseconds():
    timed_data = timed(samples=400)
    goal = ThresholdGoal(latency_budget_ms=5.0, guarantee=0.9)
    choice = choose(timed_data, goal)
    search, test = np.array_split(np.random.default_rng(0).permutation(400), 2)
    by_time = dataclasses.replace(timed_data, costs=MILLISECONDS)
    assert (
        leave_one_by_one(rows_of(by_time, search), choice.thresholds)[1] <= 5.0 + 1e-9
    )
    expected = leave_one_by_one(rows_of(by_time, test), choice.thresholds)
    assert (choice.accuracy, choice.latency_ms) == pytest.approx(expected)
    assert 0 < choice.accuracy_drop_bound < 1


@pytest.mark.once
def test_other_goals_say_the_latency_where_it_is_known():
    goal = ThresholdGoal(macs_budget=0.6)
    without, choice = choose(outcomes(), goal), choose(timed(), goal)
    assert without.latency_ms is None
    assert dataclasses.replace(choice, latency_ms=None) == without
    by_time = dataclasses.replace(timed(), costs=MILLISECONDS)
    expected = leave_one_by_one(by_time, choice.thresholds)[1]
    assert choice.latency_ms == pytest.approx(expected)


@pytest.fixture(scope="module")
def probable():
    return make_model()


@pytest.fixture
def fast(probable):
    return ksd.EarlyExit(probable)


def test_measured_latencies_are_those_of_the_sections(probable, monkeypatch):
    """The real `predict`, in which sections move the clock."""
    fast, clock = ksd.EarlyExit(probable), Clock()
    wait = {1: clock.takes(3.0), 2: clock.takes(0.5), 3: clock.takes(4.0)}
    sizes = []

    def slowed(section, number):
        calls = itertools.count()

        def run(tensors):
            sizes.append(len(tensors[0]))
            disturbed = next(calls) % 11 == 10
            for _ in range(9 if disturbed else 1):
                wait[number]()
            return section(tensors)

        return run

    sections = [slowed(each, i) for i, each in enumerate(fast._cascade._sections, 1)]
    monkeypatch.setattr(fast._cascade, "_sections", sections)
    monkeypatch.setattr(latency, "time", clock)
    x, y = labelled(probable, 60)
    assert fast.latencies_ms is None
    with pytest.raises(ValueError, match=r"Expected: at least 3, the cost of the"):
        fast.calibrate(x, y, latency_budget_ms=2.9, sample=x[:3])
    assert fast.latencies_ms == pytest.approx(
        {"exit_1": 3.0, "exit_2": 3.5, "final": 7.5}
    )
    rounds = latency.REPEATS + latency.WARM_UP
    assert sizes[: 6 * rounds] == [3] * 6 * rounds


@pytest.mark.once
def test_a_deeper_exit_that_seemed_faster_is_as_slow(probable, fast, monkeypatch):
    times = {"exit_1": 2.0, "exit_2": 1.5, "final": 3.0}
    monkeypatch.setattr(exit_latency, "median_milliseconds", lambda calls: times)
    x, y = data(20)
    fast.calibrate(x, y, latency_budget_ms=9, sample=x[:1])
    assert fast.latencies_ms == {"exit_1": 2.0, "exit_2": 2.0, "final": 3.0}


def test_a_table_is_searched_and_told_of(probable, fast, monkeypatch, capsys):
    x, y = labelled(probable, 60)
    fast.calibrate(x, y, latency_budget_ms=5.0, costs=COSTS)
    assert fast.latencies_ms == COSTS
    answers, scores = run_everything(probable, x, "confidence", "exit", "final")
    correct = answers.argmax(axis=-1) == y
    every = []
    for threshold in candidates(scores[:-1]):
        exits = (np.vstack([scores[:-1], np.full(60, np.inf)]) >= threshold).argmax(0)
        every.append((correct[exits, np.arange(60)].mean(), MILLISECONDS[exits].mean()))
    best = max(accuracy for accuracy, cost in every if cost <= 5.0 + 1e-9)
    found = fast.calibration
    assert found.accuracy == pytest.approx(best)
    assert found.latency_ms <= 5.0
    result = fast.predict(x, batch_size=16)
    spent = np.mean([COSTS[name] for name in result.exits])
    assert result.latency_ms == pytest.approx(spent)
    assert found.latency_ms == pytest.approx(spent)
    assert f"{spent:.3f} ms" in repr(result)
    logs = fast.evaluate(x, y, return_dict=True)
    counts = [f"{name}_samples" for name in NAMES]
    assert list(logs) == ["accuracy", "macs_ratio", *counts, "latency_ms"]
    assert logs["latency_ms"] == pytest.approx(spent)
    shown = capsys.readouterr().out
    assert shown.endswith(
        f" - final_samples: {logs['final_samples']:.0f} - latency_ms: {spent:.4f}\n"
    )
    assert "2.250 ms" in fast._repr_html_()
    # Another budget needs neither a second pass nor a second measurement.
    monkeypatch.setattr(fast._cascade, "predict", None)
    monkeypatch.setattr(fast._cascade, "observe", None)
    fast.calibrate(latency_budget_ms=8.0)
    assert fast.calibration.accuracy >= found.accuracy
    fast.thresholds = 0.5
    assert fast.latencies_ms == COSTS


@pytest.mark.once
def test_without_latencies_nothing_is_told_of_them(probable, fast):
    x, y = labelled(probable, 60)
    fast.calibrate(x, y, macs_budget=2.0)
    result = fast.predict(x)
    assert result.latency_ms is fast.calibration.latency_ms is fast.latencies_ms is None
    assert " ms" not in repr(result) + fast._repr_html_()
    assert "latency_ms" not in fast.evaluate(x, y, verbose=0, return_dict=True)
    with pytest.raises(ValueError, match="latencies of the exits are not known"):
        fast.frontier(by="latency")
    with pytest.raises(ValueError, match=r"by='time'. Expected: 'macs' or 'latency'"):
        fast.frontier(by="time")


@pytest.mark.once
def test_the_frontier_by_latency_is_that_of_all_thresholds(probable, fast, tmp_path):
    x, y = labelled(probable, 60)
    fast.calibrate(x, y, latency_budget_ms=5.0, costs=COSTS)
    front = fast.frontier(by="latency")
    by_time = dataclasses.replace(fast._outcomes, costs=MILLISECONDS)
    every = brute_force(by_time, shared=True)
    for threshold, accuracy, cost in zip(
        front.thresholds, front.accuracy, front.latency_ms, strict=True
    ):
        pair = leave_one_by_one(by_time, threshold)
        assert pair == pytest.approx((accuracy, cost))
    for accuracy, cost in every:
        assert front.accuracy[front.latency_ms <= cost + 1e-9].max() >= accuracy
    used = fast.calibration
    assert front.chosen == pytest.approx((used.latency_ms, used.accuracy))
    ratios = [leave_one_by_one(fast._outcomes, each)[1] for each in front.thresholds]
    assert front.macs_ratio == pytest.approx(ratios)
    assert repr(front).endswith(
        f"{front.latency_ms[0]:.3f} to {front.latency_ms[-1]:.3f} ms>"
    )
    assert fast.frontier().latency_ms is None
    if importlib.util.find_spec("matplotlib") is None:
        miss("matplotlib is not installed")
    (axes,) = front.plot().axes
    assert axes.get_xlabel() == "mean latency, ms"
    np.testing.assert_allclose(axes.lines[0].get_xdata(), front.latency_ms)
    assert "%" not in axes.xaxis.get_major_formatter()(3.0)


@pytest.fixture(scope="module")
def saved(probable, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "fast.earlyexit"
    fast = ksd.EarlyExit(probable)
    x, y = labelled(probable, 60)
    fast.calibrate(x, y, latency_budget_ms=5.0, costs=COSTS).save(path)
    return fast, path


@pytest.mark.once
def test_latencies_travel_with_the_thresholds(saved):
    fast, path = saved
    loaded = ksd.EarlyExit.load(path)
    assert loaded.latencies_ms == fast.latencies_ms == COSTS
    assert loaded.calibration == fast.calibration
    x, y = data(20)
    assert loaded.predict(x).latency_ms == fast.predict(x).latency_ms
    loaded.calibrate(x, y, latency_budget_ms=6.0)
    assert loaded.calibration.latency_ms <= 6.0


@pytest.mark.once
@pytest.mark.parametrize(
    "latencies",
    [
        {"exit_1": 1.0, "final": 2.0},
        {"exit_1": 1.0, "exit_2": 3.0, "final": 2.0},
        {"exit_1": -1.0, "exit_2": 1.5, "final": 2.0},
        {"exit_1": "1", "exit_2": 1.5, "final": 2.0},
        [1.0, 2.0, 3.0],
        {},
    ],
)
def test_a_file_with_other_latencies_is_refused(saved, tmp_path, latencies):
    parts = dict(mutations.parts_of(saved[1].read_bytes()))
    settings = json.loads(parts[SETTINGS]) | {"latencies_ms": latencies}
    changed = {SETTINGS: json.dumps(settings), MODEL: parts[MODEL]}
    comment = b"0" * mutations.DIGITS
    content = mutations.archive_of(changed.items(), comment=comment)
    path = tmp_path / "changed.earlyexit"
    path.write_bytes(mutations.with_digest(content))
    with pytest.raises(ksd.RefusedFileError):
        ksd.EarlyExit.load(path)


@pytest.mark.once
def test_milliseconds_need_no_multiply_adds():
    """Of a base with a layer whose cost is unknown."""
    model = test_unknown_costs.wrapper(test_unknown_costs.Mixer, "behind")
    fast = ksd.EarlyExit(model)
    x, y = test_unknown_costs.X, test_unknown_costs.Y
    for per_exit in (False, True):
        fast.calibrate(x, y, latency_budget_ms=5.0, costs=COSTS, per_exit=per_exit)
        assert fast.calibration.latency_ms <= 5.0
        assert math.isnan(fast.calibration.macs_ratio)
    fast.calibrate(max_accuracy_drop=0.5)
    assert fast.calibration.latency_ms >= 2.0
    assert np.isnan(fast.frontier(by="latency").macs_ratio).all()


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"latency_budget_ms": 5}, ValueError, "neither `sample` nor `costs`"),
        ({"latency_budget_ms": 0, "costs": COSTS}, ValueError, "Expected: millisec"),
        ({"latency_budget_ms": "5"}, ValueError, "latency_budget_ms='5'"),
        ({"latency_budget_ms": 5, "macs_budget": 0.5}, ValueError, "exactly one goal"),
        ({"macs_budget": 0.5, "costs": COSTS}, ValueError, "Received: costs with"),
        (
            {"latency_budget_ms": 5, "costs": COSTS, "sample": np.zeros((1, 8, 8, 3))},
            ValueError,
            "Received: sample and costs with",
        ),
        (
            {"latency_budget_ms": 5, "costs": {"exit_1": 1.0, "final": 2.0}},
            ValueError,
            r"Received: \['exit_1', 'final'\](.|\n)*'exit_2'",
        ),
        ({"latency_budget_ms": 5, "costs": [1, 2, 3]}, TypeError, "of type list"),
        (
            {"latency_budget_ms": 5, "costs": COSTS | {"exit_2": 1.0}},
            ValueError,
            "must not decrease with depth",
        ),
        (
            {"latency_budget_ms": 5, "sample": np.zeros((0, 8, 8, 3))},
            ValueError,
            "no samples",
        ),
        (
            {"latency_budget_ms": 5, "sample": np.zeros((8, 8, 3))},
            ValueError,
            "Add the batch axis",
        ),
    ],
)
def test_errors_come_before_work_begins(fast, monkeypatch, arguments, error, message):
    monkeypatch.setattr(fast._cascade, "observe", None)
    monkeypatch.setattr(fast._cascade, "predict", None)
    x, y = data(20)
    with pytest.raises(error, match=message):
        fast.calibrate(x, y, **arguments)
    assert fast.latencies_ms is fast.thresholds is None


@pytest.mark.once
def test_nothing_is_measured_without_calibration_data(fast, monkeypatch):
    monkeypatch.setattr(fast._cascade, "predict", None)
    with pytest.raises(ValueError, match="no calibration data"):
        fast.calibrate(latency_budget_ms=5, sample=np.zeros((1, 8, 8, 3)))
    assert fast.latencies_ms is None


@pytest.mark.once
def test_a_sample_of_several_inputs_is_measured():
    left, right = keras.Input((4,), name="left"), keras.Input((3,), name="right")
    x = layers.Dense(6, "relu", name="tap")(layers.Concatenate()([left, right]))
    x = layers.Concatenate()([layers.Dense(5, "relu")(x), right])
    base = keras.Model(
        {"right": right, "left": left}, layers.Dense(3, activation="softmax")(x)
    )
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
    random = np.random.default_rng(0)
    x = {"left": random.random((20, 4)), "right": random.random((20, 3))}
    sample = {name: rows[:2] for name, rows in x.items()}
    fast = ksd.EarlyExit(model)
    fast.calibrate(x, np.arange(20) % 3, latency_budget_ms=1e6, sample=sample)
    first, last = fast.latencies_ms.values()
    assert 0 < first - 1e-9 <= fast.calibration.latency_ms <= last + 1e-9


@pytest.mark.once
def test_what_is_slower_than_the_budget_is_refused(probable, fast):
    x, y = data(20)
    with pytest.raises(ValueError, match=r"_ms=1.5. Expected: at least 2,"):
        fast.calibrate(x, y, latency_budget_ms=1.5, costs=COSTS)
