"""A paired significance test that assumes no distribution of the results."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

_EXACT = 16  # Number of pairs up to which all signs are enumerated.
_DRAWS = 2**_EXACT
_ROUNDING = 1e-9


def least_p(pairs: int) -> float:
    """Return the least p-value of `sign_flip_p`, for differences of one sign.

    Example:
        >>> least_p(3), round(least_p(20), 7)
        (0.25, 1.53e-05)
    """
    return 2 / 2**pairs if pairs <= _EXACT else 1 / (_DRAWS + 1)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of Fisher's randomisation test of paired results.

    If two methods are equally good, each pair's difference is as likely to have the
    other sign. The p-value is the share of all 2ⁿ ways to set the signs of n
    differences whose mean is at least as far from 0 as the observed one. It is never
    less than 2 / 2ⁿ: 0.25 for three pairs, 0.0625 for five, 0.031 for six. Fewer than
    six pairs thus never reach 5 %. Above 16 pairs, 65536 ways are drawn at random, with
    a fixed seed. If a difference is not finite, the result is NaN.

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
        extra = 1  # The observed signs are one of the ways.
    sums = np.abs(signs @ values)
    limit = abs(values.sum()) * (1 - _ROUNDING) - _ROUNDING * np.abs(values).max()
    return float(((sums >= limit).sum() + extra) / (len(sums) + extra))
