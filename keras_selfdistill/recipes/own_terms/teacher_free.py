"""Teacher-free distillation: a made-up teacher that is nearly always right."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import keras
from keras import ops

from keras_selfdistill.losses.labels import as_one_hot
from keras_selfdistill.recipes.base import TermWeights
from keras_selfdistill.recipes.exit_losses.byot import BYOT
from keras_selfdistill.recipes.fields import check_share, refuse
from keras_selfdistill.utils.config import PACKAGE
from keras_selfdistill.utils.number_checks import is_number
from keras_selfdistill.utils.schedules import Scalar
from keras_selfdistill.utils.type_aliases import (
    ExitTensors,
    Labels,
    Tensor,
    TensorStructure,
)


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherFree(BYOT):
    """`BYOT` whose final exit has a virtual teacher, Tf-KD with regularisation.

    *Revisiting Knowledge Distillation via Label Smoothing Regularization* (Yuan et al.,
    CVPR 2020, arXiv 1909.11723). Loss of the final exit: `(1 − r) · label loss + r ·
    KL(u ‖ p)`, where p is its distribution and `u = softmax(d / τ)` that of a teacher
    that gives the right class `d = a` and each other class `(1 − a) / (K − 1)`; the
    other exits learn from the final one as in `BYOT`. With `taps=0` there is only the
    final exit, and this is the paper's method.

    The defaults are those of the authors' code for ResNet-18 on CIFAR-100. As in that
    code, p has no temperature, so that u is close to uniform; the code takes the mean
    of the divergence over classes times `multiplier`, 100 for 100 classes, which is the
    sum used here. The logs name the second term `virtual_teacher_loss`.

    Args:
        regularization: Share of the virtual teacher, r in [0, 1].
        correct: Probability that it gives the right class, a in (0, 1).
        virtual_temperature: Positive temperature of its prediction, τ.
        **fields: Fields of `BYOT`; `final_label_weight` scales both terms.

    Raises:
        ValueError: A field is out of its range or not finite, or a wrapper's task is
            not multiclass.

    Example:
        >>> TeacherFree(regularization=0.25).weights(["final"])["final"].label
        0.75
    """

    extra_term_names: ClassVar[tuple[str, ...]] = ("virtual_teacher_loss",)
    reads_labels: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...]] = ("multiclass",)

    regularization: Scalar = 0.1
    correct: float = 0.99
    virtual_temperature: float = 20.0

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        check_share(self, "regularization")
        if not is_number(self.correct) or not 0.0 < self.correct < 1.0:
            refuse(self, "correct", "a number between 0 and 1")
        finite = is_number(self.virtual_temperature)
        if not finite or not 0.0 < self.virtual_temperature < float("inf"):
            refuse(self, "virtual_temperature", "a finite number above 0")

    def weights(self, exit_names: Sequence[str]) -> dict[str, TermWeights]:
        """Return the weights of every exit."""
        label = (1.0 - self.regularization) * self.final_label_weight
        return super().weights(exit_names) | {"final": TermWeights(label=label)}

    def extra_terms(
        self,
        labels: Labels,
        exits: Mapping[str, ExitTensors],
        state: keras.Layer | None,
        *,
        inputs: TensorStructure,
        training: bool,
    ) -> dict[str, Tensor]:
        """Return the divergence from the virtual teacher."""
        logits = ops.cast(exits["final"]["logits"], "float32")
        right = as_one_hot(labels, logits)
        others = (1.0 - self.correct) / (logits.shape[-1] - 1)
        virtual = right * self.correct + (1.0 - right) * others
        u = ops.softmax(virtual / self.virtual_temperature)
        loss = ops.sum(u * (ops.log(u) - ops.log_softmax(logits)), axis=-1)
        weight = self.regularization * self.final_label_weight
        return {"virtual_teacher_loss": weight * loss}
