"""A paired test that needs no assumption about how results are spread."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

_EXACT = 16  # Pairs up to which all signs are tried.
_DRAWS = 2**_EXACT
_ROUNDING = 1e-9


def least_p(pairs: int) -> float:
    """Return what `sign_flip_p` gives where all differences have one sign.

    Example:
        >>> least_p(3), round(least_p(20), 7)
        (0.25, 1.53e-05)
    """
    return 2 / 2**pairs if pairs <= _EXACT else 1 / (_DRAWS + 1)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return how often chance alone would give differences with so large a mean.

    If two methods were equally good, each pair's difference could as well have the
    other sign. Tried are all 2ⁿ ways to set the signs of n differences; the result is
    the share of them whose mean is at least as far from 0 as the one found (two-sided,
    exact; Fisher's randomisation test). It is never less than 2 / 2ⁿ: 0.25 for three
    pairs, 0.0625 for five, 0.031 for six. Three seeds can thus show no difference at
    5 %, whatever they give: fewer than six pairs never reach it. Above 16 pairs, 65536
    ways are drawn at random, with a fixed seed. Where a difference is no finite number,
    neither is the result: NaN.

    Example:
        >>> sign_flip_p([0.1, 0.2, 0.3]), sign_flip_p([0.1, -0.2, 0.1])
        (0.25, 1.0)
    """
    values = np.asarray(differences, "float64")
    if not np.isfinite(values).all():
        return math.nan
    if len(values) <= _EXACT:
        signs = np.array(list(itertools.product((1, -1), repeat=len(values))))
        extra = 0
    else:
        random = np.random.default_rng(0)
        signs = random.choice((1, -1), (_DRAWS, len(values)))
        extra = 1  # What was found is itself one of the ways.
    sums = np.abs(signs @ values)
    limit = abs(values.sum()) * (1 - _ROUNDING) - _ROUNDING * np.abs(values).max()
    return float(((sums >= limit).sum() + extra) / (len(sums) + extra))
