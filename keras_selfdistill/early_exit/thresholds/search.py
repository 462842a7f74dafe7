"""Search thresholds on the outcomes of validation samples; NumPy only.

A sample exits at the first exit whose score reaches the threshold. Costs are
multiply-adds as a fraction of the base's, or milliseconds.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from keras_selfdistill.early_exit.thresholds.outcomes import Outcomes

_MOST_STEPS = 200  # Limit of one coordinate ascent; few steps are needed.
_TOLERANCE = 1e-9  # Values that are equal up to rounding count as equal.


@dataclasses.dataclass(frozen=True)
class Points:
    """Sets of thresholds, with the accuracy and the cost of each.

    Args:
        thresholds: Thresholds of shape `(points, exits - 1)`.
        accuracy: Accuracy of shape `(points,)`.
        cost: Mean cost of a sample, shape `(points,)`.
    """

    thresholds: np.ndarray
    accuracy: np.ndarray
    cost: np.ndarray

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.accuracy)

    def __getitem__(self, rows: slice | np.ndarray | list[int]) -> "Points":
        """Return some of the points."""
        return Points(self.thresholds[rows], self.accuracy[rows], self.cost[rows])


@dataclasses.dataclass(frozen=True)
class Goal:
    """Goal of a search; one of the two fields is given.

    Args:
        min_accuracy: Smallest accuracy, reached with the least cost.
        max_cost: Largest cost, with the highest accuracy.
    """

    min_accuracy: float | None = None
    max_cost: float | None = None

    def best(self, accuracy: np.ndarray, cost: np.ndarray) -> int | None:
        """Return the index of the best point; `None` if no point reaches the goal.

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


def exit_indices(scores: np.ndarray, thresholds: ArrayLike) -> np.ndarray:
    """Return the index of each sample's exit, shape `(samples,)`.

    Args:
        scores: Scores of shape `(samples, exits - 1)`.
        thresholds: Thresholds of shape `(exits - 1,)`.

    Example:
        >>> exit_indices(np.array([[0.9, 0.1], [0.2, 0.8], [0.2, 0.1]]), [0.5, 0.5])
        array([0, 1, 2])
    """
    passed = scores >= np.asarray(thresholds)
    return np.where(passed.any(axis=1), passed.argmax(axis=1), scores.shape[1])


def evaluate(outcomes: Outcomes, thresholds: ArrayLike) -> tuple[float, float]:
    """Return the accuracy and the mean cost of some thresholds.

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
    """Return all points that one threshold shared by all exits can reach.

    A sample passes exit i when the threshold rises above the largest of its scores so
    far. The exits of samples change only at these values; cumulative sums of the
    changes give accuracy and cost between them.

    Returns:
        Points by ascending threshold, from minus infinity to infinity, one for each
        interval in which no sample changes its exit.

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

    Thresholds are midpoints, so that scores which another batch size or backend rounds
    differently stay on their side. Adjacent floats have no midpoint: there the
    threshold is the upper score, at which the lower one does not exit.

    Example:
        >>> between(np.array([0.25, 0.75])).tolist()
        [-inf, 0.5, inf]
        >>> bool(between(np.array([1.0, np.nextafter(1.0, 2.0)]))[1] > 1.0)
        True
    """
    low, high = values[:-1], values[1:]
    middle = low / 2 + high / 2  # `low + high` might overflow.
    middle = np.where(middle > low, middle, high)
    return np.concatenate([[-np.inf], middle, [np.inf]])


def pareto(points: Points) -> Points:
    """Return the Pareto front of points, by ascending cost.

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
    """Return the Pareto front of points with a separate threshold for every exit.

    Coordinate ascent from points of the Pareto front of shared thresholds: one
    threshold at a time is set to the best of all its values, until none improves. For
    a goal, the ascent then continues from the best point under the goal itself. The
    result is never worse than that of shared thresholds, and optimal in each single
    threshold, but not always the best of all combinations.

    Args:
        outcomes: Outcomes of the samples.
        goal: Goal of the search; by default the whole front is searched.
        starts: Largest number of starting points.
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
    """Goal without limits: maximise accuracy minus `price` times the cost."""

    price: float

    def best(self, accuracy: np.ndarray, cost: np.ndarray) -> int:
        """Return the index of the best point."""
        return int(np.argmax(accuracy - self.price * cost))


def _prices(front: Points, count: int) -> np.ndarray:
    """Return prices for points along a front, which are its slopes, steep to flat."""
    if len(front) == 1:
        return np.ones(count)
    slopes = np.diff(front.accuracy) / np.maximum(np.diff(front.cost), _TOLERANCE)
    return np.quantile(slopes, np.linspace(1, 0, count))


def _ascend(outcomes: Outcomes, thresholds: np.ndarray, goal: "Goal | Price") -> Points:
    """Return the points of a coordinate ascent, until no threshold improves."""
    visited = [_point(outcomes, thresholds)]
    unchanged, i = 0, 0
    while unchanged < len(thresholds) and len(visited) < _MOST_STEPS:
        here = visited[-1]
        # The current point comes first, because the first of equal points is the best.
        options = _joined([here, _one_threshold(outcomes, here.thresholds[0], i)])
        best = goal.best(options.accuracy, options.cost)
        if best:
            visited.append(options[[best]])
        unchanged = 0 if best else unchanged + 1
        i = (i + 1) % len(thresholds)
    return _joined(visited)


def _one_threshold(outcomes: Outcomes, thresholds: np.ndarray, i: int) -> Points:
    """Return all points that the threshold of exit i can reach, with fixed others."""
    without = np.array(thresholds)
    without[i] = np.inf
    exits = exit_indices(outcomes.scores, without)  # If no sample exits at i.
    rows = np.arange(len(exits))
    correct = outcomes.correct[rows, exits].astype("int64")
    reach = np.flatnonzero(exits > i)
    order = reach[np.argsort(outcomes.scores[reach, i], kind="stable")]
    values, first = np.unique(outcomes.scores[order, i], return_index=True)
    lost = correct[order] - outcomes.correct[order, i]
    spent = outcomes.costs[exits[order]] - outcomes.costs[i]
    # All samples that reach i exit at the lowest threshold, none at the highest.
    gained = _sums_before(lost, first) + correct.sum() - lost.sum()
    cost = _sums_before(spent, first) + outcomes.costs[exits].sum() - spent.sum()
    options = np.repeat(without[None], len(values) + 1, axis=0)
    options[:, i] = between(values) if len(values) else thresholds[i]
    return Points(options, gained / len(outcomes), _mean(cost, outcomes))


def _point(outcomes: Outcomes, thresholds: np.ndarray) -> Points:
    accuracy, cost = evaluate(outcomes, thresholds)
    return Points(np.array([thresholds]), np.array([accuracy]), np.array([cost]))


def _joined(points: Sequence[Points]) -> Points:
    return Points(
        *(
            np.concatenate([getattr(each, field.name) for each in points])
            for field in dataclasses.fields(Points)
        )
    )


def _mean(total: np.ndarray, outcomes: Outcomes) -> np.ndarray:
    # Rounded, so that sums in another order compare as equal.
    return np.round(total / len(outcomes), 12)


def _sums_before(changes: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return the sum of the changes before each place, and of all of them."""
    sums = np.concatenate([[0], np.cumsum(changes)])
    return sums[np.append(first, len(changes))]
