"""Progressive self-knowledge distillation: the teacher is the base an epoch ago."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
from keras import ops

from keras_selfdistill.losses.labels import as_one_hot
from keras_selfdistill.recipes.base import TermWeights
from keras_selfdistill.recipes.exit_losses.byot import BYOT
from keras_selfdistill.recipes.fields import check_share
from keras_selfdistill.recipes.own_terms.copied_base import CopiedBase
from keras_selfdistill.utils.config import PACKAGE
from keras_selfdistill.utils.schedules import Scalar
from keras_selfdistill.utils.type_aliases import (
    ExitTensors,
    Labels,
    Tensor,
    TensorStructure,
)


class PastNetwork(CopiedBase):
    """The logits of a base as it was at the beginning of an epoch.

    Args:
        base: The base, which is copied.

    Example:
        >>> base = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> PastNetwork(base)(ops.ones((4, 2))).shape == (4, 3)
        True
    """

    def __init__(self, base: keras.Model):
        super().__init__(base, recipe="PastSelf", name=f"past_{base.name}")
        self.epochs = self.add_weight(
            name="epochs", initializer="zeros", aggregation="only_first_replica"
        )


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class PastSelf(BYOT):
    """`BYOT` whose final exit learns from the base an epoch ago, PS-KD.

    *Self-Knowledge Distillation with Progressive Refinement of Targets* (Kim et al.,
    ICCV 2021, arXiv 2006.12000, equation 5). Loss of the final exit: the crossentropy
    of its distribution under `(1 − αₜ) · y + αₜ · P`, where y is the label and P the
    distribution of the base after the previous epoch; in the first epoch P is y. The
    first part is the label loss times `1 − αₜ`, the second is logged as `past_loss`.
    The other exits learn from the final one as in `BYOT`. With `taps=0` there is only
    the final exit, and this is the paper's method.

    The paper's αₜ grows linearly to 0.8 over the training: pass
    `past_weight=keras.optimizers.schedules.PolynomialDecay(0.0, steps, 0.8)` with the
    number of all training steps. Its code stores the prediction of every training
    image, as it was made during the previous epoch. Here a copy of the base with the
    weights after that epoch predicts the batch at hand, in inference mode: the data
    need no indices, and a step costs another forward pass of the base. `fit` renews
    the copy, which the wrapper has as `teacher`; loops over `train_on_batch` never do,
    and without a `fit` before train on the labels alone. The copy has the averaged
    weights with `keras.callbacks.SwapEMAWeights(swap_on_epoch=True)`, as the base has
    between epochs.

    Args:
        past_weight: Share of the past predictions, αₜ in [0, 1].
        **fields: Fields of `BYOT`; `final_label_weight` scales both terms.

    Raises:
        ValueError: A field is out of its range or not finite, a wrapper's task is not
            multiclass, or its base cannot be cloned.

    Example:
        >>> PastSelf(past_weight=0.25).weights(["final"])["final"].label
        0.75
    """

    extra_term_names: ClassVar[tuple[str, ...]] = ("past_loss",)
    reads_labels: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...]] = ("multiclass",)

    past_weight: Scalar = 0.8

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        check_share(self, "past_weight")

    def weights(self, exit_names: Sequence[str]) -> dict[str, TermWeights]:
        """Return the weights of every exit."""
        label = (1.0 - self.past_weight) * self.final_label_weight
        return super().weights(exit_names) | {"final": TermWeights(label=label)}

    def make_state(self, base: keras.Model) -> keras.Layer:
        """Return a copy of the base."""
        return PastNetwork(base)

    def on_epoch_begin(self, epoch: int, state: Any, base: keras.Model) -> None:
        """Give the copy the weights of the base."""
        state.copied.set_weights(base.get_weights())
        state.epochs.assign_add(1.0)

    def extra_terms(
        self,
        labels: Labels,
        exits: Mapping[str, ExitTensors],
        state: Any,
        *,
        inputs: TensorStructure,
        training: bool,
    ) -> dict[str, Tensor]:
        """Return the crossentropy under the past predictions."""
        logits = ops.cast(exits["final"]["logits"], "float32")
        past = ops.stop_gradient(ops.softmax(ops.cast(state(inputs), "float32")))
        # The network before the first epoch knows nothing.
        target = ops.where(state.epochs > 1.0, past, as_one_hot(labels, logits))
        loss = -ops.sum(target * ops.log_softmax(logits), axis=-1)
        return {"past_loss": self.past_weight * self.final_label_weight * loss}
