"""The label format of a loss, and checks of labels against it."""

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
from keras_selfdistill.utils.type_aliases import Labels, Tensor

# Label formats, by the loss that takes them: class indices, and one-hot labels.
SPARSE, ONE_HOT = "sparse_categorical_crossentropy", "categorical_crossentropy"


def label_form(loss: losses.Loss, labels: Labels, outputs: Tensor) -> str | None:
    """Return the label format of a loss, `SPARSE` or `ONE_HOT`; `None` if unknown.

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
    """Return the class that a loss ignores, if any."""
    _, options = loss_function(loss)
    return options.get("ignore_class")


def without_ignored(
    loss: losses.Loss, labels: Labels, outputs: Tensor
) -> tuple[Labels, Tensor | None]:
    """Return labels with class 0 for the ignored class, and which are not ignored.

    Args:
        loss: The label loss.
        labels: Labels in the format of the loss.
        outputs: Outputs of the base, shape `(batch, *positions, classes)`.

    Returns:
        The labels, and booleans of shape `(batch, *positions)`, or `None` if the loss
        ignores no class.

    Example:
        >>> import numpy as np
        >>> loss = losses.SparseCategoricalCrossentropy(ignore_class=255)
        >>> _, valid = without_ignored(loss, np.array([255, 1]), np.zeros((2, 3)))
        >>> ops.convert_to_numpy(valid).tolist()
        [False, True]
    """
    ignored = ignored_class(loss)
    if ignored is None or label_form(loss, labels, outputs) != SPARSE:
        return labels, None
    labels = _widened(labels)
    valid = ops.not_equal(labels, ignored)
    labels = ops.where(valid, labels, ops.zeros_like(labels))
    if len(valid.shape) == len(outputs.shape):
        valid = ops.squeeze(valid, axis=-1)
    return labels, valid


def check_form(loss: losses.Loss, labels: Labels, outputs: Tensor) -> None:
    """Refuse class indices where a loss takes one-hot labels, and the reverse.

    Some of Keras' losses would broadcast one to the shape of the other.

    Args:
        loss: The label loss.
        labels: Batch of labels, of a known number of axes.
        outputs: Outputs with several units.

    Raises:
        ValueError: Labels do not have the format of the loss.

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


def check_axis_of_units(
    labels: Labels, outputs: Tensor, sample_weight: Tensor | None
) -> None:
    """Refuse labels without a unit axis if positions have weights or a mask.

    With one unit, Keras' losses would take the mean over the last position axis, whose
    shape weights or masks of positions do not match; if a batch has as many samples as
    positions, Keras would even broadcast them without an error.

    Args:
        labels: Batch of labels, of a known number of axes.
        outputs: Outputs of shape `(batch, *positions, units)`, with or without a mask.
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
            f"Labels lack the unit axis. Received: y of shape "
            f"{tuple(labels.shape)} with {given}. Expected: one more axis, of length "
            "1, as the outputs have: y[..., None]."
        )


def as_one_hot(labels: Labels, logits: Tensor) -> Tensor:
    """Return labels as distributions over classes, in the shape of the logits.

    An index that is no class becomes zeros, on every backend.

    Args:
        labels: Class indices, shape `(batch, ...)` or `(batch, ..., 1)`; or one-hot or
            mixed labels, shape `(batch, ..., classes)`.
        logits: Logits of several classes, shape `(batch, ..., classes)`.

    Example:
        >>> import numpy as np
        >>> print(ops.convert_to_numpy(as_one_hot(np.array([1]), ops.zeros((1, 2)))))
        [[0. 1.]]
    """
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) == len(logits.shape):
        if labels.shape[-1] != 1:
            return ops.cast(labels, logits.dtype)
        labels = ops.squeeze(labels, axis=-1)
    # Not ops.one_hot, which on PyTorch fails on an index beyond the classes.
    indices = ops.expand_dims(ops.cast(labels, "int32"), -1)
    classes = ops.arange(logits.shape[-1], dtype="int32")
    return ops.cast(ops.equal(indices, classes), logits.dtype)


def all_exist(labels: Labels, outputs: Tensor, loss: losses.Loss) -> bool | Tensor:
    """Return whether all class indices are in the range of the outputs, as a scalar.

    One-hot labels always are. An ignored class of the loss is allowed.

    Example:
        >>> import numpy as np
        >>> loss = losses.SparseCategoricalCrossentropy()
        >>> bool(all_exist(np.array([0, 3]), np.zeros((2, 3)), loss))
        False
    """
    if label_form(loss, labels, outputs) != SPARSE:
        return True
    labels = _widened(labels)
    exists = ops.logical_and(labels >= 0, labels < outputs.shape[-1])
    ignored = ignored_class(loss)
    if ignored is not None:
        exists = ops.logical_or(exists, ops.equal(labels, ignored))
    return ops.all(exists)


def _widened(labels: Labels) -> Tensor:
    """Return labels in a dtype that represents them and any number of classes.

    In their own dtype, uint8, a number of 256 classes would become 0.
    """
    labels = ops.convert_to_tensor(labels)
    dtype = keras.backend.standardize_dtype(labels.dtype)
    if "float" in dtype:
        wide = "float64" if dtype == "float64" else "float32"
    else:
        wide = "int64" if dtype in ("int64", "uint64") else "int32"
    return ops.cast(labels, wide)
