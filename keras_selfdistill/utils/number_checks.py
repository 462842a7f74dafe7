"""What counts as a number: booleans do not."""

from typing import TypeGuard

import numpy as np


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is an integer or a float, of Python or NumPy.

    Example:
        >>> is_number(0.5), is_number(np.int64(2)), is_number(True), is_number("1")
        (True, True, False, False)
    """
    kinds = (int, float, np.integer, np.floating)
    return isinstance(value, kinds) and not isinstance(value, bool)


def is_finite_number(value: object) -> bool:
    """Return whether a value is a number within the range of floats.

    Example:
        >>> is_finite_number(2), is_finite_number(float("nan"))
        (True, False)
        >>> is_finite_number(10**400)
        False
    """
    if isinstance(value, np.floating):
        value = float(value)  # A narrow float cannot be compared with the limit.
    return is_number(value) and bool(abs(value) < 1e308)


def is_positive_integer(value: object) -> bool:
    """Return whether a value is an integer of at least 1, of Python or NumPy.

    Example:
        >>> [is_positive_integer(each) for each in (1, np.int64(2), 0, 1.0, True)]
        [True, True, False, False, False]
    """
    return (
        is_number(value) and isinstance(value, (int, np.integer)) and bool(value >= 1)
    )
