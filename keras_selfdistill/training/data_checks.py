"""Checks of the data of `fit`, before training begins."""

from collections.abc import Mapping, Sequence

import keras
import numpy as np

from keras_selfdistill.graph.task import Task
from keras_selfdistill.losses.labels import (
    SPARSE,
    check_form,
    ignored_class,
    label_form,
)
from keras_selfdistill.utils.type_aliases import (
    Data,
    Labels,
    Shape,
    SymbolicTensor,
    Tensor,
)

_CHUNK = 1 << 20  # Values checked at once, to limit the memory of temporary arrays.


def check_training_data(
    x: Data,
    y: Labels,
    sample_weight: Tensor | None,
    *,
    base: keras.Model,
    task: Task,
    label_loss: keras.losses.Loss,
    class_weight: Mapping[int, float] | None = None,
) -> None:
    """Refuse arrays that do not fit the base, or that would make its weights NaN.

    Of datasets, loaders and generators only the length is checked, because their
    batches are not known yet.

    Args:
        x: Samples as `fit` takes them.
        y: Labels as `fit` takes them.
        sample_weight: Weights of the samples, or `None`.
        base: Model with the inputs and outputs of the wrapper.
        task: Task of the base.
        label_loss: Label loss; it may have an ignored class.
        class_weight: Weights of the classes, or `None`.

    Raises:
        TypeError: An array is not numeric.
        ValueError: Data are empty; arrays have other shapes than the base or the loss
            takes, different lengths, or values that are not finite; labels are not
            classes of the base; or there are class weights for labels at positions.

    Example:
        >>> base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> check_training_data(
        ...     np.ones((2, 4)),
        ...     np.array([0, 2]),
        ...     None,
        ...     base=base,
        ...     task=Task("multiclass", 3, None),
        ...     label_loss=keras.losses.SparseCategoricalCrossentropy(),
        ... )
    """
    arrays = [
        (name, array)
        for name, value in (("x", x), ("y", y), ("sample_weight", sample_weight))
        for array in keras.tree.flatten(value)
        if isinstance(array, np.ndarray)
    ]
    _check_length(x)
    _check_class_weight(class_weight, task)
    reads_text = any(tensor.dtype == "string" for tensor in base.inputs)
    for name, array in arrays:
        if name != "x" or not reads_text:
            _check_numbers(name, array)
    if isinstance(x, np.ndarray) and len(base.inputs) == 1:
        _check_shape(x, base.inputs[0].shape)
    _check_lengths(arrays)
    check_labels(y, base=base, task=task, label_loss=label_loss)


def check_labels(
    y: Labels, *, base: keras.Model, task: Task, label_loss: keras.losses.Loss
) -> None:
    """Refuse an array of labels that are not classes of the base.

    Args:
        y: Labels as `fit` and `evaluate` take them.
        base: Model with the outputs of the wrapper.
        task: Task of the base.
        label_loss: Label loss; it may have an ignored class.

    Raises:
        ValueError: They have another form than the loss takes, or other classes.
    """
    if isinstance(y, np.ndarray) and task.name == "multiclass":
        task.check_labels(y)
        _check_labels(y, base.outputs[0], label_loss)


def _check_length(x: Data) -> None:
    try:
        length = 0 if x is None else len(x)
    except TypeError:  # A generator, or a dataset of unknown length.
        return
    if not length:
        kind = "x=None" if x is None else f"{type(x).__name__} of length 0"
        raise ValueError(
            f"Training needs data. Received: {kind}. Expected: at least one sample or "
            "batch."
        )


def _check_class_weight(class_weight: Mapping[int, float] | None, task: Task) -> None:
    if class_weight and any(size != 1 for size in task.positions):
        # Keras would take the position of the largest label as the class of a sample.
        raise ValueError(
            "Keras does not support class weights for labels at positions. Received: "
            f"class_weight={class_weight!r} for a base with a prediction at each of "
            f"{task.positions} positions. Expected: sample_weight with the weight of "
            "each label, e.g. np.take(weights, y)."
        )


def _check_numbers(name: str, array: np.ndarray) -> None:
    if array.dtype.kind not in "biufV":  # V is bfloat16.
        raise TypeError(
            f"`{name}` must be numeric. Received: {name} of shape {array.shape} and "
            f"dtype {array.dtype}. Convert it, e.g. {name}.astype('float32'), or map "
            "words to indices with keras.layers.StringLookup."
        )
    if array.dtype.kind in "biu":
        return
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        if not np.isfinite(part).all():
            first = start + int(np.argmin(np.isfinite(part)))
            place = tuple(map(int, np.unravel_index(first, array.shape)))
            raise ValueError(
                f"`{name}` must be finite. Received: {name} of shape {array.shape} "
                f"with {flat[first]} at {place}, which would make weights NaN. "
                f"Expected: finite numbers; remove such samples"
                f"{'' if name == 'y' else f', or np.nan_to_num({name})'}."
            )


def _check_shape(x: np.ndarray, expected: Shape) -> None:
    shape = x.shape
    # Keras adds or removes a last axis of length 1.
    if len(shape) == len(expected) - 1 and expected[-1] == 1:
        shape = (*shape, 1)
    elif len(shape) == len(expected) + 1 and shape[-1] == 1:
        shape = shape[:-1]
    sizes = zip(shape[1:], expected[1:], strict=False)
    if len(shape) != len(expected) or any(b not in (None, a) for a, b in sizes):
        alone = " For one sample pass x[None]." if x.shape == expected[1:] else ""
        raise ValueError(
            f"`x` does not fit the input of the base. Received: x of shape {x.shape}. "
            f"Expected: shape {('samples', *expected[1:])}.{alone}"
        )


def _check_lengths(arrays: Sequence[tuple[str, np.ndarray]]) -> None:
    lengths = {name: len(array) for name, array in arrays}
    if any(len(array) != lengths["x"] for _, array in arrays if "x" in lengths):
        given = ", ".join(f"{name} of shape {array.shape}" for name, array in arrays)
        raise ValueError(
            f"Arrays have different numbers of samples. Received: {given}. Expected: "
            "arrays with the same first axis."
        )


def _check_labels(
    labels: np.ndarray, output: SymbolicTensor, loss: keras.losses.Loss
) -> None:
    """Refuse labels of another form than the loss takes, or beyond the classes."""
    check_form(loss, labels, output)
    if label_form(loss, labels, output) != SPARSE:
        return
    ignored = ignored_class(loss)
    classes = output.shape[-1]
    valid = np.isin(labels, np.arange(classes))
    if ignored is not None:
        valid |= labels == ignored
    if not valid.all():
        raise ValueError(
            "Labels are out of range. Received: y of shape "
            f"{labels.shape} with {labels[~valid].reshape(-1)[0]}. Expected: class "
            f"indices from 0 to {classes - 1}; to ignore a label, use loss=keras."
            "losses.SparseCategoricalCrossentropy(ignore_class=...)."
        )
