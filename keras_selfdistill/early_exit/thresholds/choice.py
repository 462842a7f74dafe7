"""Choose thresholds for a goal: search, and bound the accuracy drop."""

import dataclasses
import math

import numpy as np
from absl import logging

from keras_selfdistill.early_exit.thresholds.goal import ThresholdGoal
from keras_selfdistill.early_exit.thresholds.guarantee import (
    certified,
    drops,
    thresholds_from_safest,
    upper_bound,
)
from keras_selfdistill.early_exit.thresholds.outcomes import Outcomes
from keras_selfdistill.early_exit.thresholds.sample_size import (
    check_samples,
    warn_of_few_samples,
)
from keras_selfdistill.early_exit.thresholds.search import (
    Goal,
    Points,
    evaluate,
    pareto,
    per_exit_points,
    shared_path,
)


@dataclasses.dataclass(frozen=True)
class Choice:
    """Chosen thresholds, with their accuracy and cost on the calibration samples.

    With a guarantee, accuracy and cost are those of the held-out half.

    Args:
        thresholds: Thresholds of all exits but the last.
        accuracy: Fraction of correct predictions.
        base_accuracy: Accuracy of the base.
        macs_ratio: Mean multiply-adds as a fraction of the base's; NaN if unknown.
        samples: Number of samples.
        guarantee: Confidence level of the bound; `None` without a bound.
        accuracy_drop_bound: Upper bound, at this confidence level, of the mean accuracy
            drop on new samples of the same distribution.
        latency_ms: Mean of the latencies of the samples' exits, in milliseconds;
            `None` if they were not known.
    """

    thresholds: tuple[float, ...]
    accuracy: float
    base_accuracy: float
    macs_ratio: float
    samples: int
    guarantee: float | None = None
    accuracy_drop_bound: float | None = None
    latency_ms: float | None = None


def choose(
    outcomes: Outcomes, goal: ThresholdGoal, *, last_is_base: bool = True
) -> Choice:
    """Return the best thresholds for a goal.

    Args:
        outcomes: Outcomes on validation data.
        goal: Goal of the calibration.
        last_is_base: Whether the last resort is the base, so that the accuracy of
            samples that reach the last exit cannot drop.

    Raises:
        ValueError: No thresholds reach the goal, or there are too few samples.

    Example:
        >>> scores = np.tile([[0.9], [0.1]], (200, 1))
        >>> correct = np.tile([[1, 1], [0, 1]], (200, 1))
        >>> outcomes = Outcomes(scores, correct, correct[:, 1], np.array([0.5, 1.0]))
        >>> choose(outcomes, ThresholdGoal(max_accuracy_drop=0.0)).thresholds
        (0.5,)
    """
    by_latency = goal.latency_budget_ms is not None
    priced = outcomes.by_latency() if by_latency else outcomes
    if np.isnan(priced.costs).any():
        return _choose_by_order(outcomes, goal, last_is_base)
    if goal.guarantee is None:
        check_samples(len(outcomes))
        points = points_of(priced, goal.goal(priced), per_exit=goal.per_exit)
        best = _best(points, goal, priced)
        choice = _choice(outcomes, points.thresholds[best])
        warn_of_few_samples(choice.accuracy, choice.samples)
        return choice
    if len(outcomes) < 2:
        raise ValueError(
            "A guarantee needs samples to search on and others to test on. Received: "
            f"{len(outcomes)} samples. Expected: some thousands."
        )
    search, test = halves(len(outcomes), goal.seed)
    thresholds, bound = _guaranteed(
        priced.part(search), priced.part(test), goal, goal.guarantee, last_is_base
    )
    return _choice(outcomes.part(test), thresholds, goal.guarantee, bound)


