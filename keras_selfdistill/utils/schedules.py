"""Numbers or schedules of numbers."""

from typing import Any, TypeAlias, TypeGuard

import keras

Scalar: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule


def is_schedule(
    value: Any,
) -> TypeGuard[keras.optimizers.schedules.LearningRateSchedule]:
    """Return whether a value is a schedule.

    Example:
        >>> rising = keras.optimizers.schedules.PolynomialDecay(0.0, 10, 0.5)
        >>> is_schedule(0.5), is_schedule(rising)
        (False, True)
    """
    return isinstance(value, keras.optimizers.schedules.LearningRateSchedule)
