"""Accuracy by cost, and the fraction of samples per exit, as data and plots."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from keras_selfdistill.early_exit.thresholds.choice import points_of
from keras_selfdistill.early_exit.thresholds.outcomes import Outcomes
from keras_selfdistill.early_exit.thresholds.search import evaluate
from keras_selfdistill.utils.table import elided
from keras_selfdistill.utils.type_aliases import Axes, Figure
from keras_selfdistill.visualization import plot_accuracy_vs_compute, plot_exit_shares
from keras_selfdistill.visualization.accuracy import draw_by_latency


@dataclasses.dataclass(frozen=True, repr=False)
class Frontier:
    """Pareto front of thresholds, by ascending cost.

    The cost is `latency_ms` if there is one, else `macs_ratio`.

    Args:
        exit_names: Names of the exits that have thresholds.
        thresholds: Thresholds of shape `(points, exits)`.
        accuracy: Accuracy on the calibration data, shape `(points,)`.
        macs_ratio: Mean multiply-adds as a fraction of the base's, shape `(points,)`.
        base_accuracy: Accuracy of the base, which has a `macs_ratio` of 1.
        chosen: Cost and accuracy of the thresholds in use, if there are any.
        latency_ms: Mean latency in milliseconds, shape `(points,)`: the cost of a front
            by latency; `None` for one by multiply-adds.
    """

    exit_names: tuple[str, ...]
    thresholds: np.ndarray
    accuracy: np.ndarray
    macs_ratio: np.ndarray
    base_accuracy: float
    chosen: tuple[float, float] | None = None
    latency_ms: np.ndarray | None = None

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.accuracy)

    def __repr__(self) -> str:
        """Return the number of points and the ranges of accuracy and cost."""
        accuracy, ratio = (
            f"{values[0]:.1%} to {values[-1]:.1%}"
            for values in (self.accuracy, self.macs_ratio)
        )
        cost = f"{ratio} of the base's multiply-adds"
        if self.latency_ms is not None:
            cost = f"{self.latency_ms[0]:.3f} to {self.latency_ms[-1]:.3f} ms"
        return f"<Frontier of {len(self)} thresholds: accuracy {accuracy}, {cost}>"

    def plot(self, *, ax: Axes = None) -> Figure:
        """Draw accuracy by cost, with the base and the thresholds in use as points.

        A front by latency has no point for the base, which was not measured.

        Args:
            ax: Matplotlib axes to draw on.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            ImportError: Matplotlib is not installed.
        """
        chosen = {} if self.chosen is None else {"chosen": self.chosen}
        if self.latency_ms is not None:
            return draw_by_latency(chosen, self.latency_ms, self.accuracy, ax)
        points = {"base": (1.0, self.base_accuracy), **chosen}
        return plot_accuracy_vs_compute(points, frontier=self, ax=ax)


def frontier_of(
    outcomes: Outcomes,
    exit_names: Sequence[str],
    in_use: Sequence[float] | None,
    by: str,
    *,
    per_exit: bool,
) -> Frontier:
    """Return the Pareto front of thresholds.

    Args:
        outcomes: Outcomes of the calibration samples.
        exit_names: Names of all exits but the last.
        in_use: The thresholds in use.
        by: Cost of the front: `"macs"` or `"latency"`.
        per_exit: Whether each exit has its own threshold.

    Raises:
        ValueError: `by` is unknown, or latencies are.
    """
    if by not in ("macs", "latency"):
        raise ValueError(
            f"Unknown cost of a frontier. Received: by={by!r}. Expected: 'macs' or "
            "'latency'."
        )
    priced = outcomes if by == "macs" else outcomes.by_latency()
    points = points_of(priced, per_exit=per_exit)
    chosen = None
    if in_use is not None:
        accuracy, cost = evaluate(priced, in_use)
        chosen = cost, accuracy
    ratios = points.cost
    if by == "latency":
        ratios = np.array([evaluate(outcomes, each)[1] for each in points.thresholds])
    return Frontier(
        exit_names=tuple(exit_names),
        thresholds=points.thresholds,
        accuracy=points.accuracy,
        macs_ratio=ratios,
        base_accuracy=float(outcomes.reference.mean()),
        chosen=chosen,
        latency_ms=None if by == "macs" else points.cost,
    )


@dataclasses.dataclass(frozen=True, repr=False)
class ExitShares:
    """Fraction of samples per exit, by the threshold that all exits share.

    Args:
        exit_names: Names of all exits, shallow to deep.
        thresholds: Thresholds of shape `(points,)`, ascending.
        shares: Fractions of shape `(points, exits)`; each row sums to 1.
        chosen: The thresholds in use, of all exits but the last.
    """

    exit_names: tuple[str, ...]
    thresholds: np.ndarray
    shares: np.ndarray
    chosen: tuple[float, ...] | None = None

    def __repr__(self) -> str:
        """Return the exits, the number of thresholds and their range."""
        first, last = self.thresholds[0], self.thresholds[-1]
        return (
            f"<ExitShares of {elided(self.exit_names)} at {len(self.thresholds)} "
            f"thresholds from {first:.3g} to {last:.3g}>"
        )

    def plot(self, *, ax: Axes = None) -> Figure:
        """Draw the fractions; see `visualization.plot_exit_shares`."""
        return plot_exit_shares(
            self.thresholds, self.shares, self.exit_names, chosen=self.chosen, ax=ax
        )


def exit_shares(
    outcomes: Outcomes,
    exit_names: Sequence[str],
    in_use: Sequence[float] | None = None,
    points: int = 201,
) -> ExitShares:
    """Return the fraction of samples per exit, by shared threshold.

    Args:
        outcomes: Outcomes of the calibration samples.
        exit_names: Names of all exits.
        in_use: The thresholds in use.
        points: Number of thresholds, evenly spaced from the smallest score to the
            largest.

    Example:
        >>> scores, correct = np.array([[1.0], [0.0]]), np.array([[1, 1], [0, 1]])
        >>> outcomes = Outcomes(scores, correct, correct[:, 1], np.array([0.5, 1.0]))
        >>> exit_shares(outcomes, ["exit_1", "final"], points=3).shares.tolist()
        [[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]]
    """
    # A sample has exited at an exit if its largest score so far reaches the threshold.
    best = np.sort(np.maximum.accumulate(outcomes.scores, axis=1), axis=0)
    thresholds = np.linspace(best.min(), best.max(), points)
    rest = [np.searchsorted(column, thresholds) / len(outcomes) for column in best.T]
    exited = 1 - np.stack([np.ones(points), *rest, np.zeros(points)], axis=1)
    chosen = None if in_use is None else tuple(in_use)
    return ExitShares(tuple(exit_names), thresholds, np.diff(exited, axis=1), chosen)
