"""Checks of the fields of recipes."""

import math
import numbers

from keras_selfdistill.utils.config import Config
from keras_selfdistill.utils.schedules import Scalar, is_schedule
from keras_selfdistill.utils.type_aliases import Tensor


def is_used(weight: Scalar | Tensor) -> bool:
    """Return whether a weight may differ from zero; that of a schedule always may.

    Example:
        >>> import keras
        >>> is_used(0.0), is_used(0.1), is_used(keras.ops.zeros(()))
        (False, True, True)
    """
    return not isinstance(weight, numbers.Real) or weight != 0


def check_share(recipe: Config, field: str) -> None:
    """Refuse a field that is neither a number from 0 to 1 nor a schedule."""
    value = _number(recipe, field)
    if value is not None and not 0.0 <= value <= 1.0:
        refuse(recipe, field, "a number from 0 to 1, or a schedule")


def check_weight(recipe: Config, field: str) -> None:
    """Refuse a field that is neither a finite number of at least 0 nor a schedule."""
    value = _number(recipe, field)
    if value is not None and not (math.isfinite(value) and value >= 0.0):
        refuse(recipe, field, "a finite number of at least 0, or a schedule")


def check_temperature(recipe: Config) -> None:
    """Refuse a temperature that is neither finite and above 0 nor a schedule."""
    value = _number(recipe, "temperature")
    if value is not None and not (math.isfinite(value) and value > 0.0):
        refuse(
            recipe,
            "temperature",
            "a finite number above 0 (the papers use 3 or 4), or a schedule",
        )


def refuse(recipe: Config, field: str, expected: str) -> None:
    """Raise a `ValueError` with the value that a field received and what is allowed."""
    raise ValueError(
        f"{type(recipe).__name__}.{field} is out of range. "
        f"Received: {field}={getattr(recipe, field)!r}. Expected: {expected}."
    )


def _number(recipe: Config, field: str) -> float | None:
    """Return a field as a float, `None` where it is a schedule."""
    value = getattr(recipe, field)
    if is_schedule(value):
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"{type(recipe).__name__}.{field} must be a number or a "
            f"keras.optimizers.schedules.LearningRateSchedule. "
            f"Received: {field}={value!r} of type {type(value).__name__}."
        )
    # NumPy numbers would not serialise; only this check writes to the frozen field.
    object.__setattr__(recipe, field, float(value))
    return float(value)
