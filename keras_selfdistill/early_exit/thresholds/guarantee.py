"""Bounds on the accuracy drop that hold for any distribution; NumPy only.

The drop of a sample is 1 where the base was right and the early exit is not, -1 where
it is the other way round, and 0 where they are alike. Its mean is tested by betting
(Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting",
JRSS B 2024, arXiv 2010.09686): if the mean were as large as supposed, nobody could
expect to win money by betting that the next drop is smaller; so a capital that has
grown 20-fold speaks against it at the level 1/20 (Ville's inequality).
"""

import math

import numpy as np

from keras_selfdistill.early_exit.thresholds.search import (
    Outcomes,
    Points,
    exit_indices,
)

_BISECTIONS = 40
_LARGEST_BET = 0.75  # Of the capital that a single sample can lose.
_NORMAL_QUANTILE = 1.959963984540054  # 97.5 %.


def drops(outcomes: Outcomes, thresholds: np.ndarray) -> np.ndarray:
    """Return the accuracy drop of every sample at every point.

    Args:
        outcomes: What the exits answered.
        thresholds: Shape `(points, exits - 1)`.

    Returns:
        Shape `(samples, points)`, of -1, 0 and 1.
    """
    rows = np.arange(len(outcomes))
    correct = [
        outcomes.correct[rows, exit_indices(outcomes.scores, each)]
        for each in thresholds
    ]
    return outcomes.reference[:, None].astype("int64") - np.stack(correct, axis=1)


def evidence(values: np.ndarray, mean: float, confidence: float) -> np.ndarray:
    """Return the log of the largest capital won against a mean of at least so much.

    The bets are the predictable plug-in ones of Waudby-Smith & Ramdas, which learn the
    variance from the samples before.

    Args:
        values: Shape `(samples, tests)`, between -1 and 1, independent samples.
        mean: The supposed mean, above -1 and below 1.
        confidence: For which the bets are made; the test is valid at any level.

    Returns:
        Shape `(tests,)`. `exp(-evidence)` is a p-value.

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
    # Each bet may know the samples before its own alone.
    before = np.concatenate([np.full((1, values.shape[1]), 0.25), variances[:-1]])
    bets = np.sqrt(2 * np.log(1 / (1 - confidence)) / (count * before))
    bets = np.minimum(bets, _LARGEST_BET / (1 - mean))
    return np.cumsum(np.log1p(-bets * (values - mean)), axis=0).max(axis=0)


def certified(
    outcomes: Outcomes, path: Points, max_drop: float, confidence: float
) -> int | None:
    """Return the last point of a path whose accuracy drop is bounded.

    Fixed-sequence testing (Angelopoulos et al., "Learn then test", arXiv 2110.01052):
    the points are tested in the order given, each at the full level, up to the first
    that fails. The chance that any of the points before it drops more than `max_drop`
    is then at most `1 - confidence`.

    Args:
        outcomes: Of samples that had no part in the choice of the path.
        path: Points from the most careful to the least.
        max_drop: Largest mean drop of accuracy allowed.
        confidence: Such as 0.95.

    Returns:
        The index of the point, `None` if the first fails.
    """
    found = evidence(drops(outcomes, path.thresholds), max_drop, confidence)
    passed = found >= np.log(1 / (1 - confidence))
    count = len(passed) if passed.all() else int(passed.argmin())
    return count - 1 if count else None


def upper_bound(values: np.ndarray, confidence: float) -> float:
    """Return a bound that the mean of a distribution on [-1, 1] exceeds rarely.

    Args:
        values: Shape `(samples,)`, independent samples.
        confidence: With this probability the mean is at most the bound.

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
    """Return points of a shared path from the most careful on, at even steps of cost.

    The first one sends all samples to the end, also where exits cost alike.

    Args:
        points: By rising threshold, as `shared_path` returns them.
        steps: At most so many points.

    Example:
        >>> thresholds = np.array([[-np.inf], [0.5], [np.inf]])
        >>> alike = Points(thresholds, np.array([0.5, 0.9, 0.8]), np.ones(3))
        >>> thresholds_from_safest(alike).thresholds.tolist()
        [[inf]]
    """
    careful = points[::-1]  # Of equal costs, the highest threshold comes first.
    wanted = np.linspace(careful.cost[0], careful.cost[-1], steps)
    nearest = np.abs(careful.cost[None] - wanted[:, None]).argmin(axis=1)
    return careful[np.unique(nearest)]


def half_width(accuracy: float, samples: int) -> float:
    """Return half the width of the 95 % interval of an accuracy.

    Wilson's score interval ("Probable inference", JASA 1927), which is not empty where
    all samples are right, either.

    Args:
        accuracy: Share of the samples that are right.
        samples: How many were counted.

    Example:
        >>> round(half_width(0.75, 20), 3), round(half_width(0.75, 20_000), 3)
        (0.178, 0.006)
    """
    square = _NORMAL_QUANTILE**2
    spread = accuracy * (1 - accuracy) / samples + square / (4 * samples**2)
    return _NORMAL_QUANTILE * math.sqrt(spread) / (1 + square / samples)
