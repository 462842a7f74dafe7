"""The base class of recipes: frozen fields, the teacher, and each exit's weights."""

import copy
import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import ClassVar

from keras_selfdistill.losses.hint import HintLoss
from keras_selfdistill.losses.soft_target import SoftTargetLoss
from keras_selfdistill.utils.config import Config, did_you_mean
from keras_selfdistill.utils.schedules import Scalar, is_schedule
from keras_selfdistill.utils.type_aliases import Tensor

TEACHERS = ("deepest", "ensemble", "dense", "next")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TermWeights:
    """Weights of one exit's loss terms: numbers, or tensors where one is scheduled.

    Args:
        label: Weight of the label loss.
        soft_target: Weight of the soft-target loss to each teacher's logits.
        hint: Weight of the hint loss to each teacher's feature.

    Example:
        >>> TermWeights(label=1.0)
        TermWeights(label=1.0, soft_target=0.0, hint=0.0)
    """

    label: float | Tensor
    soft_target: float | Tensor = 0.0
    hint: float | Tensor = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Config):
    """Base class of recipes; subclass it as a frozen dataclass.

    Every number may also be a `keras.optimizers.schedules.LearningRateSchedule`. It is
    evaluated on the wrapper's own count of training steps, which is saved with it.

    Attributes:
        head: Name of the head of all exits, unless the user passes another.
        soft_target_loss: Class of the loss on logits, called with `(temperature,
            reduction=…)`.
        hint_loss: Class of the loss on features, called with `(reduction=…)`.

    Args:
        teacher: Teacher of an exit: `"deepest"`, the final exit; `"next"`, the next
            deeper exit; `"dense"`, every deeper exit, each with an equal share of the
            weight; `"ensemble"`, the detached mean of all exits' logits (which has no
            feature: the hint loss uses the final exit's).
        detach_teacher: Whether the soft targets' gradient stops at the teacher.
        external_weight: Weight of the soft-target loss to the external teacher, which
            a wrapper with `teacher=` adds to every exit, the final one included.
        temperature: Positive temperature of the soft targets, T.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field is out of its range or not finite.
    """

    head: ClassVar[str] = "bottleneck"
    soft_target_loss: ClassVar[type] = SoftTargetLoss
    hint_loss: ClassVar[type] = HintLoss

    teacher: str = "deepest"
    detach_teacher: bool = True
    external_weight: Scalar = 1.0
    temperature: Scalar = 1.0

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.teacher not in TEACHERS:
            refuse(
                self,
                "teacher",
                f"one of {TEACHERS}.{did_you_mean(str(self.teacher), TEACHERS)} "
                "Another model is passed as SelfDistiller(..., teacher=model)",
            )
        if not isinstance(self.detach_teacher, bool):
            refuse(self, "detach_teacher", "True or False")
        check_weight(self, "external_weight")
        check_temperature(self)

    def weights(self, exit_names: Sequence[str]) -> dict[str, TermWeights]:
        """Return the weights of every exit, given their names, shallow to deep."""
        raise NotImplementedError(
            f"{type(self).__name__} must define weights(exit_names)."
        )

    def teachers_of(self, name: str, exit_names: Sequence[str]) -> list[str]:
        """Return the names of an exit's teachers, `ensemble` for the mean of all.

        Args:
            name: Name of the exit.
            exit_names: Names of all exits, shallow to deep.
        """
        if self.teacher == "ensemble":
            return ["ensemble"]
        deeper = list(exit_names[list(exit_names).index(name) + 1 :])
        chosen = {"deepest": slice(-1, None), "next": slice(1), "dense": slice(None)}
        return deeper[chosen[self.teacher]]

    def adapted_exits(self, exit_names: Sequence[str]) -> list[str]:
        """Return the exits whose feature a trainable dense layer adapts for the hint.

        None by default. The layer is used in training only; no deployed model has it.
        """
        del exit_names
        return []

    def at(self, step: int | Tensor) -> "Recipe":
        """Return the recipe with the value of every schedule at a step.

        Args:
            step: Number of training steps so far: integer or scalar tensor.

        Example:
            >>> import keras
            >>> import keras_selfdistill as ksd
            >>> rising = keras.optimizers.schedules.PolynomialDecay(0.0, 10, 0.5)
            >>> recipe = ksd.recipes.BYOT(alpha=rising)
            >>> print(float(recipe.at(5).alpha))
            0.25
        """
        values = {
            field.name: getattr(self, field.name)(step)
            for field in dataclasses.fields(self)
            if is_schedule(getattr(self, field.name))
        }
        if not values:
            return self
        # Not dataclasses.replace: values at a step are tensors, which checks refuse.
        recipe = copy.copy(self)
        for name, value in values.items():
            object.__setattr__(recipe, name, value)
        return recipe


def is_used(weight: Scalar | Tensor) -> bool:
    """Return whether a weight may differ from zero; that of a schedule always may.

    Example:
        >>> import keras
        >>> is_used(0.0), is_used(0.1), is_used(keras.ops.zeros(()))
        (False, True, True)
    """
    return not isinstance(weight, numbers.Real) or weight != 0


def check_share(recipe: Recipe, field: str) -> None:
    """Refuse a field that is neither a number from 0 to 1 nor a schedule."""
    value = _number(recipe, field)
    if value is not None and not 0.0 <= value <= 1.0:
        refuse(recipe, field, "a number from 0 to 1, or a schedule")


def check_weight(recipe: Recipe, field: str) -> None:
    """Refuse a field that is neither a finite number of at least 0 nor a schedule."""
    value = _number(recipe, field)
    if value is not None and not (math.isfinite(value) and value >= 0.0):
        refuse(recipe, field, "a finite number of at least 0, or a schedule")


def check_temperature(recipe: Recipe) -> None:
    """Refuse a temperature that is neither finite and above 0 nor a schedule."""
    value = _number(recipe, "temperature")
    if value is not None and not (math.isfinite(value) and value > 0.0):
        refuse(
            recipe,
            "temperature",
            "a finite number above 0 (the papers use 3 or 4), or a schedule",
        )


def refuse(recipe: Recipe, field: str, expected: str) -> None:
    """Raise a `ValueError` with the value that a field received and what is allowed."""
    raise ValueError(
        f"{type(recipe).__name__}.{field} is out of range. "
        f"Received: {field}={getattr(recipe, field)!r}. Expected: {expected}."
    )


def _number(recipe: Recipe, field: str) -> float | None:
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
