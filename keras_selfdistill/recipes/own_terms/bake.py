"""BAKE: similar samples of a batch teach each other, by the mean of what they are."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import keras
from keras import ops

from keras_selfdistill.recipes.fields import refuse
from keras_selfdistill.recipes.own_terms.all_exits import AllExits
from keras_selfdistill.utils.config import PACKAGE
from keras_selfdistill.utils.number_checks import is_number
from keras_selfdistill.utils.schedules import PerExit, Scalar
from keras_selfdistill.utils.type_aliases import (
    ExitTensors,
    Labels,
    Tensor,
    TensorStructure,
)


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class BAKE(AllExits):
    """Every exit also learns from predictions that similar samples agree on.

    *Self-distillation with Batch Knowledge Ensembling Improves ImageNet Classification*
    (Ge et al., 2021, arXiv 2104.13298), with exits. The rows of P are the predictions
    of the final exit for the samples of a batch, at temperature T. A holds how similar
    their features are: the softmax, over all other samples, of the cosine. Then

        Q = (1 − ω) · (I − ω · A)⁻¹ · P

    is what is left of `Q ← ω · A · Q + (1 − ω) · P`, repeated for ever. Loss of each
    exit, the final one included: `label loss + w · T² · KL(Q ‖ exit)`. Q is detached.
    The second term is logged as `batch_ensemble_loss`. With `taps=0` there is only the
    final exit, and this is the paper's method.

    The paper draws batches in which each sample comes with others of its class, three
    for CIFAR-100. That is up to the data passed to `fit`: in batches drawn at random
    from many classes, few samples are alike, and those of other classes teach too.
    Devices that share a batch each compare their own samples.

    With `alpha` above 0, the final exit teaches the others as well, as in `BYOT`.

    Args:
        ensemble_weight: Weight of the ensembled predictions, w, or one for each exit
            and the final one.
        omega: Share of the other samples in a prediction, ω in [0, 1).
        temperature: Positive temperature of the soft targets, T.
        alpha: Share of the final exit's soft targets, or one for each exit but the
            final one.
        hint_weight: Weight of the hint, β, as in `BYOT`.
        **fields: Fields of `BYOT`.

    Raises:
        ValueError: A field is out of its range or not finite; a wrapper's base does
            not predict one class for each sample.

    Example:
        >>> BAKE(ensemble_weight=[0.5, 1.0]).per_exit(
        ...     "ensemble_weight", ["exit_1", "final"])
        {'exit_1': 0.5, 'final': 1.0}
    """

    extra_term_names: ClassVar[tuple[str, ...]] = ("batch_ensemble_loss",)
    term_weights: ClassVar[tuple[str, ...]] = ("ensemble_weight",)

    ensemble_weight: PerExit = 1.0
    omega: float = 0.5
    temperature: Scalar = 4.0

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        if not is_number(self.omega) or not 0.0 <= self.omega < 1.0:
            refuse(self, "omega", "a number from 0 to below 1")

    def make_state(self, base: keras.Model) -> None:
        """Check that a base has one feature for each sample; nothing is remembered."""
        output = tuple(base.outputs[0].shape)
        if len(output) != 2:
            raise ValueError(
                "BAKE compares the features of samples. Received: a base with outputs "
                f"of shape {output}. Expected: one class for each sample, shape "
                "(batch, classes)."
            )

    def extra_terms(
        self,
        labels: Labels,
        exits: Mapping[str, ExitTensors],
        state: keras.Layer | None,
        *,
        inputs: TensorStructure,
        training: bool,
    ) -> dict[str, Tensor]:
        """Return the divergence from the ensembled predictions, summed over exits."""
        final = exits["final"]
        target = ensembled(
            ops.softmax(ops.cast(final["logits"], "float32") / self.temperature),
            ops.cast(final["feature"], "float32"),
            self.omega,
        )
        target = ops.stop_gradient(target)
        weights = self.per_exit("ensemble_weight", list(exits))
        losses = []
        for name, tensors in exits.items():
            logits = ops.cast(tensors["logits"], "float32")
            log_q = ops.log_softmax(logits / self.temperature)
            # 0 · log 0 is 0: a prediction of certainty has zeros.
            log_target = ops.log(ops.maximum(target, 1e-30))
            divergence = ops.sum(target * (log_target - log_q), axis=-1)
            losses.append(weights[name] * self.temperature**2 * divergence)
        return {"batch_ensemble_loss": sum(losses)}


def ensembled(predictions: Tensor, features: Tensor, omega: float) -> Tensor:
    """Return predictions mixed with those of the samples whose features are similar.

    Args:
        predictions: Distributions over classes, shape `(batch, classes)`.
        features: Shape `(batch, width)`.
        omega: Share of the other samples, in [0, 1).

    Example:
        Two samples have but each other: (1 − ω²)⁻¹ · (1 − ω) is ⅔, and ω times that ⅓.

        >>> print(ops.convert_to_numpy(ensembled(ops.eye(2), ops.eye(2), 0.5)).round(3))
        [[0.667 0.333]
         [0.333 0.667]]
    """
    features = ops.normalize(features, axis=-1)
    itself = ops.eye(ops.shape(features)[0], dtype=features.dtype)
    cosines = ops.matmul(features, ops.transpose(features)) - 1e9 * itself
    # Not ops.softmax, which warns of a sample alone; that is its own neighbour.
    others = ops.exp(cosines - ops.logsumexp(cosines, axis=-1, keepdims=True))
    return (1.0 - omega) * ops.solve(itself - omega * others, predictions)
