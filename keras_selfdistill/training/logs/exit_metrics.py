"""The user's metrics, one copy for every exit, named as the logs show them."""

from collections.abc import Iterable
from typing import Any

import keras

from keras_selfdistill.losses.label_loss import crossentropy, is_sparse
from keras_selfdistill.utils.config import unknown_name
from keras_selfdistill.utils.keras_internals import (
    copy_metric,
    object_name,
    set_direction,
)


def exit_metrics(
    metrics: Any, outputs: Iterable[str], *, argument: str, taken: Iterable[str] = ()
) -> dict[str, list[keras.Metric]]:
    """Return the metrics that `compile` was given, once for each output.

    Metrics of the output `final` keep their names, so that `val_accuracy` is what it
    was for the base; others are prefixed with the output's name. A metric object is
    itself the first output's; the others get copies of it.

    Args:
        metrics: What the user gave: a name, function or object, or a list of them.
        outputs: Names of the outputs, `final` first.
        argument: Name of the argument, for errors and for names that are taken.
        taken: Names that other metrics of an output have, without prefix.

    Raises:
        TypeError: The metrics are a mapping, as they are given once for all exits, or
            a metric object cannot be copied.
        ValueError: A name is unknown.

    Example:
        >>> both = exit_metrics(["accuracy"], ["final", "exit_1"], argument="metrics")
        >>> {output: [metric.name for metric in own] for output, own in both.items()}
        {'final': ['accuracy'], 'exit_1': ['exit_1_accuracy']}
    """
    if isinstance(metrics, dict):
        raise TypeError(
            f"`{argument}` are given once and serve every exit. Received: "
            f"{argument}={metrics!r}. Expected: what you would pass for the base, e.g. "
            f"{argument}=['accuracy']."
        )
    if not isinstance(metrics, (list, tuple)):
        metrics = [] if metrics is None else [metrics]
    own, names = [], set(taken)
    for identifier in metrics:
        metric = _resolve(identifier)
        metric.name = _free_name(metric.name, argument, names)
        names.add(metric.name)
        own.append(metric)
    first, *others = outputs
    return {first: own} | {
        output: [_copy(metric, output) for metric in own] for output in others
    }


def _free_name(name, argument, names):
    """Return the name, or one like it that no other metric of the output has."""
    if name in names and argument == "weighted_metrics":
        name = f"weighted_{name}"
    stem, count = name, 0
    while name in names:
        count += 1
        name = f"{stem}_{count}"
    return name


def _resolve(identifier):
    """Return a metric for anything that `compile` takes as one, named as by Keras."""
    if isinstance(identifier, keras.Metric):
        return identifier
    name = identifier if isinstance(identifier, str) else None
    if name and name.lower() in ("accuracy", "acc"):
        return _mean(_accuracy, name, "up")
    if name and name.lower() in ("crossentropy", "ce"):
        return _mean(_crossentropy, name, "down")
    try:
        metric = keras.metrics.get(identifier)
    except ValueError as error:
        raise unknown_name("metric", identifier, keras.metrics) from error
    if not isinstance(metric, keras.Metric):
        return keras.metrics.MeanMetricWrapper(metric, name=object_name(metric))
    metric.name = name or metric.name
    return metric


def _mean(function, name, direction):
    metric = keras.metrics.MeanMetricWrapper(function, name=name)
    set_direction(metric, direction)  # As Keras' own tell its callbacks.
    return metric


def _copy(metric, output):
    try:
        copied = copy_metric(metric)
    except TypeError as error:
        raise TypeError(
            "Every exit needs a copy of each metric. Received: "
            f"{type(metric).__name__}, which holds what cannot be copied ({error}). "
            "Expected: a metric whose state is in variables made by add_variable()."
        ) from error
    copied.name = f"{output}_{metric.name}"
    return copied


def _accuracy(labels, outputs):
    """Return the accuracy that Keras chooses by shape: of one unit, the binary one."""
    if outputs.shape[-1] == 1:
        return keras.metrics.binary_accuracy(labels, outputs)
    if is_sparse(labels, outputs):
        return keras.metrics.sparse_categorical_accuracy(labels, outputs)
    return keras.metrics.categorical_accuracy(labels, outputs)


def _crossentropy(labels, outputs):
    """Return the crossentropy that `compile` takes for a loss of that name."""
    if outputs.shape[-1] != 1:
        return crossentropy(labels, outputs)
    if len(labels.shape) < len(outputs.shape):
        labels = keras.ops.expand_dims(labels, -1)
    return keras.metrics.binary_crossentropy(labels, outputs)
