"""What thresholds give, as data and as pictures: accuracy over cost, exits' shares."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_selfdistill.early_exit.thresholds.search import Outcomes
from keras_selfdistill.visualization import plot_accuracy_vs_compute, plot_exit_shares


@dataclasses.dataclass(frozen=True)
class Frontier:
    """Thresholds that no others beat, by rising cost.

    Args:
        exit_names: The exits that have thresholds.
        thresholds: Shape `(points, exits)`.
        accuracy: Shape `(points,)`, on the calibration data.
        macs_ratio: Shape `(points,)`: mean share of the base's multiply-adds.
        base_accuracy: Accuracy of the final exit alone, which costs 1.
    """

    exit_names: tuple[str, ...]
    thresholds: np.ndarray
    accuracy: np.ndarray
    macs_ratio: np.ndarray
    base_accuracy: float

    def __len__(self):
        """Return the number of points."""
        return len(self.accuracy)

    def plot(self, path: str | os.PathLike | None = None, *, ax: Any = None) -> Any:
        """Draw accuracy over cost, with the base beside it.

        Args:
            path: File to write, such as `"frontier.svg"`.
            ax: Matplotlib axes to draw on.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            ImportError: Matplotlib is not installed.
        """
        base = {"base": (1.0, self.base_accuracy)}
        figure = plot_accuracy_vs_compute(base, frontier=self, ax=ax)
        if path is not None:
            figure.savefig(path)
        return figure


@dataclasses.dataclass(frozen=True)
class ExitShares:
    """Where samples leave, by the threshold that all exits share.

    Args:
        exit_names: All exits, shallow to deep.
        thresholds: Shape `(points,)`, ascending.
        shares: Shape `(points, exits)`; rows sum to 1.
        chosen: The threshold in use, if all exits share one.
    """

    exit_names: tuple[str, ...]
    thresholds: np.ndarray
    shares: np.ndarray
    chosen: float | None = None

    def plot(self, *, ax: Any = None) -> Any:
        """Draw the shares; see `visualization.plot_exit_shares`."""
        return plot_exit_shares(
            self.thresholds, self.shares, self.exit_names, chosen=self.chosen, ax=ax
        )


def exit_shares(
    outcomes: Outcomes,
    exit_names: Sequence[str],
    in_use: Sequence[float] | None = None,
    points: int = 201,
) -> ExitShares:
    """Return the share of samples that leave at each exit, by shared threshold.

    Args:
        outcomes: What the exits answered.
        exit_names: Their names.
        in_use: The thresholds in use.
        points: Number of thresholds, evenly from the smallest score to the largest.

    Example:
        >>> scores, correct = np.array([[1.0], [0.0]]), np.array([[1, 1], [0, 1]])
        >>> outcomes = Outcomes(scores, correct, correct[:, 1], np.array([0.5, 1.0]))
        >>> exit_shares(outcomes, ["exit_1", "final"], points=3).shares.tolist()
        [[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]]
    """
    # A sample has left at an exit if its largest score so far reaches the threshold.
    best = np.sort(np.maximum.accumulate(outcomes.scores, axis=1), axis=0)
    thresholds = np.linspace(best.min(), best.max(), points)
    stay = [np.searchsorted(column, thresholds) / len(outcomes) for column in best.T]
    left = 1 - np.stack([np.ones(points), *stay, np.zeros(points)], axis=1)
    chosen = set(in_use or ())
    shared = chosen.pop() if len(chosen) == 1 else None
    return ExitShares(
        tuple(exit_names),
        thresholds,
        np.diff(left, axis=1),
        shared if shared is not None and np.isfinite(shared) else None,
    )
