"""Deep supervision: labels only."""

import dataclasses
from collections.abc import Sequence

import keras

from keras_selfdistill.recipes.base import Recipe, TermWeights
from keras_selfdistill.recipes.fields import check_weight
from keras_selfdistill.utils.config import PACKAGE
from keras_selfdistill.utils.schedules import PerExit


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepSupervision(Recipe):
    """Labels only: every exit learns from the labels, none from another exit.

    The baseline that shows what distillation adds (Lee et al., *Deeply-Supervised
    Nets*, AISTATS 2015).

    Args:
        exit_weight: Weight of the label loss of every exit but the final one, or one
            weight for each.
        **fields: Fields of `Recipe`; they only matter with an external teacher.

    Raises:
        ValueError: `exit_weight` is negative or not finite.

    Example:
        >>> DeepSupervision(exit_weight=0.5).weights(["exit_1", "final"])["exit_1"]
        TermWeights(label=0.5, soft_target=0.0, hint=0.0)
        >>> rising = DeepSupervision(exit_weight=[0.2, 0.5]).weights
        >>> [each.label for each in rising(["exit_1", "exit_2", "final"]).values()]
        [0.2, 0.5, 1.0]
    """

    exit_weight: PerExit = 1.0

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        check_weight(self, "exit_weight", per_exit=True)

    def weights(self, exit_names: Sequence[str]) -> dict[str, TermWeights]:
        """Return the weights of every exit."""
        *shallow, final = exit_names
        labels = self.per_exit("exit_weight", shallow)
        weights = {name: TermWeights(label=each) for name, each in labels.items()}
        return weights | {final: TermWeights(label=1.0)}
