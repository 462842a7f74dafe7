"""Metrics of the user, one copy for every exit, named as in the logs."""

import copy
from collections.abc import Callable, Collection, Iterable
from typing import Any

import keras

from keras_selfdistill.losses.label_loss import crossentropy, is_sparse
from keras_selfdistill.utils.config import unknown_name
from keras_selfdistill.utils.keras_internals import (
    metrics_inside,
    object_name,
    set_direction,
    set_tracked,
    value_without_autocast,
    variables_inside,
)
from keras_selfdistill.utils.type_aliases import Labels, MetricsLike, Tensor


def exit_metrics(
    metrics: MetricsLike,
    outputs: Iterable[str],
    *,
    argument: str,
    taken: Iterable[str] = (),
) -> dict[str, list[keras.Metric]]:
    """Return the metrics passed to `compile`, once for each output.

    Metrics of the output `final` keep their names, so that `val_accuracy` means the
    same as for the base; others are prefixed with the name of the output. The first
    output uses the given metric objects, the others copies.

    Args:
        metrics: Name, function or object of a metric, or a list of these.
        outputs: Names of the outputs, `final` first.
        argument: Name of the argument of `compile`, for errors and free names.
        taken: Names of other metrics of an output, without prefix.

    Returns:
        Mapping of output names to metrics.

    Raises:
        TypeError: `metrics` is a mapping, or a metric cannot be copied.
        ValueError: A name is unknown.

    Example:
        >>> both = exit_metrics(["accuracy"], ["final", "exit_1"], argument="metrics")
        >>> {output: [metric.name for metric in own] for output, own in both.items()}
        {'final': ['accuracy'], 'exit_1': ['exit_1_accuracy']}
    """
    if isinstance(metrics, dict):
        raise TypeError(
            f"`{argument}` apply to every exit, so they must not be a mapping. "
            f"Received: {argument}={metrics!r}. Expected: the metrics of the base, "
            f"e.g. {argument}=['accuracy']."
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


def _free_name(name: str, argument: str, names: Collection[str]) -> str:
    """Return the name, with a suffix if another metric of the output has it."""
    if name in names and argument == "weighted_metrics":
        name = f"weighted_{name}"
    stem, count = name, 0
    while name in names:
        count += 1
        name = f"{stem}_{count}"
    return name


def _resolve(identifier: MetricsLike) -> keras.Metric:
    """Return the metric of an identifier that `compile` takes, named as in Keras."""
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


def _mean(function: Callable[..., Tensor], name: str, direction: str) -> keras.Metric:
    metric = keras.metrics.MeanMetricWrapper(function, name=name)
    set_direction(metric, direction)  # As Keras' own tell its callbacks.
    return metric


def _copy(metric: keras.Metric, output: str) -> keras.Metric:
    try:
        copied = copy_metric(metric)
    except TypeError as error:
        raise TypeError(
            "Every exit needs a copy of each metric. Received: "
            f"{type(metric).__name__}, which cannot be copied ({error}). Expected: a "
            "metric whose state is in variables created by add_variable()."
        ) from error
    copied.name = f"{output}_{metric.name}"
    return copied


def copy_metric(metric: keras.Metric) -> keras.Metric:
    """Return a copy of a metric with variables of its own and everything else alike.

    The object is copied, not made again from its config, which may omit arguments.
    Layers, models, losses and functions in it are shared.

    Raises:
        TypeError: It holds what cannot be copied, such as an open file.

    Example:
        >>> import numpy as np
        >>> metric = keras.metrics.Precision(class_id=1)
        >>> copied = copy_metric(metric)
        >>> copied.update_state(np.eye(2), np.eye(2))
        >>> copied.class_id, float(copied.result()), float(metric.result())
        (1, 1.0, 0.0)
    """
    return _copy_metric(metric, {})


def _copy_metric(metric: keras.Metric, memo: dict[int, Any]) -> keras.Metric:
    copied = memo[id(metric)] = object.__new__(type(metric))
    for inner in metrics_inside(metric):
        if id(inner) not in memo:
            _copy_metric(inner, memo)
    for variable in variables_inside(metric):
        memo[id(variable)] = _fresh(variable)
    for value in keras.tree.flatten([_plain(each) for each in vars(metric).values()]):
        if isinstance(value, (keras.Layer, keras.losses.Loss, keras.Optimizer)):
            memo[id(value)] = value
    # Keras copies its own objects by way of a file: this one must be none of them.
    vars(copied).update(copy.deepcopy(vars(metric), memo))
    # Copied lists, which the tracker watches, told it of the variables once more.
    set_tracked(
        copied,
        variables=[memo[id(each)] for each in variables_inside(metric)],
        metrics=[memo[id(each)] for each in metrics_inside(metric)],
    )
    return copied


def _plain(value: Any) -> list[Any]:
    """Return a container that Keras tracks as one that its tree functions open."""
    if isinstance(value, dict):
        return [_plain(each) for each in value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each) for each in value]
    return [value]


def _fresh(variable: keras.Variable) -> keras.Variable:
    value = value_without_autocast(variable)
    if keras.backend.backend() == "tensorflow":
        # Of devices that train together, each has its own: all began alike.
        value = getattr(value, "values", (value,))[0]
    return keras.Variable(
        keras.ops.convert_to_numpy(value),
        dtype=variable.dtype,
        trainable=False,
        aggregation=variable.aggregation,
        synchronization=variable.synchronization,
        name=variable.name,
    )


def _accuracy(labels: Labels, outputs: Tensor) -> Tensor:
    """Return the accuracy that Keras chooses by shape, binary for one unit."""
    if outputs.shape[-1] == 1:
        return keras.metrics.binary_accuracy(labels, outputs)
    if is_sparse(labels, outputs):
        return keras.metrics.sparse_categorical_accuracy(labels, outputs)
    return keras.metrics.categorical_accuracy(labels, outputs)


def _crossentropy(labels: Labels, outputs: Tensor) -> Tensor:
    """Return the crossentropy that `compile` uses for a loss of that name."""
    if outputs.shape[-1] != 1:
        return crossentropy(labels, outputs)
    if len(labels.shape) < len(outputs.shape):
        labels = keras.ops.expand_dims(labels, -1)
    return keras.metrics.binary_crossentropy(labels, outputs)
