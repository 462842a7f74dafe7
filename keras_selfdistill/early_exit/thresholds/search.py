"""Choose thresholds from what every exit answered on validation data; NumPy only.

A sample leaves at the first exit whose score reaches the exit's threshold. All costs
are multiply-adds as a share of the base's.
"""

import dataclasses
from typing import Any

import numpy as np

_MOST_STEPS = 200  # Of one ascent; few are needed.
_TOLERANCE = 1e-9  # Shares that are equal but for rounding count as equal.


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """What every exit answered, for each of some samples.

    Args:
        scores: Shape `(samples, exits - 1)`: of all exits but the last.
        correct: Shape `(samples, exits)`, 0 or 1.
        reference: Shape `(samples,)`, 0 or 1: whether the base alone was right.
        costs: Shape `(exits,)`: of leaving at each exit, ascending; NaN where not
            known, which `choice.choose` alone takes.
    """

    scores: np.ndarray
    correct: np.ndarray
    reference: np.ndarray
    costs: np.ndarray

    def __len__(self):
        """Return the number of samples."""
        return len(self.scores)

    def part(self, rows: np.ndarray) -> "Outcomes":
        """Return the outcomes of some of the samples."""
        return Outcomes(
            self.scores[rows], self.correct[rows], self.reference[rows], self.costs
        )


@dataclasses.dataclass(frozen=True)
class Points:
    """Ways to set the thresholds, and what each of them gives.

    Args:
        thresholds: Shape `(points, exits - 1)`.
        accuracy: Shape `(points,)`.
        cost: Shape `(points,)`: mean share of the base's multiply-adds.
    """

    thresholds: np.ndarray
    accuracy: np.ndarray
    cost: np.ndarray

    def __len__(self):
        """Return the number of points."""
        return len(self.accuracy)

    def __getitem__(self, rows):
        """Return some of the points."""
        return Points(self.thresholds[rows], self.accuracy[rows], self.cost[rows])


@dataclasses.dataclass(frozen=True)
class Goal:
    """What thresholds are chosen for: give one of the two.

    Args:
        min_accuracy: The cheapest that is at least so accurate.
        max_cost: The most accurate that costs at most so much.
    """

    min_accuracy: float | None = None
    max_cost: float | None = None

    def best(self, accuracy: np.ndarray, cost: np.ndarray) -> int | None:
        """Return the index of the best point, `None` if no point reaches the goal.

        Example:
            >>> Goal(min_accuracy=0.8).best(np.array([0.7, 0.8]), np.array([0.3, 0.5]))
            1
        """
        if self.min_accuracy is not None:
            reached = accuracy >= self.min_accuracy - _TOLERANCE
            order = np.lexsort((-accuracy, cost))
        else:
            limit = np.inf if self.max_cost is None else self.max_cost
            reached = cost <= limit + _TOLERANCE
            order = np.lexsort((cost, -accuracy))
        found = order[reached[order]]
        return int(found[0]) if len(found) else None


def exit_indices(scores: np.ndarray, thresholds: Any) -> np.ndarray:
    """Return the exit of each sample: the first whose score reaches its threshold.

    Args:
        scores: Shape `(samples, exits - 1)`.
        thresholds: Shape `(exits - 1,)`.

    Example:
        >>> exit_indices(np.array([[0.9, 0.1], [0.2, 0.8], [0.2, 0.1]]), [0.5, 0.5])
        array([0, 1, 2])
    """
    passed = scores >= np.asarray(thresholds)
    return np.where(passed.any(axis=1), passed.argmax(axis=1), scores.shape[1])


def evaluate(outcomes: Outcomes, thresholds: Any) -> tuple[float, float]:
    """Return the accuracy and the cost of some thresholds.

    Example:
        >>> scores, correct = np.array([[0.9], [0.1]]), np.array([[1, 1], [0, 1]])
        >>> outcomes = Outcomes(scores, correct, correct[:, 1], np.array([0.5, 1.0]))
        >>> evaluate(outcomes, [0.5])
        (1.0, 0.75)
    """
    exits = exit_indices(outcomes.scores, thresholds)
    correct = outcomes.correct[np.arange(len(exits)), exits]
    cost = _mean(outcomes.costs[exits].sum(), outcomes)
    return float(correct.mean()), float(cost)


def shared_path(outcomes: Outcomes) -> Points:
    """Return all that one threshold for all exits can give, exactly.

    A sample goes on from exit i when the threshold rises above the largest of its
    scores so far. Those values, sorted, are all the places where anything changes; the
    sums of the changes before each place are the counts there.

    Returns:
        Points by rising threshold, from minus infinity to infinity, one for each
        interval in which all samples leave where they do.

    Example:
        >>> scores, correct = np.array([[0.9], [0.1]]), np.array([[1, 1], [0, 1]])
        >>> outcomes = Outcomes(scores, correct, correct[:, 1], np.array([0.5, 1.0]))
        >>> shared_path(outcomes).thresholds.tolist()
        [[-inf], [0.5], [inf]]
        >>> shared_path(outcomes).accuracy.tolist()
        [0.5, 1.0, 1.0]
    """
    places = np.maximum.accumulate(outcomes.scores, axis=1).ravel()
    gained = np.diff(outcomes.correct.astype("int64"), axis=1).ravel()
    spent = np.broadcast_to(np.diff(outcomes.costs), outcomes.scores.shape).ravel()
    order = np.argsort(places, kind="stable")
    values, first = np.unique(places[order], return_index=True)
    correct = _sums_before(gained[order], first) + outcomes.correct[:, 0].sum()
    cost = _sums_before(spent[order], first) + outcomes.costs[0] * len(outcomes)
    thresholds = np.repeat(between(values)[:, None], outcomes.scores.shape[1], axis=1)
    return Points(thresholds, correct / len(outcomes), _mean(cost, outcomes))


