"""Thresholds against brute force, and bounds against simulated draws."""

import dataclasses
import itertools
import logging

import numpy as np
import pytest

from keras_selfdistill.early_exit.thresholds.choice import choose
from keras_selfdistill.early_exit.thresholds.goal import ThresholdGoal
from keras_selfdistill.early_exit.thresholds.guarantee import (
    evidence,
    half_width,
    thresholds_from_safest,
    upper_bound,
)
from keras_selfdistill.early_exit.thresholds.outcomes import Outcomes
from keras_selfdistill.early_exit.thresholds.search import (
    Goal,
    Points,
    Price,
    _prices,
    between,
    evaluate,
    exit_indices,
    pareto,
    per_exit_points,
    shared_path,
)

pytestmark = pytest.mark.once
COSTS = np.array([0.3, 0.55, 1.05])


def outcomes(samples=40, exits=3, seed=0, levels=12, costs=None):
    """Random outcomes with many equal scores, surer where the exit is right."""
    random = np.random.default_rng(seed)
    hard = random.random(samples)[:, None]
    correct = random.random((samples, exits)) + np.linspace(0.2, 0.5, exits) > hard
    scores = correct[:, :-1] * 0.3 + random.random((samples, exits - 1))
    scores = np.round(scores * levels) / levels
    costs = COSTS if costs is None else costs
    correct = correct.astype("int8")
    return Outcomes(scores, correct, correct[:, -1], costs[:exits])


def candidates(scores):
    """Every threshold that makes a difference: below, at and above each score."""
    return [-np.inf, *np.unique(scores), np.inf]


def leave_one_by_one(data, thresholds):
    """Accuracy and cost, one sample and one exit after another."""
    right, spent = 0, 0.0
    for scores, correct in zip(data.scores, data.correct, strict=True):
        for i, score in enumerate([*scores, np.inf]):
            if score >= [*thresholds, -np.inf][i]:
                right += int(correct[i])
                spent += data.costs[i]
                break
    return right / len(data), spent / len(data)


def brute_force(data, *, shared):
    """Accuracy and cost of every setting of the thresholds."""
    if shared:
        settings = [(t,) * data.scores.shape[1] for t in candidates(data.scores)]
    else:
        settings = itertools.product(*map(candidates, data.scores.T))
    return [leave_one_by_one(data, setting) for setting in settings]


def front_of(pairs):
    """Pairs of accuracy and cost that no other pair beats, the slow way."""
    pairs = {(accuracy, round(cost, 9)) for accuracy, cost in pairs}
    return sorted(
        (cost, accuracy)
        for accuracy, cost in pairs
        if not any(
            a >= accuracy and c <= cost and (a, c) != (accuracy, cost) for a, c in pairs
        )
    )


@pytest.mark.parametrize("kind", [Outcomes, Points, Goal, Price])
def test_outcomes_points_and_goals_stay_as_they_are(kind):
    fields = [field.name for field in dataclasses.fields(kind)]
    thing = kind(*[0.5] * len(fields))
    for field in fields:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, field, 1.0)


def test_of_equals_the_better_is_chosen():
    accuracy, cost = np.array([0.6, 0.9, 0.9, 0.7]), np.array([0.3, 0.3, 0.4, 0.3])
    assert Goal(min_accuracy=0.5).best(accuracy, cost) == 1  # Of the same cost.
    assert Goal(max_cost=0.5).best(accuracy, cost) == 1  # Of the same accuracy.
    assert Goal().best(accuracy, cost) == 1
    # Sums in another order are off by less than this.
    assert Goal(min_accuracy=0.9 + 1e-12).best(accuracy, cost) == 1
    assert Goal(max_cost=0.3 - 1e-12).best(accuracy, cost) == 1
    assert Goal(min_accuracy=0.91).best(accuracy, cost) is None
    assert Goal(max_cost=0.29).best(accuracy, cost) is None


