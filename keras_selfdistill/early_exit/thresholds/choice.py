"""Choose thresholds for a goal: check the goal, search, and bound the accuracy drop."""

import dataclasses
import math

import numpy as np
from absl import logging

from keras_selfdistill.early_exit.thresholds.guarantee import (
    certified,
    drops,
    thresholds_from_safest,
    upper_bound,
)
from keras_selfdistill.early_exit.thresholds.sample_size import (
    check_samples,
    warn_of_few_samples,
)
from keras_selfdistill.early_exit.thresholds.search import (
    Goal,
    Outcomes,
    Points,
    evaluate,
    pareto,
    per_exit_points,
    shared_path,
)
from keras_selfdistill.utils.number_checks import is_number

_GOALS = ("max_accuracy_drop", "target_accuracy", "macs_budget")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThresholdGoal:
    """Goal of a calibration; exactly one of the first three fields is given.

    Args:
        max_accuracy_drop: Largest accuracy drop against the base, 0.01 for one
            percentage point.
        target_accuracy: Smallest accuracy.
        macs_budget: Largest mean cost, in multiply-adds as a fraction of the base's.
        guarantee: Confidence level, such as 0.95, of a bound on the accuracy drop.
        per_exit: Whether each exit has its own threshold.
        seed: Seed of the split of the samples for a guarantee.
    """

    max_accuracy_drop: float | None = None
    target_accuracy: float | None = None
    macs_budget: float | None = None
    guarantee: float | None = None
    per_exit: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the fields."""
        given = {name: getattr(self, name) for name in _GOALS}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            raise ValueError(
                "Calibration needs exactly one goal. Received: "
                f"{', '.join(f'{n}={v!r}' for n, v in given.items()) or 'none'}. "
                f"Expected one of {', '.join(f'{name}=' for name in _GOALS)}, e.g. "
                "max_accuracy_drop=0.01."
            )
        ((name, value),) = given.items()
        if (
            not is_number(value)
            or not value >= 0
            or (name == "target_accuracy" and value > 1)
            or (name == "max_accuracy_drop" and value >= 1)  # Any threshold would do.
        ):
            example = "0.01" if name == "max_accuracy_drop" else "0.9"
            raise ValueError(
                f"`{name}` is out of range. Received: {name}={value!r}. Expected: a "
                f"fraction, such as {example}; 0.01 is one per cent."
            )
        if self.guarantee is None:
            return
        if not is_number(self.guarantee) or not 0 < self.guarantee < 1:
            raise ValueError(
                f"`guarantee` is out of range. Received: guarantee={self.guarantee!r}. "
                "Expected: a confidence between 0 and 1, such as 0.95."
            )
        if self.per_exit:
            raise ValueError(
                "A guarantee needs thresholds that all exits share. Received: "
                f"guarantee={self.guarantee!r} with per_exit=True. Expected: only one "
                "of the two."
            )

    @property
    def needs_costs(self) -> bool:
        """Whether the choice depends on the costs, not only on their order."""
        return self.macs_budget is not None or self.per_exit

    def goal(self, outcomes: Outcomes) -> Goal:
        """Return the goal of the search on some samples.

        Args:
            outcomes: Outcomes whose base accuracy a drop refers to.
        """
        if self.macs_budget is not None:
            return Goal(max_cost=self.macs_budget)
        if self.target_accuracy is not None:
            return Goal(min_accuracy=self.target_accuracy)
        return Goal(min_accuracy=outcomes.reference.mean() - self.max_accuracy_drop)


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
    """

    thresholds: tuple[float, ...]
    accuracy: float
    base_accuracy: float
    macs_ratio: float
    samples: int
    guarantee: float | None = None
    accuracy_drop_bound: float | None = None


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
    if np.isnan(outcomes.costs).any():
        return _choose_by_order(outcomes, goal, last_is_base)
    if goal.guarantee is None:
        check_samples(len(outcomes))
        search_goal = goal.goal(outcomes)
        points = points_of(outcomes, search_goal, per_exit=goal.per_exit)
        best = _best(points, search_goal, outcomes)
        choice = _choice(outcomes, points.thresholds[best])
        warn_of_few_samples(choice.accuracy, choice.samples)
        return choice
    if len(outcomes) < 2:
        raise ValueError(
            "A guarantee needs samples to search on and others to test on. Received: "
            f"{len(outcomes)} samples. Expected: some thousands."
        )
    order = np.random.default_rng(goal.seed).permutation(len(outcomes))
    search, test = np.array_split(order, 2)
    thresholds, bound = _guaranteed(
        outcomes.part(search), outcomes.part(test), goal, goal.guarantee, last_is_base
    )
    return _choice(outcomes.part(test), thresholds, goal.guarantee, bound)


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
        search_goal = goal.goal(search)
        points = points_of(search)
        thresholds = points.thresholds[_best(points, search_goal, search)]
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


def _best(points: Points, goal: Goal, outcomes: Outcomes) -> int:
    """Return the index of the best point, or raise an error without one."""
    best = goal.best(points.accuracy, points.cost)
    if best is not None:
        return best
    if goal.max_cost is not None:
        received = f"macs_budget={goal.max_cost:.4g}"
        reached = f"at least {points.cost.min():.4g}, the cost of the first exit"
    else:
        received = f"an accuracy of at least {goal.min_accuracy:.4f}"
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
    return Choice(
        thresholds=tuple(float(value) for value in thresholds),
        accuracy=accuracy,
        base_accuracy=float(outcomes.reference.mean()),
        macs_ratio=cost,
        samples=len(outcomes),
        guarantee=guarantee,
        accuracy_drop_bound=bound,
    )
