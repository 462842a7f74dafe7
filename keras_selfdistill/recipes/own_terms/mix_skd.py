"""MixSKD: what exits predict of mixed samples and of their parts teaches both."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import keras
import numpy as np
from keras import ops

from keras_selfdistill.graph.flatten import flatten
from keras_selfdistill.graph.nodes import model_nodes
from keras_selfdistill.losses.labels import as_one_hot
from keras_selfdistill.losses.soft_target import soft_target_divergence
from keras_selfdistill.recipes.fields import refuse
from keras_selfdistill.recipes.own_terms.all_exits import AllExits
from keras_selfdistill.utils.config import PACKAGE
from keras_selfdistill.utils.number_checks import is_number
from keras_selfdistill.utils.schedules import PerExit
from keras_selfdistill.utils.type_aliases import (
    ExitTensors,
    Labels,
    Tensor,
    TensorStructure,
)

_QUANTILES = 1024


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class MixSKD(AllExits):
    """Every exit also learns from mixed samples, and from what it says of their parts.

    *MixSKD: Self-Knowledge Distillation from Mixup* (Yang et al., ECCV 2022, arXiv
    2208.05768), its terms on logits. A training step sees each sample x and a mixture
    `λ · x + (1 − λ) · x′` with another sample of the batch. Loss of each exit, the
    final one included:

    - `label loss` of x,
    - `u · L(λ · y + (1 − λ) · y′, m)`, the crossentropy of the mixture's logits m,
      logged as `mixed_label_loss`,
    - `w · T² · [KL(z̄ ‖ m) + KL(m ‖ z̄)]`, each with its first argument detached, where
      `z̄ = λ · z + (1 − λ) · z′` mixes the logits of the parts; logged as
      `interpolation_loss`.

    Left out are the paper's self-teacher, a further classifier of all exits' features
    that teaches the final exit (here it learns as the others do); the squared distance
    of feature maps; and the discriminator of features. The authors' exits repeat the
    base's stages; here they have the separable head.

    The partner x′ is the next sample of the batch, and λ of the i-th of n samples is
    the quantile (i + ½)/n of Beta(a, a): a stratified draw, if the order of samples is
    random, as `fit` makes it. The paper draws one λ for each batch.

    Samples and mixtures are one batch, also to batch normalisation, as in the authors'
    code: a step takes twice the computation and memory. Evaluation computes neither
    the mixtures nor their terms.

    Sample weights are those of x. A label that is no class, such as -1 with
    `ignore_class=-1`, adds nothing to the mixed labels; an ignored class that is one of
    the base's own is not left out of them. Label smoothing in the loss of
    `compile` does not apply to these. `LabelWarmUp` leaves both terms out, as it does
    every term but the label loss. With `taps=0` the base learns alone. With `alpha`
    above 0, the final exit teaches the others as well, as in `BYOT`.

    Args:
        mixup_alpha: Parameter of Beta(a, a), a number above 0: the greater, the more
            even are the mixtures.
        mixed_label_weight: Weight of the mixed labels, u, or one for each exit and the
            final one.
        interpolation_weight: Weight of the interpolation, w, or one for each exit and
            the final one.
        alpha: Share of the final exit's soft targets, or one for each exit but the
            final one.
        hint_weight: Weight of the hint, β, as in `BYOT`.
        **fields: Fields of `BYOT`.

    Raises:
        ValueError: A field is out of its range or not finite; a wrapper's base does
            not predict one class for each sample, or reads what cannot be mixed.

    Example:
        >>> views = MixSKD(mixup_alpha=1.0).views(ops.eye(2), training=True)
        >>> ops.convert_to_numpy(views[1]).tolist()  # λ is ¼, then ¾.
        [[0.25, 0.75], [0.25, 0.75]]
    """

    extra_term_names: ClassVar[tuple[str, ...]] = (
        "mixed_label_loss",
        "interpolation_loss",
    )
    term_weights: ClassVar[tuple[str, ...]] = (
        "mixed_label_weight",
        "interpolation_weight",
    )

    mixup_alpha: float = 0.4
    mixed_label_weight: PerExit = 1.0
    interpolation_weight: PerExit = 1.0

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        finite = is_number(self.mixup_alpha)
        if not finite or not 0.0 < self.mixup_alpha < float("inf"):
            refuse(self, "mixup_alpha", "a finite number above 0")

    def make_state(self, base: keras.Model) -> None:
        """Check that samples of a base can be mixed; nothing is remembered."""
        received = _unmixable(base)
        if received:
            raise ValueError(
                "MixSKD mixes samples, such as images, and their classes. Received: "
                f"a base with {received}. Expected: inputs of a float dtype that are "
                "not ids, and one class for each sample."
            )

    def views(
        self, inputs: TensorStructure, *, training: bool
    ) -> list[TensorStructure]:
        """Return the batch, and in training its mixtures."""
        if not training:
            return [inputs]
        inputs = keras.tree.map_structure(_as_float, inputs)
        share = self._shares(keras.tree.flatten(inputs)[0])
        mixed = keras.tree.map_structure(lambda each: _mixed(each, share), inputs)
        return [inputs, mixed]

    def extra_terms(
        self,
        labels: Labels,
        exits: Mapping[str, ExitTensors],
        state: keras.Layer | None,
        *,
        inputs: TensorStructure,
        training: bool,
    ) -> dict[str, Tensor]:
        """Return the losses of the mixtures, summed over the exits."""
        if not training:
            return {}
        share = self._shares(keras.tree.flatten(inputs)[0])
        of_labels = self.per_exit("mixed_label_weight", list(exits))
        of_parts = self.per_exit("interpolation_weight", list(exits))
        label_losses, divergences = [], []
        for name, tensors in exits.items():
            logits = ops.cast(tensors["logits"], "float32")  # (batch, views, classes)
            parts, mixture = _mixed(logits[:, 0], share), logits[:, 1]
            target = _mixed(as_one_hot(labels, mixture), share)
            loss = -ops.sum(target * ops.log_softmax(mixture), axis=-1)
            label_losses.append(of_labels[name] * loss)
            divergence = self._divergence(parts, mixture)
            divergence += self._divergence(mixture, parts)
            divergences.append(of_parts[name] * divergence)
        return {
            "mixed_label_loss": sum(label_losses),
            "interpolation_loss": sum(divergences),
        }

    def _divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        teacher = ops.stop_gradient(teacher)
        return soft_target_divergence(teacher, student, temperature=self.temperature)

    def _shares(self, samples: Tensor) -> Tensor:
        """Return λ of each sample of a batch, the same for the views and the terms."""
        number = ops.shape(samples)[0]
        places = ops.cast(ops.arange(number), "float32") + 0.5
        places = places / ops.cast(number, "float32")
        quantiles = ops.convert_to_tensor(_quantiles(self.mixup_alpha), "float32")
        return ops.take(quantiles, ops.cast(ops.round(places * _QUANTILES), "int32"))


def _unmixable(base: keras.Model) -> str | None:
    """Return what of a base cannot be mixed, if anything."""
    output = tuple(base.outputs[0].shape)
    if len(output) != 2:
        return f"outputs of shape {output}"
    dtypes = [keras.backend.standardize_dtype(each.dtype) for each in base.inputs]
    if not all(map(keras.backend.is_float_dtype, dtypes)):
        return f"inputs of dtype {', '.join(dtypes)}"
    for node in model_nodes(flatten(base).model):
        if isinstance(node.operation, keras.layers.Embedding):
            return f"an embedding, {node.operation.name!r}"
    return None


def _quantiles(alpha: float) -> np.ndarray:
    """Return the quantiles 0, 1/1024, …, 1 of Beta(alpha, alpha), in float64."""
    # Up to the median; the distribution is symmetric. Below 1 its density has a pole
    # at 0, which it has not as a function of t = x^alpha.
    power = min(alpha, 1.0)
    t = np.linspace(0.0, 0.5**power, 8193)
    density = t ** (alpha / power - 1.0) * (1.0 - t ** (1.0 / power)) ** (alpha - 1.0)
    area = np.append(0.0, np.cumsum(density[1:] + density[:-1]))
    places = np.linspace(0.0, 1.0, _QUANTILES // 2 + 1)
    lower = np.interp(places, area / area[-1], t) ** (1.0 / power)
    return np.append(lower, 1.0 - lower[-2::-1])


def _mixed(samples: Tensor, share: Tensor) -> Tensor:
    """Return each sample mixed with the next one."""
    share = ops.cast(share, samples.dtype)
    share = ops.reshape(share, (-1, *[1] * (len(samples.shape) - 1)))
    return share * samples + (1.0 - share) * ops.roll(samples, -1, axis=0)


def _as_float(samples: Tensor) -> Tensor:
    """Return samples as numbers that can be mixed; images may be uint8."""
    samples = ops.convert_to_tensor(samples)
    if keras.backend.is_float_dtype(keras.backend.standardize_dtype(samples.dtype)):
        return samples
    return ops.cast(samples, keras.config.floatx())