def test_a_score_that_equals_its_threshold_exits():
    assert exit_indices(np.array([[0.5, 0.9], [0.4, 0.9]]), [0.5, 0.9]).tolist() == [
        0,
        1,
    ]


def test_a_point_that_is_worse_at_the_same_cost_is_beaten():
    points = Points(np.zeros((3, 1)), np.array([0.4, 0.9, 0.9]), np.array([1, 1, 2.0]))
    assert (pareto(points).accuracy.tolist(), len(pareto(points))) == ([0.9], 1)


def test_a_price_weighs_accuracy_against_cost():
    accuracy, cost = np.array([0.5, 0.7, 0.75]), np.array([0.1, 0.2, 0.4])
    chosen = [Price(price).best(accuracy, cost) for price in (3.0, 1.0, 0.1)]
    assert chosen == [0, 1, 2]
    front = Points(np.zeros((3, 1)), accuracy, cost)
    np.testing.assert_allclose(_prices(front, 2), [2, 0.25])  # Its slopes.
    np.testing.assert_allclose(_prices(front, 3), [2, (2 + 0.25) / 2, 0.25])
    assert _prices(front[:1], 2).tolist() == [1, 1]
    two = _prices(front[[0, 1]], 2)
    np.testing.assert_allclose(two, [2, 2])


def test_own_thresholds_are_better_than_shared_ones_along_the_front():
    data = outcomes(samples=200, seed=3)
    shared, own = pareto(shared_path(data)), per_exit_points(data)
    gains = [
        own.accuracy[own.cost <= cost + 1e-9].max() - accuracy
        for accuracy, cost in zip(shared.accuracy, shared.cost, strict=True)
    ]
    assert max(gains) > 0.05
    assert np.mean(np.array(gains) > 0) > 0.25


def test_a_goal_that_no_point_reaches_leaves_the_whole_front():
    data = outcomes()
    every, found = per_exit_points(data), per_exit_points(data, Goal(min_accuracy=2))
    np.testing.assert_array_equal(found.thresholds, every.thresholds)
    np.testing.assert_array_equal(found.cost, every.cost)


@pytest.mark.parametrize("seed", range(5))
def test_the_shared_path_is_exact(seed):
    data = outcomes(seed=seed)
    path = shared_path(data)
    assert np.all(np.diff(path.cost) >= 0)
    for point in range(len(path)):
        expected = leave_one_by_one(data, path.thresholds[point])
        assert (path.accuracy[point], path.cost[point]) == pytest.approx(expected)
        assert evaluate(data, path.thresholds[point]) == pytest.approx(expected)
    found = {(a, round(c, 9)) for a, c in zip(path.accuracy, path.cost, strict=True)}
    every = {(a, round(c, 9)) for a, c in brute_force(data, shared=True)}
    assert found == every
    front = pareto(path)
    pairs = list(zip(front.cost.round(9), front.accuracy, strict=True))
    assert pairs == front_of(every)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("drop", [0.0, 0.03, 0.1])
def test_goals_choose_the_best_of_all_shared_thresholds(seed, drop):
    data = outcomes(seed=seed)
    base = data.reference.mean()
    every = brute_force(data, shared=True)
    for wish in (
        ThresholdGoal(max_accuracy_drop=drop),
        ThresholdGoal(target_accuracy=max(0.0, base - drop)),
    ):
        choice = choose(data, wish)
        reached = [pair for pair in every if pair[0] >= base - drop - 1e-9]
        assert choice.macs_ratio == pytest.approx(min(c for _, c in reached))
        assert choice.accuracy >= base - drop - 1e-9
    budget = 0.3 + 5 * drop
    choice = choose(data, ThresholdGoal(macs_budget=budget))
    reached = [pair for pair in every if pair[1] <= budget + 1e-9]
    assert choice.accuracy == pytest.approx(max(a for a, _ in reached))
    assert choice.macs_ratio <= budget + 1e-9
    found = leave_one_by_one(data, choice.thresholds)
    assert (choice.accuracy, choice.macs_ratio) == pytest.approx(found)


