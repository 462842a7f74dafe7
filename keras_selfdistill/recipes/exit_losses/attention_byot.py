"""Self-distillation with attention, the journal version of BYOT."""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import keras

from keras_selfdistill.losses.hint import HintNormLoss
from keras_selfdistill.losses.soft_target import SoftTargetCrossentropy
from keras_selfdistill.recipes.base import Recipe, TermWeights
from keras_selfdistill.recipes.fields import check_share, check_weight, is_used, refuse
from keras_selfdistill.utils.config import PACKAGE
from keras_selfdistill.utils.schedules import PerExit, Scalar

SKIPPED_HINTS = ("second_deepest", "shallowest", "none")


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionBYOT(Recipe):
    """Self-distillation with attention (Zhang et al., TPAMI 2021).

    *Self-Distillation: Towards Efficient and Compact Neural Networks*, doi
    10.1109/TPAMI.2021.3067100. Exits read their tap through an attention mask (head
    `"attention"`), and a linear adapter maps each exit's feature before the hint loss.
    With a single tap there is no hint loss, because that exit is the one skipped.

    Loss of exit i: `(1 − α) · label loss + α · H(p, q) + β · ‖adapter(fᵢ) − f‖₂`, where
    H is the crossentropy of the exit's distribution at temperature T under the final
    exit's, without the factor T²; loss of the final exit: its label loss.

    The defaults follow the authors' code. It takes the L2 norm of the difference of
    whole batches, `√(Σ ‖dᵢ‖²)`, with weight 0.03 at 128 samples. Here it is a mean of
    the samples' norms, so that its weight does not depend on the batch size: for norms
    of one size the gradients are equal at 0.03 · √128 = 0.339.

    Args:
        alpha: Share of the soft targets, α in [0, 1], or one for each exit but the
            final one.
        temperature: Positive temperature of the soft targets, T.
        hint_weight: Weight of the hint, β, or one for each exit but the final one, of
            which the skipped one does not count.
        skipped_hint: The exit that gets no hint: `"second_deepest"`, as the authors'
            code does; `"shallowest"`, as its comment says; or `"none"`.
        final_label_weight: Weight of the final exit's label loss.
        **fields: Fields of `Recipe`.

    Raises:
        ValueError: A field is out of its range or not finite.

    Example:
        >>> recipe = AttentionBYOT(skipped_hint="shallowest")
        >>> recipe.adapted_exits(["exit_1", "exit_2", "exit_3", "final"])
        ['exit_2', 'exit_3']
    """

    head: ClassVar[str] = "attention"
    soft_target_loss: ClassVar[type] = SoftTargetCrossentropy
    hint_loss: ClassVar[type] = HintNormLoss

    alpha: PerExit = 0.3
    temperature: Scalar = 3.0
    hint_weight: PerExit = 0.03 * math.sqrt(128)
    skipped_hint: str = "second_deepest"
    final_label_weight: Scalar = 1.0

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        check_share(self, "alpha", per_exit=True)
        check_weight(self, "hint_weight", per_exit=True)
        check_weight(self, "final_label_weight")
        if self.skipped_hint not in SKIPPED_HINTS:
            refuse(self, "skipped_hint", f"one of {SKIPPED_HINTS}")

    def weights(self, exit_names: Sequence[str]) -> dict[str, TermWeights]:
        """Return the weights of every exit."""
        *shallow, final = exit_names
        alpha = self.per_exit("alpha", shallow)
        hints = self.per_exit("hint_weight", shallow)
        if shallow and self.skipped_hint != "none":
            hints[shallow[-1 if self.skipped_hint == "second_deepest" else 0]] = 0.0
        weights = {
            name: TermWeights(
                label=1.0 - alpha[name], soft_target=alpha[name], hint=hint
            )
            for name, hint in hints.items()
        }
        return weights | {final: TermWeights(label=self.final_label_weight)}

    def adapted_exits(self, exit_names: Sequence[str]) -> list[str]:
        """Return the exits that get a hint."""
        weights = self.at(0).weights(exit_names)
        return [name for name, each in weights.items() if is_used(each.hint)]
