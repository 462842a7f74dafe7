"""What the logs show: the loss terms, and the user's metrics for every exit."""

from collections.abc import Iterable
from typing import Any

import keras

from keras_selfdistill.objective import crossentropy, is_sparse


class ExitMetrics:
    """The metrics given to `compile`, once for each output.

    Metrics of the output `final` keep their names, so that `val_accuracy` is what it
    was for the base; others are prefixed with the output's name.

    Args:
        metrics: What the user gave as `metrics`: names, functions or objects.
        weighted_metrics: Likewise, with sample weights.
        outputs: Names of the outputs.
        terms: Names of the loss terms.

    Raises:
        TypeError: The metrics are a mapping: they are given once for all exits.

    Example:
        >>> outputs, terms = ["exit_1", "final"], ["label_loss"]
        >>> metrics = ExitMetrics(["accuracy"], None, outputs, terms)
        >>> [metric.name for metric in metrics.all]
        ['label_loss', 'exit_1_accuracy', 'accuracy']
    """

    def __init__(
        self,
        metrics: Any,
        weighted_metrics: Any,
        outputs: Iterable[str],
        terms: Iterable[str],
    ):
        plain = _as_list(metrics, "metrics")
        weighted = _as_list(weighted_metrics, "weighted_metrics")
        self.terms = {term: keras.metrics.Mean(name=term) for term in terms}
        self._plain: dict[str, list[keras.Metric]] = {}
        self._weighted: dict[str, list[keras.Metric]] = {}
        for output in outputs:
            prefix = "" if output == "final" else f"{output}_"
            taken: set[str] = set()
            self._plain[output] = [_copy(metric, prefix, "", taken) for metric in plain]
            self._weighted[output] = [
                _copy(metric, prefix, "weighted_", taken) for metric in weighted
            ]

    @property
    def all(self) -> list[keras.Metric]:
        """Every metric: the loss terms, then output by output."""
        return list(self.terms.values()) + [
            metric
            for output in self._plain
            for metric in self._plain[output] + self._weighted[output]
        ]

    def update(self, labels: Any, outputs: dict[str, Any], sample_weight: Any) -> None:
        """Add a batch: `outputs` maps each name to a tensor `(batch, classes)`."""
        for name, prediction in outputs.items():
            for metric in self._plain[name]:
                metric.update_state(labels, prediction)
            for metric in self._weighted[name]:
                metric.update_state(labels, prediction, sample_weight=sample_weight)


def _as_list(metrics, argument):
    if metrics is None:
        return []
    if isinstance(metrics, dict):
        raise TypeError(
            f"`{argument}` are given once and serve every exit. Received: "
            f"{argument}={metrics!r}. Expected: what you would pass for the base, e.g. "
            f"{argument}=['accuracy']."
        )
    return list(metrics) if isinstance(metrics, (list, tuple)) else [metrics]


def _copy(identifier, prefix, if_taken, taken):
    """Return a fresh metric with a name that no other metric of the output has."""
    metric = _resolve(identifier)
    name = metric.name if metric.name not in taken else f"{if_taken}{metric.name}"
    stem, count = name, 0
    while name in taken:
        count += 1
        name = f"{stem}_{count}"
    taken.add(name)
    metric.name = prefix + name
    return metric


def _resolve(identifier):
    if isinstance(identifier, str) and identifier.lower() in ("accuracy", "acc"):
        return keras.metrics.MeanMetricWrapper(_accuracy, name=identifier)
    if isinstance(identifier, str) and identifier.lower() in ("crossentropy", "ce"):
        return keras.metrics.MeanMetricWrapper(crossentropy, name=identifier)
    if isinstance(identifier, keras.Metric):
        return type(identifier).from_config(identifier.get_config())
    metric = keras.metrics.get(identifier)
    if isinstance(metric, keras.Metric):
        # Keras names a metric given by name after that name.
        if isinstance(identifier, str):
            metric.name = identifier
        return metric
    name = identifier if isinstance(identifier, str) else metric.__name__
    return keras.metrics.MeanMetricWrapper(metric, name=name)


def _accuracy(labels, outputs):
    if is_sparse(labels, outputs):
        return keras.metrics.sparse_categorical_accuracy(labels, outputs)
    return keras.metrics.categorical_accuracy(labels, outputs)
