"""Recipes: frozen, serialisable descriptions of which loss each exit gets.

A recipe is data, not code. It names a head and, for every exit, the weight of each
loss term; the deepest exit (`final`) teaches the others.
"""

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import ClassVar

import keras

from keras_selfdistill.config import PACKAGE, Config, resolve


@dataclasses.dataclass(frozen=True, kw_only=True)
class TermWeights:
    """Weights of one exit's loss terms.

    Args:
        label: Weight of the label loss.
        soft_target: Weight of `T² · KL` to the teacher's logits.
        hint: Weight of the squared distance to the teacher's feature.

    Example:
        >>> TermWeights(label=1.0)
        TermWeights(label=1.0, soft_target=0.0, hint=0.0)
    """

    label: float
    soft_target: float = 0.0
    hint: float = 0.0


class Recipe(Config):
    """What every recipe offers; subclass it as a frozen dataclass.

    Attributes:
        head: Name of the head that exits get unless the user chooses another.
        temperature: Temperature of the soft targets, T.
    """

    head: ClassVar[str] = "bottleneck"
    temperature: float = 1.0

    def weights(self, exit_names: Sequence[str]) -> dict[str, TermWeights]:
        """Return the weights of every exit, given their names, shallow to deep."""
        raise NotImplementedError(
            f"{type(self).__name__} must define weights(exit_names)."
        )


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepSupervision(Recipe):
    """Labels only: every exit learns from the labels, none from another exit.

    The baseline that shows what distillation adds (Lee et al., *Deeply-Supervised
    Nets*, AISTATS 2015).

    Args:
        exit_weight: Weight of the label loss of every exit but the final one.

    Raises:
        ValueError: `exit_weight` is negative or not finite.

    Example:
        >>> DeepSupervision(exit_weight=0.5).weights(["exit_1", "final"])["exit_1"]
        TermWeights(label=0.5, soft_target=0.0, hint=0.0)
    """

    exit_weight: float = 1.0

    def __post_init__(self):
        """Check the fields."""
        _check_weight(self, "exit_weight")

    def weights(self, exit_names: Sequence[str]) -> dict[str, TermWeights]:
        """Return the weights of every exit."""
        *shallow, final = exit_names
        weights = dict.fromkeys(shallow, TermWeights(label=self.exit_weight))
        return weights | {final: TermWeights(label=1.0)}


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class BYOT(Recipe):
    """*Be Your Own Teacher* (Zhang et al., ICCV 2019, arXiv 1905.08094).

    Loss of exit i: `(1 − α) · label loss + α · T² · KL(final ‖ exit i) + β · hint`;
    loss of the final exit: its label loss (section 3.2: α and β are zero there).
    Nothing flows back into the final exit through the second and third term.

    The defaults are the published constants. The hint there is summed over a batch
    of 128 and weighted by 1e-6. Here it is a mean over samples, so that its weight
    does not depend on the batch size: 128 · 1e-6 = 1.28e-4.

    Args:
        alpha: Share of the soft targets, α in [0, 1].
        temperature: Positive temperature of the soft targets, T.
        hint_weight: Weight of the hint, β.
        final_label_weight: Weight of the final exit's label loss. The public
            reproduction scales it like the others: pass `1 - alpha` for that.

    Raises:
        ValueError: A field is out of its range or not finite.

    Example:
        >>> BYOT(alpha=0.3).weights(["exit_1", "final"])["exit_1"]
        TermWeights(label=0.7, soft_target=0.3, hint=0.000128)
    """

    alpha: float = 0.1
    temperature: float = 3.0
    hint_weight: float = 1.28e-4
    final_label_weight: float = 1.0

    def __post_init__(self):
        """Check the fields."""
        _check_share(self, "alpha")
        _check_temperature(self)
        _check_weight(self, "hint_weight")
        _check_weight(self, "final_label_weight")

    def weights(self, exit_names: Sequence[str]) -> dict[str, TermWeights]:
        """Return the weights of every exit."""
        *shallow, final = exit_names
        taught = TermWeights(
            label=1.0 - self.alpha, soft_target=self.alpha, hint=self.hint_weight
        )
        weights = dict.fromkeys(shallow, taught)
        return weights | {final: TermWeights(label=self.final_label_weight)}


_SHORTHANDS = {"byot": BYOT, "deep_supervision": DeepSupervision}


def get(identifier: "str | Recipe") -> Recipe:
    """Return the recipe with a name and published constants, or the recipe given.

    Args:
        identifier: `"byot"`, `"deep_supervision"`, or a `Recipe`.

    Raises:
        ValueError: No recipe has this name.
        TypeError: `identifier` is neither a string nor a `Recipe`.

    Example:
        >>> get("byot")
        BYOT(alpha=0.1, temperature=3.0, hint_weight=0.000128, final_label_weight=1.0)
    """
    return resolve(identifier, "recipe", Recipe, _SHORTHANDS)


def _number(recipe, field):
    value = getattr(recipe, field)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"{type(recipe).__name__}.{field} must be a number. "
            f"Received: {field}={value!r} of type {type(value).__name__}."
        )
    # NumPy's numbers would not serialise; the class is frozen for everyone else.
    object.__setattr__(recipe, field, float(value))
    return float(value)


def _check_share(recipe, field):
    if not 0.0 <= _number(recipe, field) <= 1.0:
        _refuse(recipe, field, "a number from 0 to 1")


def _check_weight(recipe, field):
    value = _number(recipe, field)
    if not (math.isfinite(value) and value >= 0.0):
        _refuse(recipe, field, "a finite number of at least 0")


def _check_temperature(recipe):
    value = _number(recipe, "temperature")
    if not (math.isfinite(value) and value > 0.0):
        _refuse(
            recipe, "temperature", "a finite number above 0 (the papers use 3 or 4)"
        )


def _refuse(recipe, field, expected):
    raise ValueError(
        f"{type(recipe).__name__}.{field} is out of range. "
        f"Received: {field}={getattr(recipe, field)!r}. Expected: {expected}."
    )
