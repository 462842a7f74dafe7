"""What recipes share whose own terms teach every exit, the final one too."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from keras_selfdistill.recipes.base import TermWeights
from keras_selfdistill.recipes.exit_losses.byot import BYOT
from keras_selfdistill.recipes.fields import check_weight
from keras_selfdistill.utils.schedules import PerExit


@dataclasses.dataclass(frozen=True, kw_only=True)
class AllExits(BYOT):
    """Base class of recipes for one class, whose own terms teach every exit.

    Exits learn from labels and these terms; from the final exit as in `BYOT` only where
    `alpha` or `hint_weight` is above 0.

    Attributes:
        term_weights: Names of the fields that weigh the terms: a number, or one for
            each exit and the final one.

    Args:
        alpha: Share of the final exit's soft targets, or one for each exit but the
            final one.
        hint_weight: Weight of the hint, β, as in `BYOT`.
        **fields: Fields of `BYOT`.

    Raises:
        ValueError: A field is out of its range or not finite.

    Example:
        >>> AllExits().weights(["exit_1", "final"])["exit_1"]
        TermWeights(label=1.0, soft_target=0.0, hint=0.0)
    """

    head: ClassVar[str] = "separable"
    tasks: ClassVar[tuple[str, ...]] = ("multiclass",)
    term_weights: ClassVar[tuple[str, ...]] = ()

    alpha: PerExit = 0.0
    hint_weight: PerExit = 0.0

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        for field in self.term_weights:
            check_weight(self, field, per_exit=True)

    def weights(self, exit_names: Sequence[str]) -> dict[str, TermWeights]:
        """Return the weights of every exit."""
        for field in self.term_weights:
            self.per_exit(field, exit_names)  # Refused before any training.
        return super().weights(exit_names)
