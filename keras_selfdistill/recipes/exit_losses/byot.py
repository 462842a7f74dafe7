"""*Be Your Own Teacher*, with its own heads or with separable ones."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import keras

from keras_selfdistill.recipes.base import Recipe, TermWeights
from keras_selfdistill.recipes.fields import check_share, check_weight
from keras_selfdistill.utils.config import PACKAGE
from keras_selfdistill.utils.schedules import PerExit, Scalar


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class BYOT(Recipe):
    """*Be Your Own Teacher* (Zhang et al., ICCV 2019, arXiv 1905.08094).

    Loss of exit i: `(1 − α) · label loss + α · T² · KL(final ‖ exit i) + β · hint`;
    loss of the final exit: its label loss (section 3.2: α and β are zero there). The
    second and third term have no gradient in the final exit.

    The defaults are the constants of the public reproduction; the paper gives none.
    There, the hint loss is summed over a batch of 128 and weighted by 1e-6. Here it is
    a mean over samples, so that its weight does not depend on the batch size: 128 ·
    1e-6 = 1.28e-4.

    Args:
        alpha: Share of the soft targets, α in [0, 1], or one for each exit but the
            final one.
        temperature: Positive temperature of the soft targets, T.
        hint_weight: Weight of the hint, β, or one for each exit but the final one.
        final_label_weight: Weight of the final exit's label loss. The public
            reproduction scales it like the others: pass `1 - alpha` for that.
        **fields: Fields of `Recipe`.

    Raises:
        ValueError: A field is out of its range or not finite.

    Example:
        >>> BYOT(alpha=0.3).weights(["exit_1", "final"])["exit_1"]
        TermWeights(label=0.7, soft_target=0.3, hint=0.000128)
    """

    alpha: PerExit = 0.1
    temperature: Scalar = 3.0
    hint_weight: PerExit = 1.28e-4
    final_label_weight: Scalar = 1.0

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        check_share(self, "alpha", per_exit=True)
        check_weight(self, "hint_weight", per_exit=True)
        check_weight(self, "final_label_weight")

    def weights(self, exit_names: Sequence[str]) -> dict[str, TermWeights]:
        """Return the weights of every exit."""
        *shallow, final = exit_names
        alpha = self.per_exit("alpha", shallow)
        hint = self.per_exit("hint_weight", shallow)
        weights = {
            name: TermWeights(
                label=1.0 - alpha[name], soft_target=alpha[name], hint=hint[name]
            )
            for name in shallow
        }
        return weights | {final: TermWeights(label=self.final_label_weight)}


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class SeparableBYOT(BYOT):
    """`BYOT` with the journal version's heads and constants for small data.

    The loss is that of `BYOT`; the head is the separable one of the journal version
    (`AttentionBYOT`) without its attention mask, and α is 0.3. This combination is not
    from a paper. With a narrow ResNet-18 and 5,000 images of CIFAR-100, where no exit
    of the published `BYOT` is better than with labels alone, it had the best shallow
    exits and the best ensemble of six candidates, with one seed, on images held out of
    the training set (`benchmarks/results/selection`).

    Args:
        **fields: Fields of `BYOT`.

    Raises:
        ValueError: A field is out of its range or not finite.

    Example:
        >>> SeparableBYOT().weights(["exit_1", "final"])["exit_1"]
        TermWeights(label=0.7, soft_target=0.3, hint=0.000128)
    """

    head: ClassVar[str] = "separable"

    alpha: PerExit = 0.3
