"""How far confidence can be believed: answers binned by it; NumPy only."""

import dataclasses
from typing import Any

import numpy as np

BINS = 15


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Sums over answers, in bins of equal width by their confidence.

    What batches gave can be added.

    Args:
        count: Answers in each bin, shape `(bins,)`.
        confidence: Sum of their confidences.
        right: How many of them are right.
    """

    count: np.ndarray
    confidence: np.ndarray
    right: np.ndarray

    def __add__(self, other: "Reliability") -> "Reliability":
        """Return that of the answers of both."""
        return Reliability(
            self.count + other.count,
            self.confidence + other.confidence,
            self.right + other.right,
        )

    @property
    def edges(self) -> np.ndarray:
        """Borders of the bins, shape `(bins + 1,)`."""
        return np.linspace(0, 1, len(self.count) + 1)

    @property
    def accuracy(self) -> np.ndarray:
        """Share of right answers in each bin, NaN in an empty one."""
        return self.right / np.where(self.count > 0, self.count, np.nan)

    @property
    def share(self) -> np.ndarray:
        """Share of all answers that are in each bin."""
        return self.count / self.count.sum()

    @property
    def expected_calibration_error(self) -> float:
        """Mean over answers of the distance of accuracy and confidence in their bin.

        Guo et al., ICML 2017.
        """
        return float(np.abs(self.right - self.confidence).sum() / self.count.sum())


def binned(confidence: Any, right: Any, bins: int = BINS) -> Reliability:
    """Bin answers by their confidence. A bin holds its upper end, not its lower one.

    Args:
        confidence: From 0 to 1, shape `(answers,)`.
        right: Whether each answer is right.
        bins: Number of bins.

    Example:
        >>> found = binned([0.9, 0.7, 0.2], [True, False, False], bins=2)
        >>> found.accuracy.tolist(), round(found.expected_calibration_error, 3)
        ([0.0, 0.5], 0.267)
    """
    edges = np.linspace(0, 1, bins + 1)
    number = np.digitize(confidence, edges[1:-1], right=True)
    return Reliability(
        np.bincount(number, minlength=bins),
        np.bincount(number, confidence, minlength=bins),
        np.bincount(number, right, minlength=bins),
    )
