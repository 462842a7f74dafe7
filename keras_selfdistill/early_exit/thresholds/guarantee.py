"""Bounds on the accuracy drop that hold for any distribution; NumPy only.

The drop of a sample is 1 if the base is correct and early exit is not, -1 in the
opposite case, and 0 if both or neither are correct. Its mean is tested by betting
(Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting",
JRSS B 2024, arXiv 2010.09686): under the null hypothesis that the mean is at least a
given value, bets on smaller drops have no positive expected gain, so a 20-fold gain of
the capital rejects the hypothesis at level 1/20 (Ville's inequality).
"""

import math

import numpy as np

from keras_selfdistill.early_exit.thresholds.outcomes import Outcomes
from keras_selfdistill.early_exit.thresholds.search import (
    Points,
    exit_indices,
)

_BISECTIONS = 40
_LARGEST_BET = 0.75  # Fraction of the capital that a single sample can lose.
_NORMAL_QUANTILE = 1.959963984540054  # 97.5 %.


def drops(outcomes: Outcomes, thresholds: np.ndarray) -> np.ndarray:
    """Return the accuracy drop of every sample at every point.

    Args:
        outcomes: Outcomes of the samples.
        thresholds: Thresholds of shape `(points, exits - 1)`.

    Returns:
        Drops of shape `(samples, points)`, each -1, 0 or 1.
    """
    rows = np.arange(len(outcomes))
    correct = [
        outcomes.correct[rows, exit_indices(outcomes.scores, each)]
        for each in thresholds
    ]
    return outcomes.reference[:, None].astype("int64") - np.stack(correct, axis=1)


def evidence(values: np.ndarray, mean: float, confidence: float) -> np.ndarray:
    """Return the log of the largest capital of bets against a mean of at least `mean`.

    The bets are the predictable plug-in bets of Waudby-Smith & Ramdas, which estimate
    the variance from the previous samples.

    Args:
        values: Independent samples between -1 and 1, shape `(samples, tests)`.
        mean: Mean of the null hypothesis, between -1 and 1.
        confidence: Confidence level for which bets are optimised; the test is valid at
            any level.

    Returns:
        Evidence of shape `(tests,)`; `exp(-evidence)` is a p-value.

    Example:
        >>> alike = np.zeros((2000, 1))
        >>> bool(evidence(alike, 0.01, 0.95)[0] > np.log(20))
        True
    """
    values = (1 + np.asarray(values, "float64")) / 2
    mean = (1 + mean) / 2
    count = len(values)
    number = np.arange(1, count + 1)[:, None]
    means = (0.5 + np.cumsum(values, axis=0)) / (number + 1)
    variances = (0.25 + np.cumsum((values - means) ** 2, axis=0)) / (number + 1)
    # Each bet may depend only on the samples before its own.
    before = np.concatenate([np.full((1, values.shape[1]), 0.25), variances[:-1]])
    bets = np.sqrt(2 * np.log(1 / (1 - confidence)) / (count * before))
    bets = np.minimum(bets, _LARGEST_BET / (1 - mean))
    return np.cumsum(np.log1p(-bets * (values - mean)), axis=0).max(axis=0)


def certified(
    outcomes: Outcomes, path: Points, max_drop: float, confidence: float
) -> int | None:
    """Return the last point of a path whose accuracy drop is bounded.

    Fixed-sequence testing (Angelopoulos et al., "Learn then test", arXiv 2110.01052):
    the points are tested in order, each at the full level, until the first fails. The
    probability that any of the points before it drops by more than `max_drop` is then
    at most `1 - confidence`.

    Args:
        outcomes: Outcomes of samples that were not used to choose the path.
        path: Points from the safest to the least safe.
        max_drop: Largest mean accuracy drop.
        confidence: Confidence level, such as 0.95.

    Returns:
        Index of the point; `None` if the first fails.
    """
    found = evidence(drops(outcomes, path.thresholds), max_drop, confidence)
    passed = found >= np.log(1 / (1 - confidence))
    count = len(passed) if passed.all() else int(passed.argmin())
    return count - 1 if count else None


def upper_bound(values: np.ndarray, confidence: float) -> float:
    """Return an upper confidence bound of the mean of a distribution on [-1, 1].

    Args:
        values: Independent samples of shape `(samples,)`.
        confidence: Probability that the mean is at most the bound.

    Example:
        >>> 0 < upper_bound(np.zeros(5000), 0.95) < 0.002
        True
    """
    low, high = -1.0, 1.0  # The test rejects means from the bound up.
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        found = evidence(values[:, None], middle, confidence)[0]
        if found >= np.log(1 / (1 - confidence)):
            high = middle
        else:
            low = middle
    return high


def thresholds_from_safest(points: Points, steps: int = 100) -> Points:
    """Return points of a shared path from the safest on, at even steps of cost.

    At the first point all samples use the last exit, also if exits have equal costs.

    Args:
        points: Points by ascending threshold, as `shared_path` returns them.
        steps: Largest number of points.

    Example:
        >>> thresholds = np.array([[-np.inf], [0.5], [np.inf]])
        >>> alike = Points(thresholds, np.array([0.5, 0.9, 0.8]), np.ones(3))
        >>> thresholds_from_safest(alike).thresholds.tolist()
        [[inf]]
    """
    safest_first = points[::-1]  # Of equal costs, the highest threshold comes first.
    costs = np.linspace(safest_first.cost[0], safest_first.cost[-1], steps)
    nearest = np.abs(safest_first.cost[None] - costs[:, None]).argmin(axis=1)
    return safest_first[np.unique(nearest)]


def half_width(accuracy: float, samples: int) -> float:
    """Return half the width of the 95 % confidence interval of an accuracy.

    Wilson's score interval ("Probable inference", JASA 1927), which is not empty even
    if all predictions are correct.

    Args:
        accuracy: Fraction of correct predictions.
        samples: Number of samples.

    Example:
        >>> round(half_width(0.75, 20), 3), round(half_width(0.75, 20_000), 3)
        (0.178, 0.006)
    """
    square = _NORMAL_QUANTILE**2
    spread = accuracy * (1 - accuracy) / samples + square / (4 * samples**2)
    return _NORMAL_QUANTILE * math.sqrt(spread) / (1 + square / samples)
