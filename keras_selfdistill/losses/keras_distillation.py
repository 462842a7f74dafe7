"""Losses of `keras.distillation` between an exit and its teacher."""

import dataclasses
import inspect
import math
import numbers
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras.distillation import (
    DistillationLoss,
    FeatureDistillation,
    LogitsDistillation,
)

from keras_selfdistill.utils.schedules import PerExit, at_step, by_exit, is_schedule
from keras_selfdistill.utils.type_aliases import Labels, Tensor


@dataclasses.dataclass(frozen=True)
class PairLoss:
    """A loss of `keras.distillation` and its weight.

    Args:
        loss: Loss of features if it is a `FeatureDistillation`, else of logits.
        weight: Factor on its value, or a schedule of it, or one for each exit that has
            a teacher.
    """

    loss: DistillationLoss
    weight: PerExit = 1.0

    def __call__(
        self,
        teacher: Mapping[str, Tensor],
        student: Mapping[str, Tensor],
        labels: Labels = None,
    ) -> Tensor:
        """Return the loss without weight, a mean over the batch.

        Args:
            teacher: Tensors `logits` and `feature` of the teacher.
            student: Tensors `logits` and `feature` of the exit.
            labels: Labels of the batch, for a loss whose `compute_loss` takes `labels`.
        """
        kind = "feature" if isinstance(self.loss, FeatureDistillation) else "logits"
        takes_labels = "labels" in inspect.signature(self.loss.compute_loss).parameters
        further = {"labels": labels} if takes_labels else {}
        return self.loss.compute_loss(teacher[kind], student[kind], **further)

    def weights(
        self, exit_names: Sequence[str], step: int | Tensor = 0
    ) -> dict[str, float | Tensor]:
        """Return the weight of each exit at a step.

        Args:
            exit_names: Names of the exits that have a teacher, shallow to deep.
            step: Number of training steps so far, for schedules.

        Raises:
            ValueError: There are more or fewer weights, or other names, than exits.

        Example:
            >>> pair = PairLoss(FeatureDistillation("mse"), {"exit_1": 2.0})
            >>> pair.weights(["exit_1"])
            {'exit_1': 2.0}
        """
        weight = at_step(self.weight, step)
        return by_exit(weight, exit_names, "A weight of `distillation_loss_weights`")


def pair_losses(
    losses: Sequence[DistillationLoss] | None, weights: Sequence[PerExit] | None
) -> list[PairLoss]:
    """Check the user's losses and weights and return them as pairs.

    `LogitsDistillation` with its default loss applies Keras' KL *function* to clipped
    logits, which is not a divergence of distributions and has almost no gradient. It is
    replaced, with a warning, by one with the KL *object*, which Keras calls with
    softmax probabilities and scales by T².

    Args:
        losses: `keras.distillation` losses, or `None`.
        weights: Weights of the losses, or schedules, or a list or dict of one for each
            exit; all 1 if `None`.

    Raises:
        TypeError: An argument is not a list, or a loss is not of `keras.distillation`.
        ValueError: The lengths differ, a weight is negative, or a loss names layers.

    Example:
        >>> found = pair_losses([keras.distillation.FeatureDistillation("mse")], [0.5])
        >>> [(type(each.loss).__name__, each.weight) for each in found]
        [('FeatureDistillation', 0.5)]
    """
    for argument, given in (("losses", losses), ("loss_weights", weights)):
        if given is not None and not isinstance(given, (list, tuple)):
            raise TypeError(
                f"`distillation_{argument}` must be a list. Received: "
                f"{given!r} of type {type(given).__name__}."
            )
    losses = losses or []
    weights = [1.0] * len(losses) if weights is None else weights
    if len(losses) != len(weights):
        raise ValueError(
            "`distillation_losses` and `distillation_loss_weights` must have the same "
            f"length. Received: {len(losses)} losses and {len(weights)} weights."
        )
    return [_pair_loss(*each) for each in zip(losses, weights, strict=True)]


def _pair_loss(loss: DistillationLoss, weight: PerExit) -> PairLoss:
    if not isinstance(loss, DistillationLoss):
        raise TypeError(
            "`distillation_losses` must hold losses of keras.distillation. Received: "
            f"{loss!r} of type {type(loss).__name__}. Expected, e.g., "
            "keras.distillation.FeatureDistillation(loss='mse')."
        )
    weight = _checked_weight(weight)
    if isinstance(loss, FeatureDistillation) and (
        loss.teacher_layer_name or loss.student_layer_name
    ):
        raise ValueError(
            "The wrapper compares the exits' own features. Received: "
            f"FeatureDistillation(teacher_layer_name={loss.teacher_layer_name!r}, "
            f"student_layer_name={loss.student_layer_name!r}). Leave the names out; "
            "`taps` chooses the layers."
        )
    if isinstance(loss, LogitsDistillation) and _is_kl_function(loss.loss):
        warnings.warn(
            "LogitsDistillation(loss='kl_divergence'), its default, does not compute "
            "a Kullback-Leibler divergence: it compares clipped logits. Using "
            "loss=keras.losses.KLDivergence() instead.",
            stacklevel=4,
        )
        kl = keras.losses.KLDivergence()
        loss = LogitsDistillation(temperature=loss.temperature, loss=kl)
    return PairLoss(loss, weight)


def _checked_weight(weight: Any) -> Any:
    """Return a weight, or the weights of exits, as floats and schedules."""
    if isinstance(weight, Mapping):
        return {name: _checked_weight(each) for name, each in weight.items()}
    if isinstance(weight, (list, tuple)):
        return [_checked_weight(each) for each in weight]
    if is_schedule(weight):
        return weight
    number = isinstance(weight, numbers.Real) and not isinstance(weight, bool)
    if not (number and 0 <= float(weight) < math.inf):
        raise ValueError(
            "A weight of `distillation_loss_weights` must be a finite number of at "
            "least 0, or a schedule, or a list or dict of one for each exit. Received: "
            f"{weight!r}."
        )
    return float(weight)


def _is_kl_function(loss: object) -> bool:
    return loss is keras.losses.kl_divergence
