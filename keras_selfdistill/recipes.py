"""Recipes: frozen, serialisable descriptions of which loss each exit gets.

A recipe is data, not code. It names a head and, for every exit, the weight of each
loss term; unless it says otherwise, the deepest exit (`final`) teaches the others.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import keras

from keras_selfdistill.config import PACKAGE, resolve
from keras_selfdistill.losses import HintNormLoss, SoftTargetCrossentropy
from keras_selfdistill.recipe import (
    Recipe,
    Scalar,
    TermWeights,
    check_share,
    check_weight,
    is_used,
    refuse,
)

__all__ = [
    "AttentionBYOT",
    "BYOT",
    "DeepSupervision",
    "RECIPES",
    "Recipe",
    "SeparableBYOT",
    "TESKD",
    "TermWeights",
    "get",
]


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepSupervision(Recipe):
    """Labels only: every exit learns from the labels, none from another exit.

    The baseline that shows what distillation adds (Lee et al., *Deeply-Supervised
    Nets*, AISTATS 2015).

    Args:
        exit_weight: Weight of the label loss of every exit but the final one.
        **fields: Those of `Recipe`; they matter with an external teacher alone.

    Raises:
        ValueError: `exit_weight` is negative or not finite.

    Example:
        >>> DeepSupervision(exit_weight=0.5).weights(["exit_1", "final"])["exit_1"]
        TermWeights(label=0.5, soft_target=0.0, hint=0.0)
    """

    exit_weight: Scalar = 1.0

    def __post_init__(self):
        """Check the fields."""
        super().__post_init__()
        check_weight(self, "exit_weight")

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
        **fields: Those of `Recipe`.

    Raises:
        ValueError: A field is out of its range or not finite.

    Example:
        >>> BYOT(alpha=0.3).weights(["exit_1", "final"])["exit_1"]
        TermWeights(label=0.7, soft_target=0.3, hint=0.000128)
    """

    alpha: Scalar = 0.1
    temperature: Scalar = 3.0
    hint_weight: Scalar = 1.28e-4
    final_label_weight: Scalar = 1.0

    def __post_init__(self):
        """Check the fields."""
        super().__post_init__()
        check_share(self, "alpha")
        check_weight(self, "hint_weight")
        check_weight(self, "final_label_weight")

    def weights(self, exit_names: Sequence[str]) -> dict[str, TermWeights]:
        """Return the weights of every exit."""
        *shallow, final = exit_names
        taught = TermWeights(
            label=1.0 - self.alpha, soft_target=self.alpha, hint=self.hint_weight
        )
        weights = dict.fromkeys(shallow, taught)
        return weights | {final: TermWeights(label=self.final_label_weight)}


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class SeparableBYOT(BYOT):
    """`BYOT` with the journal version's heads and constants for small data.

    The loss is that of `BYOT`; the head is the separable one of the journal version
    (`AttentionBYOT`) without its attention mask, and α is 0.3. This choice is not a
    paper's: with a narrow ResNet-18 and 5,000 images of CIFAR-100, where no exit of the
    published `BYOT` is better than with labels alone, it had the best shallow exits and
    the best ensemble of the six that were tried, with one seed, on images held out of
    the training set (`benchmarks/results/selection`).

    Args:
        **fields: Those of `BYOT`.

    Raises:
        ValueError: A field is out of its range or not finite.

    Example:
        >>> SeparableBYOT().weights(["exit_1", "final"])["exit_1"]
        TermWeights(label=0.7, soft_target=0.3, hint=0.000128)
    """

    head: ClassVar[str] = "separable"

    alpha: Scalar = 0.3


