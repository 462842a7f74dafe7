"""The goal of a calibration, checked."""

import dataclasses

from keras_selfdistill.early_exit.thresholds.outcomes import Outcomes
from keras_selfdistill.early_exit.thresholds.search import Goal
from keras_selfdistill.utils.number_checks import is_number

_GOALS = (
    "max_accuracy_drop",
    "target_accuracy",
    "macs_budget",
    "latency_budget_ms",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThresholdGoal:
    """Goal of a calibration; exactly one of the first four fields is given.

    Args:
        max_accuracy_drop: Largest accuracy drop against the base, 0.01 for one
            percentage point.
        target_accuracy: Smallest accuracy.
        macs_budget: Largest mean cost, in multiply-adds as a fraction of the base's.
        latency_budget_ms: Largest mean cost, in milliseconds.
        guarantee: Confidence level, such as 0.95, of a bound on the accuracy drop.
        per_exit: Whether each exit has its own threshold.
        seed: Seed of the split of the samples for a guarantee.
    """

    max_accuracy_drop: float | None = None
    target_accuracy: float | None = None
    macs_budget: float | None = None
    latency_budget_ms: float | None = None
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
            or (name == "latency_budget_ms" and value == 0)
        ):
            raise ValueError(
                f"`{name}` is out of range. Received: {name}={value!r}. Expected: "
                f"{_expected(name)}."
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
        """Whether the choice depends on multiply-adds, not only on their order."""
        if self.latency_budget_ms is not None:
            return False
        return self.macs_budget is not None or self.per_exit

    def goal(self, outcomes: Outcomes) -> Goal:
        """Return the goal of the search on some samples.

        Args:
            outcomes: Outcomes whose base accuracy a drop refers to.
        """
        if self.macs_budget is not None:
            return Goal(max_cost=self.macs_budget)
        if self.latency_budget_ms is not None:
            return Goal(max_cost=self.latency_budget_ms)
        if self.target_accuracy is not None:
            return Goal(min_accuracy=self.target_accuracy)
        return Goal(min_accuracy=outcomes.reference.mean() - self.max_accuracy_drop)


def _expected(name: str) -> str:
    if name == "latency_budget_ms":
        return "milliseconds above 0, such as 5"
    example = "0.01" if name == "max_accuracy_drop" else "0.9"
    return f"a fraction, such as {example}; 0.01 is one per cent"
