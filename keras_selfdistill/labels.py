"""What users give as loss: one, for every exit."""

from typing import Any

import keras
from keras import ops
from keras.src.losses.loss import squeeze_or_expand_to_same_rank

from keras_selfdistill.config import unknown_name

# The kinds of losses that say how labels are given: by number or as rows.
NAMES, ROWS = "sparse_categorical_crossentropy", "categorical_crossentropy"
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
        return _FunctionLoss(crossentropy, name=identifier.lower())
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
        # As Keras does around functions: flat labels fit a network with one output.
        return self.function(*squeeze_or_expand_to_same_rank(y_true, y_pred))


def crossentropy(y_true: Any, y_pred: Any) -> Any:
    """Return the crossentropy of each sample, for sparse or one-hot labels."""
    if is_sparse(y_true, y_pred):
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred)
    return keras.losses.categorical_crossentropy(y_true, y_pred)


def is_sparse(labels: Any, outputs: Any) -> bool:
    """Tell class indices, shape `(batch,)` or `(batch, 1)`, from rows of scores."""
    return len(labels.shape) < len(outputs.shape) or labels.shape[-1] == 1


def kind_of(loss: keras.losses.Loss) -> str:
    """Return `NAMES`, `ROWS`, or the name of a loss that says less of its labels."""
    if isinstance(loss, keras.losses.SparseCategoricalCrossentropy):
        return NAMES
    if isinstance(loss, keras.losses.CategoricalCrossentropy):
        return ROWS
    return loss.name


def reads_numbers(loss: keras.losses.Loss, labels: Any, outputs: Any) -> bool:
    """Tell whether a loss takes the labels for class numbers, not for rows."""
    kind = kind_of(loss)
    either = kind in ("crossentropy", "ce")
    return kind == NAMES or (either and is_sparse(labels, outputs))


def all_exist(labels: Any, outputs: Any, loss: keras.losses.Loss) -> Any:
    """Return whether all labels are classes that the outputs have, as a scalar.

    Only class indices can be others; a class that the loss leaves out is fine.

    Example:
        >>> import numpy as np
        >>> loss = as_loss("sparse_categorical_crossentropy")
        >>> bool(all_exist(np.array([0, 3]), np.zeros((2, 3)), loss))
        False
    """
    if not reads_numbers(loss, labels, outputs):
        return True
    exists = ops.logical_and(labels >= 0, labels < outputs.shape[-1])
    ignored = getattr(loss, "ignore_class", None)
    if ignored is not None:
        exists = ops.logical_or(exists, ops.equal(labels, ignored))
    return ops.all(exists)
