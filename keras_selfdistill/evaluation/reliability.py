"""Reliability of confidence scores: predictions binned by them; NumPy only."""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

BINS = 15


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Sums over predictions, in bins of equal width by their confidence.

    Those of several batches can be added.

    Args:
        count: Number of predictions in each bin, shape `(bins,)`.
        confidence: Sum of their confidences.
        correct: Number of correct ones among them.
    """

    count: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray

    def __add__(self, other: "Reliability") -> "Reliability":
        """Return the sums over the predictions of both."""
        return Reliability(
            self.count + other.count,
            self.confidence + other.confidence,
            self.correct + other.correct,
        )

    @property
    def edges(self) -> np.ndarray:
        """Borders of the bins, shape `(bins + 1,)`."""
        return np.linspace(0, 1, len(self.count) + 1)

    @property
    def accuracy(self) -> np.ndarray:
        """Share of correct predictions in each bin, NaN in an empty one."""
        return self.correct / np.where(self.count > 0, self.count, np.nan)

    @property
    def share(self) -> np.ndarray:
        """Share of all predictions in each bin."""
        return self.count / self.count.sum()

    @property
    def expected_calibration_error(self) -> float:
        """Mean over predictions of |accuracy - confidence| in their bin.

        Guo et al., ICML 2017.
        """
        return float(np.abs(self.correct - self.confidence).sum() / self.count.sum())


def binned(
    confidence: ArrayLike, correct: np.typing.ArrayLike, bins: int = BINS
) -> Reliability:
    """Bin predictions by their confidence; a bin includes its upper edge only.

    Args:
        confidence: Confidence scores from 0 to 1, shape `(predictions,)`.
        correct: Whether each prediction is correct, shape `(predictions,)`.
        bins: Number of bins.

    Example:
        >>> found = binned([0.9, 0.7, 0.2], [True, False, False], bins=2)
        >>> found.accuracy.tolist(), round(found.expected_calibration_error, 3)
        ([0.0, 0.5], 0.267)
    """
    edges = np.linspace(0, 1, bins + 1)
    number = np.digitize(np.asarray(confidence), edges[1:-1], right=True)
    return Reliability(
        np.bincount(number, minlength=bins),
        np.bincount(number, confidence, minlength=bins),
        np.bincount(number, correct, minlength=bins),
    )
