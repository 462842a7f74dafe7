"""The thresholds of an `EarlyExit`: set by hand, or chosen on validation data."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Self

import numpy as np

from keras_selfdistill.early_exit.cascade import Cascade
from keras_selfdistill.early_exit.scoring import Scorer
from keras_selfdistill.early_exit.temperature import ScaledExits, check_alone, no_logits
from keras_selfdistill.early_exit.thresholds.choice import check_untouched, choose
from keras_selfdistill.early_exit.thresholds.exit_latency import (
    check_given,
    given_latencies,
    measured_latencies,
)
from keras_selfdistill.early_exit.thresholds.frontier import (
    ExitShares,
    Frontier,
    exit_shares,
    frontier_of,
)
from keras_selfdistill.early_exit.thresholds.goal import ThresholdGoal
from keras_selfdistill.early_exit.thresholds.outcomes import Outcomes, known_latencies
from keras_selfdistill.early_exit.thresholds.setting import (
    Thresholds,
    checked_thresholds,
    condition,
)
from keras_selfdistill.evaluation.sample_batch import one_batch
from keras_selfdistill.training.distiller import SelfDistiller
from keras_selfdistill.utils.table import Table, elided
from keras_selfdistill.utils.type_aliases import Data, Labels


class Calibration(ScaledExits):
    """The part of an `EarlyExit` that stores and chooses the thresholds."""

    def __init__(
        self, model: SelfDistiller, scorer: Scorer, thresholds: Thresholds | None
    ):
        super().__init__(model, scorer)
        self._latencies: np.ndarray | None = None
        if thresholds is not None:
            self.thresholds = thresholds

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
        found = checked_thresholds(thresholds, self.exit_names[:-1])
        with self._lock:
            self._thresholds, self.calibration = found, None

    @property
    def latencies_ms(self) -> dict[str, float] | None:
        """Milliseconds from the input to the prediction of each exit, by name.

        For one batch of the `sample`, or the `costs`, that `calibrate` got with
        `latency_budget_ms`; `None` before. Saved with the thresholds: on another
        device, calibrate again.
        """
        if self._latencies is None:
            return None
        return dict(zip(self.exit_names, self._latencies.tolist(), strict=True))

    def calibrate(
        self,
        x: Data = None,
        y: Labels = None,
        *,
        max_accuracy_drop: float | None = None,
        target_accuracy: float | None = None,
        macs_budget: float | None = None,
        latency_budget_ms: float | None = None,
        sample: Data = None,
        costs: Mapping[str, float] | None = None,
        temperature: bool = False,
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
            latency_budget_ms: Goal: the highest accuracy with at most this mean
                latency, in milliseconds of one batch of `sample`: the mean over the
                calibration samples of the latency of their exit.
            sample: For `latency_budget_ms`: one batch of the size used in deployment,
                such as `x[:1]`, with which the latency of each exit is measured on
                this device: the median time of `predict` if all its samples exit
                there. By default the latencies of the last such call are used again.
            costs: Instead of `sample`: latencies measured elsewhere, as a mapping of
                all `exit_names` to milliseconds from the input to the prediction of
                that exit, for one batch.
            temperature: Whether to fit `temperatures` first, which make the exits'
                probabilities fit their accuracy (Guo et al., arXiv 1706.04599). Needs
                `x`; all exits' logits of the samples are kept in memory meanwhile. With
                a guarantee they are fitted on the first half. Without a goal, only they
                are fitted, and thresholds of an earlier calibration are dropped.
            guarantee: Confidence level, such as 0.95, of a bound on the accuracy drop.
                It does not hold for samples that temperatures were fitted on before.
            per_exit: Whether each exit gets its own threshold.
            batch_size: Number of samples a section processes at once.
            seed: Seed of the split into halves.

        Returns:
            This object, with the result in `calibration`.

        Raises:
            TypeError: `costs` is not a mapping.
            ValueError: The number of goals is not one, no thresholds reach the goal, a
                guarantee would be tested on samples that temperatures were fitted on,
                or the goal needs costs that are missing; `sample` or `costs` is
                invalid; the data does not fit the base; or there are fewer than 12
                samples and no guarantee.
        """
        if temperature and x is None:
            raise no_logits()
        goals = (max_accuracy_drop, target_accuracy, macs_budget, latency_budget_ms)
        if temperature and not any(each is not None for each in goals):
            options = {"guarantee": guarantee, "per_exit": per_exit}
            check_alone({**options, "sample": sample, "costs": costs})
            self._use(*self._fit_temperatures(x, y, batch_size, None))
            return self
        goal = ThresholdGoal(
            max_accuracy_drop=max_accuracy_drop,
            target_accuracy=target_accuracy,
            macs_budget=macs_budget,
            latency_budget_ms=latency_budget_ms,
            guarantee=guarantee,
            per_exit=per_exit,
            seed=seed,
        )
        self._check(goal, sample, costs, reuse=x is None)
        self._learn_latencies(sample, costs)
        if latency_budget_ms is not None:
            known_latencies(self._latencies)
        fit_on = None if guarantee is None else seed
        cascade, found = self._observed(x, y, batch_size, temperature, fit_on)
        outcomes = dataclasses.replace(found, latencies=self._latencies)
        last_is_base = self._scorer.last_resort == "final"
        choice = choose(outcomes, goal, last_is_base=last_is_base)
        with self._lock:
            self._use(cascade, outcomes)
            self.thresholds = choice.thresholds
            self.calibration = choice
        return self

    def _check(
        self,
        goal: ThresholdGoal,
        sample: Data,
        costs: Mapping[str, float] | None,
        *,
        reuse: bool,
    ) -> None:
        """Check what a goal needs, before anything is measured."""
        if goal.needs_costs:
            budget = f"macs_budget={goal.macs_budget}"
            self._cascade.check_costs("per_exit=True" if goal.per_exit else budget)
        check_given(sample, costs, goal.latency_budget_ms)
        if reuse:
            check_untouched(self._calibrated("Pass x and y."), goal)

    def _observed(
        self, x: Data, y: Labels, batch_size: int, temperature: bool, seed: int | None
    ) -> tuple[Cascade, Outcomes]:
        """Return the outcomes of the data, or the last ones, and whose they are."""
        if temperature:
            return self._fit_temperatures(x, y, batch_size, seed)
        if x is not None:
            self._outcomes = self._cascade.observe(x, y, batch_size)
        return self._cascade, self._calibrated("Pass x and y.")

    def _learn_latencies(self, sample: Data, costs: Mapping[str, float] | None) -> None:
        """Take the latencies of exits from a table, or measure them with a sample."""
        if costs is not None:
            self._latencies = given_latencies(costs, self.exit_names)
        elif sample is not None:
            arrays = one_batch(self._model.exit_graph.base, sample)
            found = measured_latencies(self._cascade, self.exit_names, arrays)
            self._latencies = np.array(list(found.values()))

    def frontier(self, *, per_exit: bool = False, by: str = "macs") -> Frontier:
        """Return the Pareto front of thresholds on the calibration data.

        Args:
            per_exit: Whether each exit has its own threshold, searched as in
                `calibrate`.
            by: Cost of the front: `"macs"`, or `"latency"` after a calibration with
                `latency_budget_ms`.

        Raises:
            ValueError: `calibrate` was not called, or costs are missing; or `by` is
                unknown.
        """
        if by == "macs":
            self._cascade.check_costs("frontier()")
        outcomes = self._calibrated("Call calibrate(x, y, ...) first.")
        names = self.exit_names[:-1]
        return frontier_of(outcomes, names, self._thresholds, by, per_exit=per_exit)

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
        headings = ["exit", "threshold", "multiply-adds of the base's"]
        rows = self._rows()
        if self._latencies is not None:
            headings.append("latency")
            for row, latency in zip(rows, self._latencies, strict=True):
                row.append(f"{latency:.3f} ms")
        table = Table(headings, rows)
        return table.html(f"EarlyExit of {self._described()}")

    def _described(self) -> str:
        return f"{self._model.base.name}: {self._scorer.criterion}"

    def _rows(self) -> list[list[str]]:
        """Return name, threshold and cost of each exit, as text."""
        limits = [condition(limit) for limit in self._thresholds or ()]
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

    def _calibrated(self, hint: str) -> Outcomes:
        if self._outcomes is None:
            raise ValueError(
                f"There is no calibration data. Received: no x. {hint} Outcomes are "
                "not saved to files."
            )
        return dataclasses.replace(self._outcomes, latencies=self._latencies)
