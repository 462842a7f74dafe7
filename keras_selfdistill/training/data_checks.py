"""Refuse data that nothing can be learned from, before training begins."""

from typing import Any

import keras
import numpy as np

from keras_selfdistill.graph.task import Task
from keras_selfdistill.losses.labels import (
    SPARSE,
    check_form,
    ignored_class,
    label_form,
)

_CHUNK = 1 << 20  # Values looked at together: a copy of all would take memory.


def check_training_data(
    x: Any,
    y: Any,
    sample_weight: Any,
    *,
    base: keras.Model,
    task: Task,
    label_loss: keras.losses.Loss,
    class_weight: Any = None,
) -> None:
    """Refuse arrays that the base cannot read, or that would ruin its weights.

    Data sets, loaders and generators are asked for their length alone: their batches
    are not known yet.

    Args:
        x: Samples as `fit` takes them.
        y: Labels as `fit` takes them.
        sample_weight: Weights of the samples, or `None`.
        base: The model that is trained, which says what it reads and answers.
        task: What the base answers.
        label_loss: The loss of the labels; one that leaves a class out says which.
        class_weight: Weights of the classes, or `None`.

    Raises:
        TypeError: An array holds no numbers.
        ValueError: Data are empty, of other shapes than the base or the loss reads, of
            different lengths, or hold what is no finite number, or labels are no
            classes of the base, or there are class weights and labels at positions.

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
    if isinstance(y, np.ndarray) and task.name == "multiclass":
        task.check_labels(y)
        _check_labels(y, base.outputs[0], label_loss)


def _check_length(x):
    try:
        length = 0 if x is None else len(x)
    except TypeError:  # It has none, as generators, or does not know it.
        return
    if not length:
        kind = "x=None" if x is None else f"{type(x).__name__} of length 0"
        raise ValueError(
            f"There is nothing to learn from. Received: {kind}. Expected: at least one "
            "sample or batch."
        )


def _check_class_weight(class_weight, task):
    if class_weight and any(size != 1 for size in task.positions):
        # Keras takes the place of the largest label for the class of a sample.
        raise ValueError(
            "Keras weighs no classes of labels at positions. Received: class_weight="
            f"{class_weight!r} for a base with an answer at each of {task.positions} "
            "positions. Expected: sample_weight, the weight of each label, e.g. "
            "np.take(weights, y)."
        )


def _check_numbers(name, array):
    if array.dtype.kind not in "biufV":  # V is bfloat16.
        raise TypeError(
            f"`{name}` must hold numbers. Received: {name} of shape {array.shape} and "
            f"dtype {array.dtype}. Convert it, e.g. {name}.astype('float32'), or put "
            "words through keras.layers.StringLookup first."
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
                f"Weights would become NaN. Received: {name} of shape {array.shape} "
                f"with {flat[first]} at {place}. Expected: finite numbers, e.g. "
                f"np.nan_to_num({name}), or leave such samples out."
            )


def _check_shape(x, expected):
    shape = x.shape
    # Keras adds or takes away a last axis of length 1.
    if len(shape) == len(expected) - 1 and expected[-1] == 1:
        shape = (*shape, 1)
    elif len(shape) == len(expected) + 1 and shape[-1] == 1:
        shape = shape[:-1]
    sizes = zip(shape[1:], expected[1:], strict=False)
    if len(shape) != len(expected) or any(b not in (None, a) for a, b in sizes):
        alone = " For one sample pass x[None]." if x.shape == expected[1:] else ""
        raise ValueError(
            f"The base cannot read x. Received: x of shape {x.shape}. Expected: shape "
            f"{('samples', *expected[1:])}, as the base's input.{alone}"
        )


def _check_lengths(arrays):
    lengths = {name: len(array) for name, array in arrays}
    if any(len(array) != lengths["x"] for _, array in arrays if "x" in lengths):
        given = ", ".join(f"{name} of shape {array.shape}" for name, array in arrays)
        raise ValueError(
            f"Arrays hold different numbers of samples. Received: {given}. Expected: "
            "the same first axis in each; shorten the longer ones."
        )


def _check_labels(labels, output, loss):
    """Refuse labels of another form than the loss takes, or of no class of the base."""
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
            f"Labels are out of range. Received: {labels[~valid].reshape(-1)[0]} among "
            f"y of shape {labels.shape}. Expected: whole numbers from 0 to "
            f"{classes - 1}; to leave a label out, loss=keras.losses."
            "SparseCategoricalCrossentropy(ignore_class=...)."
        )
