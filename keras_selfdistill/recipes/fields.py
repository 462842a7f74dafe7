"""Checks of the fields of recipes: numbers, schedules, or one for each exit."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from keras_selfdistill.utils.config import Config
from keras_selfdistill.utils.schedules import PerExit, Scalar, is_schedule
from keras_selfdistill.utils.type_aliases import Tensor


def is_used(weight: Scalar | Tensor) -> bool:
    """Return whether a weight may differ from zero; that of a schedule always may.

    Example:
        >>> import keras
        >>> is_used(0.0), is_used(0.1), is_used(keras.ops.zeros(()))
        (False, True, True)
    """
    return not isinstance(weight, numbers.Real) or weight != 0


def check_share(recipe: Config, field: str, *, per_exit: bool = False) -> None:
    """Refuse a field that is neither numbers from 0 to 1 nor schedules.

    Args:
        recipe: The recipe.
        field: Name of the field.
        per_exit: Whether there may be one for each exit.
    """
    values = _numbers(recipe, field, per_exit=per_exit)
    if not all(0.0 <= value <= 1.0 for value in values):
        refuse(recipe, field, _or_schedule("a number from 0 to 1", per_exit=per_exit))


def check_weight(recipe: Config, field: str, *, per_exit: bool = False) -> None:
    """Refuse a field that is neither finite numbers of at least 0 nor schedules.

    Args:
        recipe: The recipe.
        field: Name of the field.
        per_exit: Whether there may be one for each exit.
    """
    values = _numbers(recipe, field, per_exit=per_exit)
    if not all(math.isfinite(value) and value >= 0.0 for value in values):
        expected = "a finite number of at least 0"
        refuse(recipe, field, _or_schedule(expected, per_exit=per_exit))


def check_temperature(recipe: Config) -> None:
    """Refuse a temperature that is neither finite and above 0 nor a schedule."""
    values = _numbers(recipe, "temperature", per_exit=False)
    if not all(math.isfinite(value) and value > 0.0 for value in values):
        expected = "a finite number above 0 (the papers use 3 or 4)"
        refuse(recipe, "temperature", _or_schedule(expected, per_exit=False))


def _or_schedule(expected: str, *, per_exit: bool) -> str:
    return f"{expected}, or a schedule{', or one for each exit' if per_exit else ''}"


def refuse(recipe: Config, field: str, expected: str) -> None:
    """Raise a `ValueError` with the value that a field received and what is allowed."""
    raise ValueError(
        f"{type(recipe).__name__}.{field} is out of range. "
        f"Received: {field}={getattr(recipe, field)!r}. Expected: {expected}."
    )


def _numbers(recipe: Config, field: str, *, per_exit: bool) -> list[float]:
    """Return the numbers of a field, without schedules, and store them as floats."""
    value = getattr(recipe, field)
    stored: PerExit
    values: Sequence[Scalar]
    if per_exit and isinstance(value, Mapping):
        stored = {name: _float(recipe, field, each) for name, each in value.items()}
        values = list(stored.values())
    elif per_exit and isinstance(value, (list, tuple)):
        stored = values = tuple(_float(recipe, field, each) for each in value)
    else:
        stored = _float(recipe, field, value, per_exit=per_exit)
        values = [stored]
    # NumPy numbers would not serialise, and a list could change; only this check
    # writes to the frozen field.
    object.__setattr__(recipe, field, stored)
    return [each for each in values if not is_schedule(each)]


def _float(recipe: Config, field: str, value: Any, *, per_exit: bool = True) -> Scalar:
    if is_schedule(value):
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"{type(recipe).__name__}.{field} must be a number or a "
            "keras.optimizers.schedules.LearningRateSchedule"
            f"{', or a list or dict of one for each exit' if per_exit else ''}. "
            f"Received: {field}={getattr(recipe, field)!r} of type "
            f"{type(value).__name__}."
        )
    return float(value)
