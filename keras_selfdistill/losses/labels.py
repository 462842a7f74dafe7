"""The form that a loss takes labels in, and whether labels are classes of the base."""

from typing import Any

import keras
from keras import losses, ops

from keras_selfdistill.losses.label_loss import (
    ONE_HOT_LOSSES,
    SPARSE_LOSSES,
    crossentropy,
    is_one_of,
    is_sparse,
)
from keras_selfdistill.utils.keras_internals import loss_function, mask_of

# Classes as indices, and one number for each class: a loss for each.
SPARSE, ONE_HOT = "sparse_categorical_crossentropy", "categorical_crossentropy"


def label_form(loss: losses.Loss, labels: Any, outputs: Any) -> str | None:
    """Return `SPARSE` or `ONE_HOT`, as a loss takes labels, or `None` if it is open.

    Example:
        >>> import numpy as np
        >>> label_form(losses.CategoricalHinge(), np.zeros((8,)), np.zeros((8, 3)))
        'categorical_crossentropy'
    """
    function, _ = loss_function(loss)
    if function is crossentropy:
        return SPARSE if is_sparse(labels, outputs) else ONE_HOT
    if is_one_of(function, SPARSE_LOSSES):
        return SPARSE
    return ONE_HOT if is_one_of(function, ONE_HOT_LOSSES) else None


def ignored_class(loss: losses.Loss) -> int | None:
    """Return the class that a loss leaves out, if any."""
    _, options = loss_function(loss)
    return options.get("ignore_class")


def check_form(loss: losses.Loss, labels: Any, outputs: Any) -> None:
    """Refuse class indices where a loss takes one-hot labels, and the reverse.

    Some of Keras' losses would stretch one to the shape of the other.

    Args:
        loss: The loss of the labels.
        labels: Batch of labels, of a known number of axes.
        outputs: Of several units.

    Raises:
        ValueError: Labels have the form that the loss does not take.

    Example:
        >>> import numpy as np
        >>> loss = losses.SparseCategoricalCrossentropy()
        >>> check_form(loss, np.zeros((8,)), np.zeros((8, 3)))
    """
    found = SPARSE if is_sparse(labels, outputs) else ONE_HOT
    if label_form(loss, labels, outputs) in (None, found):
        return
    one_hot = ("samples", *outputs.shape[1:])
    expected = one_hot if found == SPARSE else one_hot[:-1]
    raise ValueError(
        f"Labels do not fit the loss. Received: y of shape {tuple(labels.shape)} with "
        f"loss {loss.name!r}. Expected: shape {expected}, or loss={found!r}."
    )


def check_axis_of_units(labels: Any, outputs: Any, sample_weight: Any) -> None:
    """Refuse labels without an axis of units where each position has a weight.

    Of one unit, Keras' losses then take the mean over the last positions, which no
    weights or mask of positions fit; where a batch has as many samples as there are
    positions, Keras would multiply them all the same.

    Args:
        labels: Batch of labels, of a known number of axes.
        outputs: Of shape `(batch, *positions, units)`, with a mask or without.
        sample_weight: `None`, or weights of samples or positions.

    Raises:
        ValueError: Labels of one unit lack their last axis.

    Example:
        >>> import numpy as np
        >>> weight = np.ones((8, 4))
        >>> check_axis_of_units(np.zeros((8, 4, 1)), np.zeros((8, 4, 1)), weight)
    """
    rank = len(outputs.shape)
    if outputs.shape[-1] != 1 or rank < 3 or len(labels.shape) != rank - 1:
        return
    weights = () if sample_weight is None else tuple(sample_weight.shape)
    weighted = any(size != 1 for size in weights[1:])
    if weighted or mask_of(outputs) is not None:
        given = f"sample weights of shape {weights}" if weighted else "a mask"
        raise ValueError(
            f"Labels lack the axis of units. Received: y of shape "
            f"{tuple(labels.shape)} with {given}. Expected: one more axis, of length "
            "1, as the outputs have: y[..., None]."
        )


def all_exist(labels: Any, outputs: Any, loss: losses.Loss) -> Any:
    """Return whether all labels are classes that the outputs have, as a scalar.

    Only class indices can be others; a class that the loss leaves out is fine.

    Example:
        >>> import numpy as np
        >>> loss = losses.SparseCategoricalCrossentropy()
        >>> bool(all_exist(np.array([0, 3]), np.zeros((2, 3)), loss))
        False
    """
    if label_form(loss, labels, outputs) != SPARSE:
        return True
    # Compared in the labels' own dtype, 256 classes would be 0 in uint8.
    labels = ops.convert_to_tensor(labels)
    labels = ops.cast(labels, _wide(keras.backend.standardize_dtype(labels.dtype)))
    exists = ops.logical_and(labels >= 0, labels < outputs.shape[-1])
    ignored = ignored_class(loss)
    if ignored is not None:
        exists = ops.logical_or(exists, ops.equal(labels, ignored))
    return ops.all(exists)


def _wide(dtype):
    """Return a dtype that holds the values of another and any number of classes."""
    if "float" in dtype:
        return "float64" if dtype == "float64" else "float32"
    return "int64" if dtype in ("int64", "uint64") else "int32"