def halves(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to search on and those to test a guarantee on.

    Args:
        samples: Number of samples.
        seed: Seed of the split.

    Example:
        >>> [len(rows) for rows in halves(5, seed=0)]
        [3, 2]
    """
    order = np.random.default_rng(seed).permutation(samples)
    search, test = np.array_split(order, 2)
    return search, test


def check_untouched(outcomes: Outcomes, goal: ThresholdGoal) -> None:
    """Check that a guarantee is tested on samples that nothing was fitted on.

    Args:
        outcomes: Outcomes on validation data.
        goal: Goal of the calibration.

    Raises:
        ValueError: Temperatures were fitted on some of these samples.
    """
    if goal.guarantee is None or outcomes.fitted is None:
        return
    _, test = halves(len(outcomes), goal.seed)
    if not outcomes.fitted[test].any():
        return
    fitted = int(outcomes.fitted.sum())
    same_seed = (
        "" if fitted == len(outcomes) else "the seed of the call that fitted them, or "
    )
    raise ValueError(
        "A guarantee is tested on samples that nothing was fitted on. Received: "
        f"guarantee={goal.guarantee} and seed={goal.seed} without x, after "
        f"temperatures were fitted on {fitted} of the {len(outcomes)} samples of the "
        f"last call. Expected: {same_seed}calibrate(x, y, ...) with other samples, or "
        "with temperature=True, which fits them again on one half."
    )


def _choose_by_order(
    outcomes: Outcomes, goal: ThresholdGoal, last_is_base: bool
) -> Choice:
    """Choose shared thresholds if only the order of the costs is known.

    Deeper exits cost more, so lower thresholds cost less, whatever the costs are: the
    thresholds of least cost do not depend on them.
    """
    if goal.needs_costs:
        raise ValueError(
            "The choice depends on costs, and those of some exits are unknown. "
            f"Received: {goal}. Expected: max_accuracy_drop= or target_accuracy=, with "
            "thresholds that all exits share."
        )
    ranks = np.arange(1, len(outcomes.costs) + 1) / len(outcomes.costs)
    ranked = dataclasses.replace(outcomes, costs=ranks)
    choice = choose(ranked, goal, last_is_base=last_is_base)
    return dataclasses.replace(choice, macs_ratio=math.nan)


def points_of(
    outcomes: Outcomes, goal: Goal | None = None, *, per_exit: bool = False
) -> Points:
    """Return the Pareto front of shared thresholds, or of thresholds per exit."""
    return (
        per_exit_points(outcomes, goal) if per_exit else pareto(shared_path(outcomes))
    )


def _guaranteed(
    search: Outcomes,
    test: Outcomes,
    goal: ThresholdGoal,
    confidence: float,
    last_is_base: bool,
) -> tuple[np.ndarray, float]:
    """Return thresholds, and a guaranteed bound of their accuracy drop."""
    if goal.max_accuracy_drop is None:
        points = points_of(search)
        thresholds = points.thresholds[_best(points, goal, search)]
        lost = drops(test, thresholds[None])[:, 0]
        return thresholds, upper_bound(lost, confidence)
    path = thresholds_from_safest(shared_path(search))
    found = certified(test, path, goal.max_accuracy_drop, confidence)
    if found is None and not last_is_base:
        raise ValueError(
            "Nothing can be guaranteed: the drop may be too large even if the ensemble "
            f"predicts all samples. Received: max_accuracy_drop="
            f"{goal.max_accuracy_drop}, guarantee={confidence} and {len(test)} "
            "samples to test on. Calibrate on more samples, or pass "
            "last_resort='final'."
        )
    if not found:
        logging.warning(
            "No early exit is guaranteed to drop at most %s on %d samples to test on: "
            "all samples will use the last exit. Calibrate on more samples.",
            goal.max_accuracy_drop,
            len(test),
        )
    return path.thresholds[found or 0], goal.max_accuracy_drop


def _best(points: Points, goal: ThresholdGoal, outcomes: Outcomes) -> int:
    """Return the index of the best point, or raise an error without one."""
    search_goal = goal.goal(outcomes)
    best = search_goal.best(points.accuracy, points.cost)
    if best is not None:
        return best
    if search_goal.max_cost is not None:
        name = "macs_budget" if goal.latency_budget_ms is None else "latency_budget_ms"
        received = f"{name}={search_goal.max_cost:.4g}"
        reached = f"at least {points.cost.min():.4g}, the cost of the first exit"
    else:
        received = f"an accuracy of at least {search_goal.min_accuracy:.4f}"
        reached = (
            f"at most {points.accuracy.max():.4f} on these {len(outcomes)} samples"
        )
    raise ValueError(
        f"No thresholds reach the goal. Received: {received}. Expected: {reached}."
    )


def _choice(
    outcomes: Outcomes,
    thresholds: np.ndarray,
    guarantee: float | None = None,
    bound: float | None = None,
) -> Choice:
    accuracy, cost = evaluate(outcomes, thresholds)
    latency_ms = None
    if outcomes.latencies is not None:
        _, latency_ms = evaluate(outcomes.by_latency(), thresholds)
    return Choice(
        thresholds=tuple(float(value) for value in thresholds),
        accuracy=accuracy,
        base_accuracy=float(outcomes.reference.mean()),
        macs_ratio=cost,
        samples=len(outcomes),
        guarantee=guarantee,
        accuracy_drop_bound=bound,
        latency_ms=latency_ms,
    )
