"""What users give as loss: one, for every exit."""

from typing import Any

import keras

from keras_selfdistill.config import unknown_name

_SCALAR_REDUCTIONS = ("sum_over_batch_size", "sum", "mean", "mean_with_sample_weight")


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
    try:
        loss = keras.losses.get(identifier)
    except ValueError as error:
        raise unknown_name("loss", identifier, keras.losses) from error
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