def between(values: np.ndarray) -> np.ndarray:
    """Return thresholds below, between and above distinct ascending scores.

    In the middle between two: scores that another batch size or backend rounds
    otherwise then stay on their side. Between adjacent floats there is no middle: there
    it is the upper one, at which the lower one does not exit.

    Example:
        >>> between(np.array([0.25, 0.75])).tolist()
        [-inf, 0.5, inf]
        >>> bool(between(np.array([1.0, np.nextafter(1.0, 2.0)]))[1] > 1.0)
        True
    """
    low, high = values[:-1], values[1:]
    middle = low / 2 + high / 2  # Their sum might not be finite.
    middle = np.where(middle > low, middle, high)
    return np.concatenate([[-np.inf], middle, [np.inf]])


def pareto(points: Points) -> Points:
    """Return the points that no other point beats, by rising cost.

    Example:
        >>> every = Points(np.zeros((3, 1)), np.array([0.5, 0.4, 0.9]), np.arange(3.0))
        >>> pareto(every).accuracy.tolist()
        [0.5, 0.9]
    """
    points = points[np.lexsort((-points.accuracy, points.cost))]
    best_before = np.concatenate(
        [[-np.inf], np.maximum.accumulate(points.accuracy)[:-1]]
    )
    return points[points.accuracy > best_before]


def per_exit_points(
    outcomes: Outcomes, goal: Goal | None = None, *, starts: int = 32
) -> Points:
    """Return points with thresholds of their own for every exit.

    What is searched: from points of the shared path's Pareto front, one threshold at
    a time is set to the best of all values it can have while the others stay, exactly,
    until none of them improves. For a goal the best point found goes on so under the
    goal itself. The result is never worse than the shared path, and the best possible
    in each single threshold, but not always in all together: those are too many.

    Args:
        outcomes: What the exits answered.
        goal: What to choose for; without one, the whole front is searched.
        starts: From how many points of the shared front to start, at most.
    """
    shared = pareto(shared_path(outcomes))
    chosen = np.unique(np.linspace(0, len(shared) - 1, starts).round().astype(int))
    found = [shared]
    prices = _prices(shared, len(chosen))
    for start, price in zip(shared[chosen].thresholds, prices, strict=True):
        found.append(_ascend(outcomes, start, Price(price)))
    points = _joined(found)
    best = goal.best(points.accuracy, points.cost) if goal else None
    if goal is None or best is None:
        return pareto(points)
    return pareto(_joined([points, _ascend(outcomes, points.thresholds[best], goal)]))


@dataclasses.dataclass(frozen=True)
class Price:
    """A goal without limits: accuracy less `price` times the cost."""

    price: float

    def best(self, accuracy: np.ndarray, cost: np.ndarray) -> int:
        """Return the index of the best point."""
        return int(np.argmax(accuracy - self.price * cost))


def _prices(front, count):
    """Return prices for points along a front: its slopes, steep to flat."""
    if len(front) == 1:
        return np.ones(count)
    slopes = np.diff(front.accuracy) / np.maximum(np.diff(front.cost), _TOLERANCE)
    return np.quantile(slopes, np.linspace(1, 0, count))


def _ascend(outcomes, thresholds, goal):
    """Improve one threshold after another until none improves."""
    visited = [_point(outcomes, thresholds)]
    unchanged, i = 0, 0
    while unchanged < len(thresholds) and len(visited) < _MOST_STEPS:
        here = visited[-1]
        # Where we are comes first: of points that are equally good, the first is best.
        options = _joined([here, _one_threshold(outcomes, here.thresholds[0], i)])
        best = goal.best(options.accuracy, options.cost)
        if best:
            visited.append(options[[best]])
        unchanged = 0 if best else unchanged + 1
        i = (i + 1) % len(thresholds)
    return _joined(visited)


def _one_threshold(outcomes, thresholds, i):
    """Return all that one exit's threshold can give while the others stay."""
    without = np.array(thresholds)
    without[i] = np.inf
    exits = exit_indices(
        outcomes.scores, without
    )  # Where samples go if none leaves at i.
    rows = np.arange(len(exits))
    correct = outcomes.correct[rows, exits].astype("int64")
    comes = np.flatnonzero(exits > i)
    order = comes[np.argsort(outcomes.scores[comes, i], kind="stable")]
    values, first = np.unique(outcomes.scores[order, i], return_index=True)
    lost = correct[order] - outcomes.correct[order, i]
    spent = outcomes.costs[exits[order]] - outcomes.costs[i]
    # All that come leave at the lowest threshold, none at the highest.
    gained = _sums_before(lost, first) + correct.sum() - lost.sum()
    cost = _sums_before(spent, first) + outcomes.costs[exits].sum() - spent.sum()
    options = np.repeat(without[None], len(values) + 1, axis=0)
    options[:, i] = between(values) if len(values) else thresholds[i]
    return Points(options, gained / len(outcomes), _mean(cost, outcomes))


def _point(outcomes, thresholds):
    accuracy, cost = evaluate(outcomes, thresholds)
    return Points(np.array([thresholds]), np.array([accuracy]), np.array([cost]))


def _joined(points):
    return Points(
        *(
            np.concatenate([getattr(each, field.name) for each in points])
            for field in dataclasses.fields(Points)
        )
    )


def _mean(total, outcomes):
    # Rounded, so that sums in another order are not taken for better ones.
    return np.round(total / len(outcomes), 12)


def _sums_before(changes, first):
    """Return the sum of the changes before each place, and of all of them."""
    sums = np.concatenate([[0], np.cumsum(changes)])
    return sums[np.append(first, len(changes))]
