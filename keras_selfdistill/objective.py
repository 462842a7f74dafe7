"""The training objective: a recipe's weights applied to the exits of one batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_selfdistill.losses import HintLoss, SoftTargetLoss
from keras_selfdistill.recipes import Recipe

_SCALAR_REDUCTIONS = ("sum_over_batch_size", "sum", "mean", "mean_with_sample_weight")


class Objective:
    """Weighted sum of each exit's label, soft-target and hint loss.

    Args:
        recipe: Which exit gets which term.
        exit_names: Shallow to deep; the last one teaches.
        label_loss: What the user gave `compile` as `loss`.

    Raises:
        ValueError: `label_loss` is unknown or does not reduce to a scalar.
        TypeError: `label_loss` is not one loss: the same serves every exit.

    Example:
        >>> from keras_selfdistill import recipes
        >>> loss = "sparse_categorical_crossentropy"
        >>> Objective(recipes.BYOT(), ["exit_1", "final"], loss).terms
        ('label_loss', 'soft_target_loss', 'hint_loss')
    """

    def __init__(self, recipe: Recipe, exit_names: Sequence[str], label_loss: Any):
        self.exit_names = list(exit_names)
        self.weights = recipe.weights(self.exit_names)
        self.label_loss = as_loss(label_loss)
        # Distillation is reduced as the label loss is, so that their ratio does not
        # depend on the batch size.
        reduction = self.label_loss.reduction
        self.soft_target_loss = SoftTargetLoss(recipe.temperature, reduction=reduction)
        self.hint_loss = HintLoss(reduction=reduction)

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms with a weight, in the order of the logs."""
        used = ["label_loss"]
        if any(weights.soft_target for weights in self.weights.values()):
            used.append("soft_target_loss")
        if any(weights.hint for weights in self.weights.values()):
            used.append("hint_loss")
        return tuple(used)

    def __call__(
        self, labels: Any, exits: Mapping[str, Mapping[str, Any]], sample_weight: Any
    ) -> dict[str, Any]:
        """Return the value of each term, summed over exits with their weights.

        Args:
            labels: What the label loss takes, e.g. shape `(batch,)`.
            exits: For every exit its `output` and `logits`, shape `(batch, classes)`,
                and `feature`, shape `(batch, width)`.
            sample_weight: `None` or shape `(batch,)`; scales every term.

        Returns:
            Mapping of the names in `terms` to scalars.
        """
        teacher = exits[self.exit_names[-1]]
        teacher_logits = ops.stop_gradient(teacher["logits"])
        teacher_feature = ops.stop_gradient(teacher["feature"])
        values: dict[str, list[Any]] = {term: [] for term in self.terms}
        for name, weights in self.weights.items():
            tensors = exits[name]
            if weights.label:
                loss = self.label_loss(labels, tensors["output"], sample_weight)
                values["label_loss"].append(weights.label * loss)
            if weights.soft_target:
                loss = self.soft_target_loss(
                    teacher_logits, tensors["logits"], sample_weight
                )
                values["soft_target_loss"].append(weights.soft_target * loss)
            if weights.hint:
                loss = self.hint_loss(
                    teacher_feature, tensors["feature"], sample_weight
                )
                values["hint_loss"].append(weights.hint * loss)
        return {
            term: sum(losses, start=ops.zeros(())) for term, losses in values.items()
        }


def as_loss(identifier: Any) -> keras.losses.Loss:
    """Return a Keras loss for anything that `compile` takes as the loss of one output.

    Args:
        identifier: Name, function `(y_true, y_pred) -> per-sample values`, or `Loss`.

    Raises:
        ValueError: The name is unknown, or the loss does not reduce to a scalar.
        TypeError: `identifier` is missing or a collection.

    Example:
        >>> as_loss("sparse_categorical_crossentropy").name
        'sparse_categorical_crossentropy'
    """
    if identifier is None or isinstance(identifier, (dict, list, tuple)):
        raise TypeError(
            "`compile` needs one loss, which serves every exit. Received: "
            f"loss={identifier!r}. Expected: what you would pass for the base, e.g. "
            "loss='sparse_categorical_crossentropy'. The recipe weighs the exits."
        )
    if isinstance(identifier, str) and identifier.lower() in ("crossentropy", "ce"):
        return _FunctionLoss(crossentropy, name=identifier)
    loss = keras.losses.get(identifier)
    if not isinstance(loss, keras.losses.Loss):
        name = identifier if isinstance(identifier, str) else None
        return _FunctionLoss(loss, name=name or getattr(loss, "__name__", None))
    if loss.reduction not in _SCALAR_REDUCTIONS:
        raise ValueError(
            "The loss must reduce to a scalar. Received: a loss with "
            f"reduction={loss.reduction!r}. Expected one of {_SCALAR_REDUCTIONS}."
        )
    return loss


class _FunctionLoss(keras.losses.Loss):
    """A plain function as a Keras loss with the default reduction."""

    def __init__(self, function, name=None):
        super().__init__(name=name)
        self.function = function

    def call(self, y_true, y_pred):
        return self.function(y_true, y_pred)


def crossentropy(y_true: Any, y_pred: Any) -> Any:
    """Return the crossentropy of each sample, for sparse or one-hot labels."""
    if is_sparse(y_true, y_pred):
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred)
    return keras.losses.categorical_crossentropy(y_true, y_pred)


def is_sparse(labels: Any, outputs: Any) -> bool:
    """Tell class indices, shape `(batch,)` or `(batch, 1)`, from rows of scores."""
    return len(labels.shape) < len(outputs.shape) or labels.shape[-1] == 1


def check_labels(labels: Any, classes: int) -> None:
    """Refuse labels that no classifier could be trained with.

    Args:
        labels: Batch of labels.
        classes: How many the base tells apart.

    Raises:
        ValueError: `labels` is missing, a collection, or neither class indices nor
            one row of `classes` scores per sample.

    Example:
        >>> import numpy as np
        >>> check_labels(np.zeros((8, 10)), classes=10)
    """
    expected = (
        f"Expected: one array for all exits, of class indices with shape (batch,) or "
        f"(batch, 1), or of one-hot or soft labels with shape (batch, {classes})."
    )
    if getattr(getattr(labels, "shape", ()), "rank", 0) is None:
        return  # A tf.data set that does not say: the loss will.
    if not hasattr(labels, "shape"):
        raise ValueError(
            f"Received labels: {type(labels).__name__}. {expected} The wrapper hands "
            "the same labels to every exit."
        )
    shape = tuple(labels.shape)
    if len(shape) == 1 or (len(shape) == 2 and shape[-1] in (1, classes, None)):
        return
    raise ValueError(f"Received labels of shape {shape}. {expected}")
