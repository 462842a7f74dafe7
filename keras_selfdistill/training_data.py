"""Refuse arrays that would ruin the weights without a word, before training begins."""

from typing import Any

import keras
import numpy as np

from keras_selfdistill.task import Task

_CHUNK = 1 << 20  # Values looked at together: a copy of all would take memory.


def check_arrays(
    x: Any, y: Any, sample_weight: Any, *, task: Task, label_loss: keras.losses.Loss
) -> None:
    """Refuse arrays that are empty, hold NaN or infinity, or no classes of the base.

    Data sets, loaders and generators are not read: their batches are not known yet.

    Args:
        x: Samples as `fit` takes them.
        y: Labels as `fit` takes them.
        sample_weight: Weights of the samples, or `None`.
        task: What the base answers.
        label_loss: The loss of the labels; one that leaves a class out says which.

    Raises:
        ValueError: An array is empty or holds what is no finite number, or labels are
            no classes of the base.

    Example:
        >>> loss = keras.losses.SparseCategoricalCrossentropy()
        >>> task = Task("multiclass", 3, "softmax")
        >>> x, y = np.ones((2, 4)), np.array([0, 2])
        >>> check_arrays(x, y, None, task=task, label_loss=loss)
    """
    for name, value in (("x", x), ("y", y), ("sample_weight", sample_weight)):
        for array in keras.tree.flatten(value):
            if isinstance(array, np.ndarray):
                _check_numbers(name, array)
    if isinstance(y, np.ndarray) and _names_classes(label_loss):
        _check_classes(y, task.units, getattr(label_loss, "ignore_class", None))


def _check_numbers(name, array):
    if not array.size:
        raise ValueError(
            f"There is nothing to learn from. Received: {name} of shape {array.shape}. "
            "Expected: at least one sample."
        )
    if not np.issubdtype(array.dtype, np.floating):
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
                "np.nan_to_num(x), or leave such samples out."
            )


def _names_classes(loss):
    by_class = isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
    return by_class or loss.name == "sparse_categorical_crossentropy"


def _check_classes(labels, classes, ignored):
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
