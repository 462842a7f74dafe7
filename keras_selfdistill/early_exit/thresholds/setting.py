"""Thresholds as users set them, and as they are shown."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

Thresholds: TypeAlias = float | Sequence[float] | Mapping[str, float]
"""One threshold for all exits, or one for each exit but the last."""


def checked_thresholds(
    thresholds: Thresholds, names: list[str], argument: str = "thresholds"
) -> tuple[float, ...]:
    """Return one number for each exit.

    Args:
        thresholds: One number, or one for each exit, as a list or by name.
        names: Names of the exits, for thresholds all but the last.
        argument: Name of the argument, for errors.

    Raises:
        ValueError: They do not fit the exits, or one is NaN.

    Example:
        >>> checked_thresholds({"exit_2": 0.5, "exit_1": 0.9}, ["exit_1", "exit_2"])
        (0.9, 0.5)
    """
    if isinstance(thresholds, Mapping):
        if set(thresholds) != set(names):
            raise ValueError(
                f"`{argument}` must name every exit once. Received: "
                f"{sorted(map(str, thresholds))}. Expected: {names}."
            )
        thresholds = [thresholds[name] for name in names]
    values = np.atleast_1d(np.asarray(thresholds, "float64"))
    values = np.repeat(values, len(names)) if values.shape == (1,) else values
    if values.shape != (len(names),) or np.isnan(values).any():
        raise ValueError(
            f"`{argument}` does not fit the exits. Received: "
            f"{argument}={thresholds!r}. Expected: one number, or one for each of "
            f"{names}."
        )
    return tuple(values.tolist())


def condition(threshold: float) -> str:
    """Return a threshold as text, also where every sample exits, or none.

    Example:
        >>> condition(0.5), condition(math.inf)
        ('≥ 0.5', 'never')
    """
    if math.isinf(threshold):
        return "never" if threshold > 0 else "always"
    return f"≥ {threshold:.4g}"