@pytest.mark.parametrize("seed", range(8))
def test_thresholds_of_each_exit_are_best_one_by_one(seed):
    data = outcomes(seed=seed)
    base = data.reference.mean()
    for goal, options in (
        (Goal(min_accuracy=base), {"max_accuracy_drop": 0.0}),
        (Goal(max_cost=0.5), {"macs_budget": 0.5}),
    ):
        shared = choose(data, ThresholdGoal(**options))
        own = choose(data, ThresholdGoal(**options, per_exit=True))
        pair = np.array([own.accuracy, shared.accuracy])
        assert goal.best(pair, np.array([own.macs_ratio, shared.macs_ratio])) == 0
        for i, threshold in itertools.product(range(2), candidates(data.scores)):
            trial = list(own.thresholds)
            trial[i] = threshold
            accuracy, cost = leave_one_by_one(data, trial)
            best = goal.best(
                np.array([own.accuracy, accuracy]), np.array([own.macs_ratio, cost])
            )
            assert best == 0


@pytest.mark.parametrize("seed", range(4))
def test_the_search_ends_where_no_threshold_alone_improves(seed):
    costs = np.array([0.2, 0.35, 0.5, 0.75, 1.05])
    data = outcomes(samples=80, exits=5, seed=seed, costs=costs)
    goal = Goal(max_cost=0.6)
    front = per_exit_points(data, goal, starts=1)  # One ascent; it needs some rounds.
    best = goal.best(front.accuracy, front.cost)
    own = front.thresholds[best]
    for i, threshold in itertools.product(range(4), candidates(data.scores)):
        accuracy, cost = evaluate(data, [*own[:i], threshold, *own[i + 1 :]])
        pairs = np.array([[front.accuracy[best], accuracy], [front.cost[best], cost]])
        assert goal.best(*pairs) == 0


def test_thresholds_of_each_exit_are_often_the_best_of_all():
    exact = 0
    for seed in range(20):
        data = outcomes(samples=30, seed=seed, levels=6)
        base = data.reference.mean()
        every = brute_force(data, shared=False)
        best = min(cost for accuracy, cost in every if accuracy >= base - 1e-9)
        own = choose(
            data, ThresholdGoal(max_accuracy_drop=0.0, per_exit=True)
        ).macs_ratio
        assert own >= best - 1e-9
        exact += own == pytest.approx(best)
    assert exact >= 16


def test_the_front_of_own_thresholds_covers_that_of_shared_ones():
    data = outcomes(samples=200, seed=3)
    shared, own = pareto(shared_path(data)), per_exit_points(data)
    for accuracy, cost in zip(shared.accuracy, shared.cost, strict=True):
        assert own.accuracy[own.cost <= cost + 1e-9].max() >= accuracy
    for thresholds, *pair in zip(own.thresholds, own.accuracy, own.cost, strict=True):
        assert pair == pytest.approx(leave_one_by_one(data, thresholds))


def test_infinite_scores_stay_between_the_thresholds():
    data = outcomes()
    data.scores[:2] = [[1e300, -1e300], [-1e300, 1e300]]
    path = shared_path(data)
    assert not np.isnan(path.thresholds).any()
    for point in (0, 1, len(path) - 2, len(path) - 1):
        expected = leave_one_by_one(data, path.thresholds[point])
        assert (path.accuracy[point], path.cost[point]) == pytest.approx(expected)


def neighbours(value, steps):
    """Floats one after another, from a value on."""
    found = [value]
    for _ in range(steps):
        found.append(np.nextafter(found[-1], np.inf))
    return np.array(found)


ADJACENT = {
    "ordinary": neighbours(0.7, 5),
    "around one": neighbours(np.nextafter(1.0, 0.0), 4),
    "subnormal": neighbours(0.0, 6),
    "negative": neighbours(-0.7, 5),
    "largest": np.array([-1.7e308, 1.6e308, 1.7e308]),
}


