"""*Student Helping Teacher*."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import keras

from keras_selfdistill.recipes.base import Recipe, TermWeights
from keras_selfdistill.recipes.fields import check_weight
from keras_selfdistill.utils.config import PACKAGE
from keras_selfdistill.utils.schedules import PerExit, Scalar


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class TESKD(Recipe):
    """*Student Helping Teacher* (Li et al., 2021, arXiv 2110.00329).

    Students read the base top-down, from its end (head `"top_down"`), and improve its
    training. Deploy `final_model()`, without them. Since every student reads the whole
    base, no exit of such a wrapper is cheaper than the base.

    Loss of exit i: `w_label · label loss + w_soft · T² · KL(final ‖ exit i) + w_hint ·
    hint`; loss of the final exit: `w_label · label loss`.

    The defaults are the paper's constants; the hint's 1e-7, for a sum over a batch of
    128, is converted as in `BYOT`. (The first version of the authors' code has T = 3.)
    As in that code, the soft targets' gradient reaches the teacher, too.

    Args:
        label_weight: Weight of every exit's label loss, including the final one, or one
            for each.
        soft_target_weight: Weight of the soft targets, or one for each exit but the
            final one.
        temperature: Positive temperature of the soft targets, T.
        hint_weight: Weight of the hint, or one for each exit but the final one; its
            gradient stops at the teacher.
        detach_teacher: Whether the soft targets' gradient stops at the teacher.
        **fields: Fields of `Recipe`.

    Raises:
        ValueError: A field is out of its range or not finite.

    Example:
        >>> TESKD().weights(["exit_1", "final"])["final"]
        TermWeights(label=0.2, soft_target=0.0, hint=0.0)
    """

    head: ClassVar[str] = "top_down"

    label_weight: PerExit = 0.2
    soft_target_weight: PerExit = 0.8
    temperature: Scalar = 4.0
    hint_weight: PerExit = 1.28e-5
    detach_teacher: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        check_weight(self, "label_weight", per_exit=True)
        check_weight(self, "soft_target_weight", per_exit=True)
        check_weight(self, "hint_weight", per_exit=True)

    def weights(self, exit_names: Sequence[str]) -> dict[str, TermWeights]:
        """Return the weights of every exit."""
        *shallow, final = exit_names
        labels = self.per_exit("label_weight", exit_names)
        soft = self.per_exit("soft_target_weight", shallow)
        hints = self.per_exit("hint_weight", shallow)
        weights = {
            name: TermWeights(
                label=labels[name], soft_target=soft[name], hint=hints[name]
            )
            for name in shallow
        }
        return weights | {final: TermWeights(label=labels[final])}