SKIPPED_HINTS = ("second_deepest", "shallowest", "none")


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionBYOT(Recipe):
    """Self-distillation with attention (Zhang et al., TPAMI 2021).

    *Self-Distillation: Towards Efficient and Compact Neural Networks*, doi
    10.1109/TPAMI.2021.3067100. Exits look at their tap through an attention mask
    (head `"attention"`), and a linear layer of its own adapts each exit's feature
    before it is compared. With a single tap there is no hint: it is the one skipped.

    Loss of exit i: `(1 − α) · label loss + α · H(p, q) + β · ‖adapter(fᵢ) − f‖₂`, where
    H is the crossentropy of the exit's distribution at temperature T under the final
    exit's, without the factor T²; loss of the final exit: its label loss.

    The defaults follow the authors' code. It takes the L2 norm of the difference of
    whole batches, `√(Σ ‖dᵢ‖²)`, with weight 0.03 at 128 samples. Here it is a mean of
    the samples' norms, so that its weight does not depend on the batch size: for norms
    of one size the gradients are equal at 0.03 · √128 = 0.339.

    Args:
        alpha: Share of the soft targets, α in [0, 1].
        temperature: Positive temperature of the soft targets, T.
        hint_weight: Weight of the hint, β.
        skipped_hint: The exit that gets no hint: `"second_deepest"`, as the authors'
            code does; `"shallowest"`, as its comment says; or `"none"`.
        final_label_weight: Weight of the final exit's label loss.
        **fields: Those of `Recipe`.

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

    alpha: Scalar = 0.3
    temperature: Scalar = 3.0
    hint_weight: Scalar = 0.03 * math.sqrt(128)
    skipped_hint: str = "second_deepest"
    final_label_weight: Scalar = 1.0

    def __post_init__(self):
        """Check the fields."""
        super().__post_init__()
        check_share(self, "alpha")
        check_weight(self, "hint_weight")
        check_weight(self, "final_label_weight")
        if self.skipped_hint not in SKIPPED_HINTS:
            refuse(self, "skipped_hint", f"one of {SKIPPED_HINTS}")

    def weights(self, exit_names: Sequence[str]) -> dict[str, TermWeights]:
        """Return the weights of every exit."""
        *shallow, final = exit_names
        hints = dict.fromkeys(shallow, self.hint_weight)
        if self.skipped_hint != "none":
            hints[shallow[-1 if self.skipped_hint == "second_deepest" else 0]] = 0.0
        weights = {
            name: TermWeights(label=1.0 - self.alpha, soft_target=self.alpha, hint=hint)
            for name, hint in hints.items()
        }
        return weights | {final: TermWeights(label=self.final_label_weight)}

    def adapted_exits(self, exit_names: Sequence[str]) -> list[str]:
        """Return the exits that get a hint."""
        weights = self.at(0).weights(exit_names)
        return [name for name, each in weights.items() if is_used(each.hint)]


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class TESKD(Recipe):
    """*Student Helping Teacher* (Li et al., 2021, arXiv 2110.00329).

    Students read the base top-down, from its end (head `"top_down"`), and help it to
    learn; they are dropped afterwards: deploy `final_model()`. Since every student
    reads the whole base, no exit of such a wrapper can be cut off.

    Loss of exit i: `w_label · label loss + w_soft · T² · KL(final ‖ exit i) + w_hint ·
    hint`; loss of the final exit: `w_label · label loss`.

    The defaults are the paper's constants; the hint's 1e-7, for a sum over a batch of
    128, is converted as in `BYOT`. (The first version of the authors' code has T = 3.)
    As in that code, the soft targets' gradient reaches the teacher, too.

    Args:
        label_weight: Weight of every exit's label loss, the final one's too.
        soft_target_weight: Weight of the soft targets.
        temperature: Positive temperature of the soft targets, T.
        hint_weight: Weight of the hint; its gradient stops at the teacher.
        detach_teacher: Whether the soft targets' gradient stops at the teacher.
        **fields: Those of `Recipe`.

    Raises:
        ValueError: A field is out of its range or not finite.

    Example:
        >>> TESKD().weights(["exit_1", "final"])["final"]
        TermWeights(label=0.2, soft_target=0.0, hint=0.0)
    """

    head: ClassVar[str] = "top_down"

    label_weight: Scalar = 0.2
    soft_target_weight: Scalar = 0.8
    temperature: Scalar = 4.0
    hint_weight: Scalar = 1.28e-5
    detach_teacher: bool = False

    def __post_init__(self):
        """Check the fields."""
        super().__post_init__()
        check_weight(self, "label_weight")
        check_weight(self, "soft_target_weight")
        check_weight(self, "hint_weight")

    def weights(self, exit_names: Sequence[str]) -> dict[str, TermWeights]:
        """Return the weights of every exit."""
        *shallow, final = exit_names
        taught = TermWeights(
            label=self.label_weight,
            soft_target=self.soft_target_weight,
            hint=self.hint_weight,
        )
        weights = dict.fromkeys(shallow, taught)
        return weights | {final: TermWeights(label=self.label_weight)}


# By the names that stand for them, with their defaults.
RECIPES: dict[str, type[Recipe]] = {
    "byot": BYOT,
    "separable_byot": SeparableBYOT,
    "deep_supervision": DeepSupervision,
    "attention_byot": AttentionBYOT,
    "teskd": TESKD,
}


def get(identifier: "str | Recipe") -> Recipe:
    """Return the recipe of a name, with its defaults, or the recipe given.

    Args:
        identifier: `"byot"`, `"separable_byot"`, `"deep_supervision"`,
            `"attention_byot"`, `"teskd"`, or a `Recipe`.

    Raises:
        ValueError: No recipe has this name.
        TypeError: `identifier` is neither a string nor a `Recipe`.

    Example:
        >>> get("deep_supervision") == DeepSupervision()
        True
    """
    return resolve(identifier, "recipe", Recipe, RECIPES)
