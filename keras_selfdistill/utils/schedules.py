"""Numbers, schedules of numbers, and one of them for each exit."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

import keras

Scalar: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule
PerExit: TypeAlias = Scalar | Sequence[Scalar] | Mapping[str, Scalar]
"""One number or schedule for all exits, or one for each, in order or by name."""


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


def has_schedule(value: Any) -> bool:
    """Return whether a value is a schedule, or has one for an exit.

    Example:
        >>> rising = keras.optimizers.schedules.PolynomialDecay(0.0, 10, 0.5)
        >>> has_schedule([0.5, rising]), has_schedule({"exit_1": 0.5})
        (True, False)
    """
    return any(map(is_schedule, _each(value)))


def at_step(value: Any, step: Any) -> Any:
    """Return a value with its schedules replaced by their values at a step.

    Args:
        value: Number, schedule, or one for each exit.
        step: Number of training steps: integer or scalar tensor.

    Example:
        >>> rising = keras.optimizers.schedules.PolynomialDecay(0.0, 10, 0.5)
        >>> print(float(at_step({"exit_1": rising}, 5)["exit_1"]))
        0.25
    """
    if isinstance(value, Mapping):
        return {name: at_step(each, step) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(at_step(each, step) for each in value)
    return value(step) if is_schedule(value) else value


def by_exit(value: Any, names: Sequence[str], argument: str) -> dict[str, Any]:
    """Return the number or schedule of each exit.

    Args:
        value: One for all exits, or one for each: a list, tuple or mapping.
        names: Names of the exits, shallow to deep.
        argument: Name of the argument, for errors.

    Raises:
        ValueError: There are more or fewer values, or other names, than exits.

    Example:
        >>> by_exit([0.2, 0.5], ["exit_1", "exit_2"], "alpha")
        {'exit_1': 0.2, 'exit_2': 0.5}
        >>> by_exit(0.3, ["exit_1", "exit_2"], "alpha")
        {'exit_1': 0.3, 'exit_2': 0.3}
    """
    if isinstance(value, Mapping):
        found = {name: value[name] for name in names if name in value}
    elif isinstance(value, (list, tuple)):
        found = dict(zip(names, value, strict=False))
    else:
        return dict.fromkeys(names, value)
    if not len(found) == len(value) == len(names):
        raise ValueError(
            f"{argument} does not fit the exits. Received: {value!r}. Expected: one "
            f"number for all, or one for each of {list(names)}, in this order or by "
            "name."
        )
    return found


def _each(value: Any) -> Sequence[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, (list, tuple)) else [value]
