"""What a wrapper logs: loss terms and the metrics of every exit, in order and named."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras

from keras_selfdistill.metrics import exit_metrics


class Logs:
    """The order and the names of the logs of one `compile`.

    The final exit comes first, then the others from shallow to deep, then the ensemble.

    Args:
        exit_names: Names of the exits, shallow to deep.
        terms: Names of the loss terms.
        metrics: What `compile` was given.
        weighted_metrics: Likewise.

    Attributes:
        metrics: Metrics of every output, as `keras.Model.compile` takes them.
        weighted_metrics: Likewise.
        terms: The mean of every loss term.

    Raises:
        TypeError: The metrics are a mapping, or one cannot be copied.
        ValueError: The name of a metric is unknown.

    Example:
        >>> logs = Logs(["exit_1", "final"], ["label_loss"], ["accuracy"], None)
        >>> logs.named({"exit_1_exit_1_accuracy": 0.5, "final_accuracy": 0.75})
        {'exit_1_accuracy': 0.5, 'accuracy': 0.75}
    """

    def __init__(
        self,
        exit_names: Sequence[str],
        terms: Iterable[str],
        metrics: Any,
        weighted_metrics: Any,
    ):
        self._outputs = ["final", *exit_names[:-1], "ensemble"]
        self.metrics = exit_metrics(metrics, self._outputs, argument="metrics")
        self.weighted_metrics = exit_metrics(
            weighted_metrics,
            self._outputs,
            argument="weighted_metrics",
            taken=[metric.name for metric in self.metrics["final"]],
        )
        self.terms = {term: keras.metrics.Mean(name=term) for term in terms}
        # Keras prefixes the name of a metric with that of its output.
        self._names = {
            f"{output}_{metric.name}": metric.name
            for output in self._outputs
            for metric in self.metrics[output] + self.weighted_metrics[output]
        }

    def ordered(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return outputs in the order of the logs."""
        # Keras would sort the names of a plain dict.
        return collections.OrderedDict((name, outputs[name]) for name in self._outputs)

    def named(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Return Keras' results under the names that the logs show."""
        return {self._names.get(name, name): each for name, each in results.items()}
