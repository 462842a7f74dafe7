"""The thresholds of an `EarlyExit`: set by hand, or chosen on validation data."""

import math
from collections.abc import Mapping, Sequence
from typing import Self, TypeAlias

import numpy as np

from keras_selfdistill.early_exit.cascade import Cascade
from keras_selfdistill.early_exit.scoring import Scorer
from keras_selfdistill.early_exit.thresholds.choice import (
    Choice,
    ThresholdGoal,
    choose,
    points_of,
)
from keras_selfdistill.early_exit.thresholds.frontier import (
    ExitShares,
    Frontier,
    exit_shares,
)
from keras_selfdistill.early_exit.thresholds.search import Outcomes, evaluate
from keras_selfdistill.training.distiller import SelfDistiller
from keras_selfdistill.utils.table import Table, elided
from keras_selfdistill.utils.type_aliases import Data, Labels

Thresholds: TypeAlias = float | Sequence[float] | Mapping[str, float]
"""One threshold for all exits, or one for each exit but the last."""


class Calibration:
    """The part of an `EarlyExit` that stores and chooses the thresholds."""

    def __init__(
        self,
        model: SelfDistiller,
        scorer: Scorer,
        cascade: Cascade,
        thresholds: Thresholds | None,
    ):
        self._model = model
        self._scorer = scorer
        self._cascade = cascade
        self._outcomes: Outcomes | None = None
        self._thresholds: tuple[float, ...] | None = None
        self.calibration: Choice | None = None
        if thresholds is not None:
            self.thresholds = thresholds

    @property
    def exit_names(self) -> list[str]:
        """Names of the exits, shallow to deep; the last is the last resort."""
        return [*self._model.exit_names[:-1], self._scorer.last_resort]

    @property
    def thresholds(self) -> dict[str, float] | None:
        """Thresholds of all exits but the last, by name; `None` before calibration.

        Set them with one number, a list, or a dict by name, which resets
        `calibration` to `None`.
        """
        if self._thresholds is None:
            return None
        return dict(zip(self.exit_names, self._thresholds, strict=False))

    @thresholds.setter
    def thresholds(self, thresholds: Thresholds) -> None:
        self._thresholds = _checked_thresholds(thresholds, self.exit_names[:-1])
        self.calibration = None

    def calibrate(
        self,
        x: Data = None,
        y: Labels = None,
        *,
        max_accuracy_drop: float | None = None,
        target_accuracy: float | None = None,
        macs_budget: float | None = None,
        guarantee: float | None = None,
        per_exit: bool = False,
        batch_size: int = 32,
        seed: int = 0,
    ) -> Self:
        """Choose the thresholds on validation data, in one pass over the data.

        The search over one threshold shared by all exits is exhaustive. With
        `per_exit`, coordinate ascent then improves one threshold at a time, with an
        exact search over its values. The result is never worse than that of shared
        thresholds, but not always the best of all combinations.

        With a guarantee, the samples are split into two halves. Thresholds are searched
        on the first. On the second, `max_accuracy_drop` is tested for lower and lower
        thresholds until one fails (fixed-sequence testing); for the other goals the
        drop is bounded. The bound holds for any distribution, if the validation data
        and later samples are independent draws from the same one.

        Args:
            x: Samples, as `predict` takes them. By default the outcomes of the last
                call are used again.
            y: Class indices of shape `(samples,)`, or one-hot labels of shape
                `(samples, classes)`. Omit them for a dataset of (inputs, labels).
                Sample weights are ignored.
            max_accuracy_drop: Goal: the least cost with an accuracy at most this much
                below the final exit's, 0.01 for one percentage point.
            target_accuracy: Goal: the least cost with at least this accuracy.
            macs_budget: Goal: the highest accuracy with at most this mean cost, in
                multiply-adds as a fraction of the base's.
            guarantee: Confidence level, such as 0.95, of a bound on the accuracy drop.
            per_exit: Whether each exit gets its own threshold.
            batch_size: Number of samples a section processes at once.
            seed: Seed of the split into halves.

        Returns:
            This object, with the result in `calibration`.

        Raises:
            ValueError: The number of goals is not one, no thresholds reach the goal,
                or the goal needs costs that are missing; the data does not fit the
                base; or there are fewer than 12 samples and no guarantee.
        """
        goal = ThresholdGoal(
            max_accuracy_drop=max_accuracy_drop,
            target_accuracy=target_accuracy,
            macs_budget=macs_budget,
            guarantee=guarantee,
            per_exit=per_exit,
            seed=seed,
        )
        if goal.needs_costs:
            argument = "per_exit=True" if per_exit else f"macs_budget={macs_budget}"
            self._check_costs(argument)
        if x is not None:
            self._outcomes = self._cascade.observe(x, y, batch_size)
        outcomes = self._calibrated("Pass x and y.")
        last_is_base = self._scorer.last_resort == "final"
        choice = choose(outcomes, goal, last_is_base=last_is_base)
        self.thresholds = choice.thresholds
        self.calibration = choice
        return self

    def frontier(self, *, per_exit: bool = False) -> Frontier:
        """Return the Pareto front of thresholds on the calibration data.

        Args:
            per_exit: Whether each exit has its own threshold, searched as in
                `calibrate`.

        Raises:
            ValueError: `calibrate` was not called, or costs are missing.
        """
        self._check_costs("frontier()")
        outcomes = self._calibrated("Call calibrate(x, y, ...) first.")
        points = points_of(outcomes, per_exit=per_exit)
        chosen = None
        if self._thresholds is not None:
            accuracy, cost = evaluate(outcomes, self._thresholds)
            chosen = cost, accuracy
        return Frontier(
            exit_names=tuple(self.exit_names[:-1]),
            thresholds=points.thresholds,
            accuracy=points.accuracy,
            macs_ratio=points.cost,
            base_accuracy=float(outcomes.reference.mean()),
            chosen=chosen,
        )

    def exit_shares(self, points: int = 201) -> ExitShares:
        """Return the fraction of calibration samples per exit, by shared threshold.

        Args:
            points: Number of thresholds, evenly spaced from the smallest score to the
                largest.

        Raises:
            ValueError: `calibrate` was not called.
        """
        outcomes = self._calibrated("Call calibrate(x, y, ...) first.")
        return exit_shares(outcomes, self.exit_names, self._thresholds, points)

    def __repr__(self) -> str:
        """Return the base, the criterion and the threshold of each exit."""
        rows = self._rows()
        exits = elided(f"{name} {limit}".rstrip() for name, limit, _ in rows)
        return f"<EarlyExit of {self._described()}: {exits}>"

    def _repr_html_(self) -> str:
        table = Table(
            ["exit", "threshold", "multiply-adds of the base's"], self._rows()
        )
        return table.html(f"EarlyExit of {self._described()}")

    def _described(self) -> str:
        return f"{self._model.base.name}: {self._scorer.criterion}"

    def _rows(self) -> list[list[str]]:
        """Return name, threshold and cost of each exit, as text."""
        limits = [_condition(limit) for limit in self._thresholds or ()]
        limits = limits or ["not calibrated"] * (len(self.exit_names) - 1)
        costs = ["?" if math.isnan(c) else f"{c:.1%}" for c in self._cascade.costs]
        return list(map(list, zip(self.exit_names, [*limits, ""], costs, strict=True)))

    def _limits(self, method: str) -> tuple[float, ...]:
        """Return the thresholds; raise an error for a call of a method without any."""
        if self._thresholds is None:
            raise ValueError(
                f"There are no thresholds yet. Received: a call of {method}. Call "
                "calibrate(x, y, max_accuracy_drop=0.01) first, or pass "
                "thresholds=0.9 to EarlyExit."
            )
        return self._thresholds

    def _missing_costs(self) -> str:
        """Return why costs are missing, and what to do."""
        reason = (
            "The cost of exits is not defined, because the base has no multiply-adds "
            "of which it could be a fraction. Choose "
        )
        if self._cascade.unknown:
            reason = (
                "The cost of exits is unknown, because the multiply-adds of some "
                f"layers are: {', '.join(self._cascade.unknown)}. Register them with "
                "keras_selfdistill.register_macs before creating EarlyExit, or choose "
            )
        return (
            f"{reason}an exit by its latency: keras_selfdistill.pick_exit(model, "
            "max_latency_ms=..., sample=x[:1])."
        )

    def _check_costs(self, argument: str) -> None:
        if self._cascade.lacks_costs:
            raise ValueError(
                f"{self._missing_costs()} Received: {argument}, which needs costs. "
                "Expected: max_accuracy_drop= or target_accuracy=, with thresholds "
                "that all exits share."
            )

    def _calibrated(self, hint: str) -> Outcomes:
        if self._outcomes is None:
            raise ValueError(
                f"There is no calibration data. Received: no x. {hint} Outcomes are "
                "not saved to files."
            )
        return self._outcomes


def _checked_thresholds(thresholds: Thresholds, names: list[str]) -> tuple[float, ...]:
    """Return one number for each exit but the last."""
    if isinstance(thresholds, Mapping):
        if set(thresholds) != set(names):
            raise ValueError(
                "Thresholds must be given for every exit but the last. Received: "
                f"{sorted(map(str, thresholds))}. Expected: {names}."
            )
        thresholds = [thresholds[name] for name in names]
    values = np.atleast_1d(np.asarray(thresholds, "float64"))
    values = np.repeat(values, len(names)) if values.shape == (1,) else values
    if values.shape != (len(names),) or np.isnan(values).any():
        raise ValueError(
            "`thresholds` does not fit the exits. Received: "
            f"thresholds={thresholds!r}. Expected: one number, or one for each of "
            f"{names}."
        )
    return tuple(values.tolist())


def _condition(threshold: float) -> str:
    """Return a threshold as text, also where every sample exits, or none."""
    if math.isinf(threshold):
        return "never" if threshold > 0 else "always"
    return f"≥ {threshold:.4g}"