@pytest.mark.parametrize("kind", ADJACENT)
def test_a_threshold_between_adjacent_scores_keeps_them_apart(kind):
    values = ADJACENT[kind]
    middle = between(values)[1:-1]
    assert np.all(np.isfinite(middle))
    assert np.all(middle > values[:-1])
    assert np.all(middle <= values[1:])


@pytest.mark.parametrize("kind", ADJACENT)
@pytest.mark.parametrize("per_exit", [False, True])
def test_no_drop_is_kept_between_adjacent_scores(kind, per_exit):
    """The surer half is right at the exit, the other half is not."""
    low, high = ADJACENT[kind][-2:]
    scores = np.repeat([[low, low], [high, high]], 20, axis=0)
    correct = np.repeat([[0, 0, 1], [1, 1, 1]], 20, axis=0)
    data = Outcomes(scores, correct, correct[:, -1], COSTS)
    choice = choose(data, ThresholdGoal(max_accuracy_drop=0.0, per_exit=per_exit))
    found = leave_one_by_one(data, choice.thresholds)
    assert found == pytest.approx((1.0, (COSTS[0] + COSTS[-1]) / 2))
    assert (choice.accuracy, choice.macs_ratio) == pytest.approx(found)


@pytest.mark.parametrize("seed", range(5))
def test_points_are_what_predict_gives_among_adjacent_scores(seed):
    data = outcomes(seed=seed)
    random = np.random.default_rng(seed)
    near = random.choice(neighbours(0.9, 6), data.scores.shape)
    data = dataclasses.replace(data, scores=near)
    for points in (shared_path(data), per_exit_points(data)):
        for point in range(len(points)):
            expected = leave_one_by_one(data, points.thresholds[point])
            pair = points.accuracy[point], points.cost[point]
            assert pair == pytest.approx(expected)


@pytest.mark.parametrize(
    ("accuracy", "samples"), [(0.0, 1), (1.0, 20), (0.75, 20), (0.9, 500)]
)
def test_the_interval_of_an_accuracy_is_wilsons(accuracy, samples):
    from scipy import stats

    right = round(accuracy * samples)
    found = stats.binomtest(right, samples).proportion_ci(0.95, method="wilson")
    assert half_width(accuracy, samples) == pytest.approx((found.high - found.low) / 2)


def test_few_samples_are_warned_of_and_fewer_are_refused(caplog):
    caplog.set_level(logging.WARNING)
    correct = np.ones((2000, 3), "int8")
    correct[::4] = 0  # 75 % right.
    data = Outcomes(np.zeros((2000, 2)), correct, correct[:, -1], COSTS)
    choose(data.part(np.arange(2000)), ThresholdGoal(macs_budget=2.0))
    assert not caplog.records
    choose(data.part(np.arange(20)), ThresholdGoal(max_accuracy_drop=0.01))
    (record,) = caplog.records
    assert "20 samples" in record.message
    assert "75.0 %" in record.message
    # (1.96 / 0.05)² · 0.75 · 0.25 = 288, less what Wilson's interval gains.
    assert "For ±5 points, calibrate on 286 samples" in record.message
    for count in (1, 2, 11):
        with pytest.raises(ValueError, match=rf"Received: {count} .*at least 12,"):
            choose(data.part(np.arange(count)), ThresholdGoal(max_accuracy_drop=0.01))
    choose(data.part(np.arange(12)), ThresholdGoal(max_accuracy_drop=0.01))


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({}, "one goal. Received: none"),
        ({"max_accuracy_drop": 0.1, "macs_budget": 0.5}, "one goal. Received: max"),
        ({"max_accuracy_drop": 1.5}, "out of range. Received: max_accuracy_drop=1.5"),
        (
            {"max_accuracy_drop": 1},
            "Received: max_accuracy_drop=1. Expected: a fraction",
        ),
        ({"target_accuracy": 95}, "such as 0.9; 0.01 is one per cent"),
        ({"target_accuracy": "high"}, "Received: target_accuracy='high'"),
        ({"macs_budget": float("nan")}, "Received: macs_budget=nan"),
        ({"macs_budget": 0.5, "guarantee": 95}, "Received: guarantee=95"),
        (
            {"macs_budget": 0.5, "guarantee": 0.9, "per_exit": True},
            "guarantee=0.9 with per_exit=True",
        ),
    ],
)
def test_goals_are_checked(wish, message):
    with pytest.raises(ValueError, match=message):
        ThresholdGoal(**wish)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"macs_budget": 0.2}, "macs_budget=0.2. Expected: at least 0.3,"),
        ({"target_accuracy": 1.0}, r"at least 1.0000. Expected: at most 0\.\d+ on"),
    ],
)
def test_what_cannot_be_reached_is_refused(wish, message):
    with pytest.raises(ValueError, match=message):
        choose(outcomes(), ThresholdGoal(**wish))


