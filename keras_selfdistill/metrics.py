"""The user's metrics, one copy for every exit, named as the logs show them."""

from collections.abc import Iterable
from typing import Any

import keras

from keras_selfdistill.config import unknown_name
from keras_selfdistill.labels import crossentropy, is_sparse


def exit_metrics(
    metrics: Any, outputs: Iterable[str], *, argument: str, taken: Iterable[str] = ()
) -> dict[str, list[keras.Metric]]:
    """Return the metrics that `compile` was given, once for each output.

    Metrics of the output `final` keep their names, so that `val_accuracy` is what it
    was for the base; others are prefixed with the output's name. A metric object is
    itself the final exit's; the others get copies, made from its config.

    Args:
        metrics: What the user gave: a name, function or object, or a list of them.
        outputs: Names of the outputs.
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
    found: dict[str, list[keras.Metric]] = {}
    for output in outputs:
        names = set(taken)
        found[output] = []
        for identifier in metrics:
            metric = _resolve(identifier, copy=output != "final")
            name = _free_name(_plain_name(identifier, metric), argument, names)
            names.add(name)
            metric.name = name if output == "final" else f"{output}_{name}"
            found[output].append(metric)
    return found


def _plain_name(identifier, metric):
    # Copies are made after the final exit's metric, which has no prefix yet.
    return identifier.name if isinstance(identifier, keras.Metric) else metric.name


def _free_name(name, argument, names):
    """Return the name, or one like it that no other metric of the output has."""
    if name in names and argument == "weighted_metrics":
        name = f"weighted_{name}"
    stem, count = name, 0
    while name in names:
        count += 1
        name = f"{stem}_{count}"
    return name


def _resolve(identifier, copy):
    if isinstance(identifier, keras.Metric):
        return _copy(identifier) if copy else identifier
    if isinstance(identifier, str) and identifier.lower() in ("accuracy", "acc"):
        metric = keras.metrics.MeanMetricWrapper(_accuracy, name=identifier)
        # As Keras' own accuracies tell its callbacks what is better.
        metric._direction = "up"
        return metric
    if isinstance(identifier, str) and identifier.lower() in ("crossentropy", "ce"):
        metric = keras.metrics.MeanMetricWrapper(crossentropy, name=identifier)
        metric._direction = "down"
        return metric
    try:
        metric = keras.metrics.get(identifier)
    except ValueError as error:
        raise unknown_name("metric", identifier, keras.metrics) from error
    if not isinstance(metric, keras.Metric):
        metric = keras.metrics.MeanMetricWrapper(metric, name=metric.__name__)
    if isinstance(identifier, str):
        metric.name = identifier
    return metric


def _copy(metric):
    try:
        return type(metric).from_config(metric.get_config())
    except TypeError as error:
        raise TypeError(
            "Every exit needs a copy of each metric. Received: "
            f"{type(metric).__name__}, whose get_config() does not fit its __init__(). "
            "Expected: a metric with the get_config() that keras.Metric asks for, and "
            "with an __init__() that passes further keywords (name, dtype) on."
        ) from error


def _accuracy(labels, outputs):
    if is_sparse(labels, outputs):
        return keras.metrics.sparse_categorical_accuracy(labels, outputs)
    return keras.metrics.categorical_accuracy(labels, outputs)
