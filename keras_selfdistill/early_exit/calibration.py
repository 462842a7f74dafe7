"""The thresholds of an `EarlyExit`: set by hand, or chosen on validation data."""

import math
from collections.abc import Mapping
from typing import Any, Self

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
from keras_selfdistill.early_exit.thresholds.search import Outcomes
from keras_selfdistill.training.distiller import SelfDistiller
from keras_selfdistill.utils.table import Table


class Calibration:
    """The part of an `EarlyExit` that holds its thresholds and chooses them."""

    _cascade: Cascade
    _scorer: Scorer
    _model: SelfDistiller

    def __init__(self, thresholds: Any):
        self._outcomes: Outcomes | None = None
        self._thresholds: tuple[float, ...] | None = None
        self.calibration: Choice | None = None
        if thresholds is not None:
            self.thresholds = thresholds

    @property
    def exit_names(self) -> list[str]:
        """Names of what can answer, shallow to deep; the last is the last resort."""
        return [*self._model.exit_names[:-1], self._scorer.last_resort]

    @property
    def thresholds(self) -> Any:
        """Thresholds of all exits but the last, by name; `None` before calibration.

        Set them with one number, a list, or a dict by name. What `calibration` says
        holds no longer then.
        """
        if self._thresholds is None:
            return None
        return dict(zip(self.exit_names, self._thresholds, strict=False))

    @thresholds.setter
    def thresholds(self, thresholds: Any) -> None:
        self._thresholds = _checked_thresholds(thresholds, self.exit_names[:-1])
        self.calibration = None

    def calibrate(
        self,
        x: Any = None,
        y: Any = None,
        *,
        max_accuracy_drop: float | None = None,
        target_accuracy: float | None = None,
        macs_budget: float | None = None,
        guarantee: float | None = None,
        per_exit: bool = False,
        batch_size: int = 32,
        seed: int = 0,
    ) -> Self:
        """Choose the thresholds on validation data, by one pass over it.

        What is searched: all that one threshold shared by all exits can do, exactly.
        With `per_exit`, also thresholds of each exit's own: from the shared ones on,
        each is set in turn to the best of all its values while the others stay. The
        goal is then never missed where shared thresholds reach it, nor the result
        worse; the best of all combinations it is not always.

        With a guarantee, the samples are split in halves. One is searched; on the
        other, with `max_accuracy_drop`, ever lower thresholds are tested until one
        fails (fixed-sequence testing), and with the other goals the drop is bounded.
        The bound holds for any distribution, if validation data and later samples come
        from the same one independently.

        Args:
            x: Samples, in any form that `predict` takes. Left out, the outcomes of the
                last call are used again.
            y: Labels: classes, or one-hot rows. Data sets give (inputs, labels).
            max_accuracy_drop: The cheapest thresholds whose accuracy is at most so much
                below that of the final exit, 0.01 for one point of a hundred.
            target_accuracy: The cheapest that are so accurate.
            macs_budget: The most accurate that spend at most this share of the base's
                multiply-adds.
            guarantee: Confidence, such as 0.95, of a bound on the accuracy drop.
            per_exit: Whether each exit gets a threshold of its own.
            batch_size: Samples a section takes at once.
            seed: Of the split, where there is a guarantee.

        Returns:
            This object; `calibration` says what was found.

        Raises:
            ValueError: Not one goal is given, no thresholds reach it, or it depends on
                costs that are not known; the data does not fit; or there are fewer than
                12 samples and no guarantee is asked for.
        """
        wish = ThresholdGoal(
            max_accuracy_drop=max_accuracy_drop,
            target_accuracy=target_accuracy,
            macs_budget=macs_budget,
            guarantee=guarantee,
            per_exit=per_exit,
            seed=seed,
        )
        if wish.needs_costs:
            asked = "per_exit=True" if per_exit else f"macs_budget={macs_budget}"
            self._check_costs(asked)
        if x is not None:
            self._outcomes = self._cascade.observe(x, y, batch_size)
        outcomes = self._calibrated("Pass x and y.")
        last_is_base = self._scorer.last_resort == "final"
        choice = choose(outcomes, wish, last_is_base=last_is_base)
        self.thresholds = choice.thresholds
        self.calibration = choice
        return self

    def frontier(self, *, per_exit: bool = False) -> Frontier:
        """Return all thresholds that no others beat, on the calibration data.

        Args:
            per_exit: Whether each exit has a threshold of its own; `calibrate` says
                what is then searched. Shared thresholds are searched exactly.

        Raises:
            ValueError: There was no calibration, or costs are not known.
        """
        self._check_costs("frontier()")
        outcomes = self._calibrated("Call calibrate(x, y, ...) first.")
        points = points_of(outcomes, per_exit=per_exit)
        return Frontier(
            exit_names=tuple(self.exit_names[:-1]),
            thresholds=points.thresholds,
            accuracy=points.accuracy,
            macs_ratio=points.cost,
            base_accuracy=float(outcomes.reference.mean()),
        )

    def exit_shares(self, points: int = 201) -> ExitShares:
        """Return where the calibration data leaves, by a threshold that exits share.

        Args:
            points: Number of thresholds, evenly from the smallest score to the largest.

        Raises:
            ValueError: There was no calibration.
        """
        outcomes = self._calibrated("Call calibrate(x, y, ...) first.")
        return exit_shares(outcomes, self.exit_names, self._thresholds, points)

    def __repr__(self) -> str:
        """Return the base, the criterion and the threshold of each exit."""
        criterion, *rest = self._rows()
        exits = ", ".join(f"{name} {threshold}".rstrip() for name, threshold, _ in rest)
        return f"<EarlyExit of {self._model.base.name}: {criterion}: {exits}>"

    def _repr_html_(self):
        criterion, *rows = self._rows()
        table = Table(["exit", "threshold", "multiply-adds of the base's"], rows)
        return table.html(f"EarlyExit of {self._model.base.name}: {criterion}")

    def _rows(self):
        """Return the criterion, then name, threshold and cost of each exit, as text."""
        limits = [f"≥ {limit:.4g}" for limit in self._thresholds or ()]
        limits = limits or ["not calibrated"] * (len(self.exit_names) - 1)
        costs = ["?" if math.isnan(c) else f"{c:.1%}" for c in self._cascade.costs]
        rows = zip(self.exit_names, [*limits, ""], costs, strict=True)
        return [str(self._scorer.criterion), *map(list, rows)]

    def _unknown_costs(self):
        return (
            "The multiply-adds of some layers are not known, so neither is what an "
            f"exit costs: {', '.join(self._cascade.unknown)}. Teach them with "
            "keras_selfdistill.register_macs before making EarlyExit, or "
            "choose an exit by its latency: keras_selfdistill.pick_exit(model, "
            "max_latency_ms=..., sample=x[:1])."
        )

    def _check_costs(self, asked):
        if self._cascade.unknown:
            raise ValueError(
                f"{self._unknown_costs()} Received: {asked}, which needs costs. "
                "Expected: max_accuracy_drop= or target_accuracy=, with thresholds "
                "that all exits share."
            )

    def _calibrated(self, hint) -> Outcomes:
        if self._outcomes is None:
            raise ValueError(
                f"There is no calibration data. Received: no x. {hint} Outcomes are "
                "not saved to files."
            )
        return self._outcomes


def _checked_thresholds(thresholds, names):
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