def martingale(values, mean, confidence):
    """The betting capital of Waudby-Smith & Ramdas, one sample after another."""
    values, mean = [(1 + v) / 2 for v in values], (1 + mean) / 2
    capital = best = 1.0
    total, squares = 0.0, 0.0
    for i, value in enumerate(values):
        variance = (0.25 + squares) / (i + 1)
        bet = np.sqrt(2 * np.log(1 / (1 - confidence)) / (len(values) * variance))
        capital *= 1 - min(bet, 0.75 / (1 - mean)) * (value - mean)
        best = capital if i == 0 else max(best, capital)
        total += value
        squares += (value - (0.5 + total) / (i + 2)) ** 2
    return np.log(best)


def test_the_evidence_is_the_published_one():
    random = np.random.default_rng(0)
    for mean in (-0.2, 0.0, 0.3):
        values = random.choice([-1, 0, 1], 60, p=[0.1, 0.7, 0.2])
        found = evidence(values[:, None], mean, 0.95)[0]
        assert found == pytest.approx(martingale(values, mean, 0.95))


def test_the_upper_bound_is_rarely_broken_and_not_far_off():
    random = np.random.default_rng(1)
    mean, bounds = 0.01, []
    for _ in range(1000):
        values = random.choice([-1, 0, 1], 1000, p=[0.02, 0.95, 0.03])
        bounds.append(upper_bound(values, 0.95))
    broken = np.mean(np.array(bounds) < mean)
    assert broken <= 0.05 + 2.33 * np.sqrt(0.05 * 0.95 / 1000)
    # A normal approximation would say 0.01 + 1.64 · 0.22 / √1000 = 0.022.
    assert np.median(bounds) < 0.035


def population(samples, random):
    """Draw outcomes whose early exits err more, the more so the less sure they are."""
    sure = random.random((samples, 2))
    right = random.random(samples)[:, None]
    chance = np.stack([0.55 + 0.40 * sure[:, 0], 0.65 + 0.30 * sure[:, 1]], axis=1)
    final = right < 0.9
    correct = np.concatenate([right < chance, final], axis=1).astype("int8")
    return Outcomes(sure, correct, correct[:, -1], COSTS)


def expected_drop(threshold):
    """The drop on all of the population, by integration over the scores."""
    t = np.clip(threshold, 0, 1)
    sure = (1 + t) / 2  # The mean score of whoever leaves; chances are straight lines.
    # Whoever is right at the end and wrong at the exit, less the other way round.
    first = (1 - t) * (0.9 - (0.55 + 0.40 * sure))
    second = t * (1 - t) * (0.9 - (0.65 + 0.30 * sure))
    return first + second


@pytest.mark.long
def test_the_guarantee_is_broken_in_at_most_five_per_cent_of_draws(caplog):
    caplog.set_level(logging.ERROR)
    random = np.random.default_rng(2)
    everyone = population(400_000, random)
    for threshold in (0.3, 0.8, 0.95):
        exits = evaluate(everyone, (threshold, threshold))[0]
        lost = everyone.reference.mean() - exits
        assert lost == pytest.approx(expected_drop(threshold), abs=2e-3)
    allowed, draws = 0.02, 1000
    wish = ThresholdGoal(max_accuracy_drop=allowed, guarantee=0.95)
    choices = [choose(population(2000, random), wish) for _ in range(draws)]
    real = np.array([expected_drop(choice.thresholds[0]) for choice in choices])
    cost = np.array([choice.macs_ratio for choice in choices])
    assert np.mean(real > allowed) <= 0.05 + 2.33 * np.sqrt(0.05 * 0.95 / draws)
    assert np.mean(cost < 1.0) > 0.9  # A saving, in most draws.
    assert np.median(real) > 0.2 * allowed  # And no needless care.
    # Without the guarantee, the same wish is broken about every other time.
    naive = [
        choose(population(1000, random), ThresholdGoal(max_accuracy_drop=allowed))
        for _ in range(100)
    ]
    assert np.mean([expected_drop(c.thresholds[0]) > allowed for c in naive]) > 0.3


@pytest.mark.parametrize("wish", [{"macs_budget": 0.6}, {"target_accuracy": 0.8}])
def test_other_goals_come_with_a_bound(wish):
    random = np.random.default_rng(3)
    wish = ThresholdGoal(**wish, guarantee=0.95)
    choices = [choose(population(2000, random), wish) for _ in range(200)]
    real = np.array([expected_drop(choice.thresholds[0]) for choice in choices])
    bounds = np.array([choice.accuracy_drop_bound for choice in choices])
    assert np.mean(real > bounds) <= 0.05 + 2.33 * np.sqrt(0.05 * 0.95 / 200)
    assert np.median(bounds) < 0.2


@pytest.mark.parametrize("costs", [[1.0, 1.0, 1.0], [0.3, 1.0, 1.0], [0.5, 0.5, 1.0]])
def test_a_path_begins_with_all_going_to_the_end_also_where_exits_cost_alike(costs):
    data = population(200, np.random.default_rng(5))
    points = shared_path(dataclasses.replace(data, costs=np.array(costs)))
    path = thresholds_from_safest(points)
    assert path.thresholds[0].tolist() == [np.inf, np.inf]
    assert np.all(np.diff(path.cost) < 0)
    assert np.all(np.diff(path.thresholds[:, 0]) < 0)
    assert path.cost[-1] == points.cost[0]


@pytest.mark.parametrize("costs", [[1.0, 1.0, 1.0], [0.3, 1.0, 1.0]])
def test_a_guarantee_holds_where_exits_cost_alike(costs, caplog):
    data = population(60, np.random.default_rng(4))
    data = dataclasses.replace(data, costs=np.array(costs))
    choice = choose(data, ThresholdGoal(max_accuracy_drop=0.0, guarantee=0.95))
    assert "all samples will use the last exit" in caplog.text
    assert choice.thresholds == (np.inf, np.inf)
    assert choice.accuracy == choice.base_accuracy


def test_few_samples_guarantee_no_exit():
    data = population(60, np.random.default_rng(4))
    choice = choose(data, ThresholdGoal(max_accuracy_drop=0.01, guarantee=0.95))
    assert choice.thresholds == (np.inf, np.inf)
    assert choice.accuracy == choice.base_accuracy
    with pytest.raises(ValueError, match="Nothing can be guaranteed"):
        choose(
            data,
            ThresholdGoal(max_accuracy_drop=0.01, guarantee=0.95),
            last_is_base=False,
        )
    with pytest.raises(ValueError, match="Received: 1 samples"):
        choose(data.part([0]), ThresholdGoal(macs_budget=0.5, guarantee=0.95))
