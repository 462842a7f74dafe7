"""Order and names of a wrapper's logs: loss terms and the metrics of every exit."""

import collections
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import keras

from keras_selfdistill.training.logs.exit_metrics import exit_metrics
from keras_selfdistill.training.logs.running_means import RunningMeans
from keras_selfdistill.utils.type_aliases import MetricsLike, Tensor


class ExitLogs:
    """Metrics of a compiled wrapper, and the order and names of its logs.

    The final exit comes first, then the others from shallow to deep, then the ensemble,
    and last the logs of training only.

    Args:
        exit_names: Names of the exits, shallow to deep.
        terms: Names of the loss terms.
        metrics: The `metrics` argument of `compile`.
        weighted_metrics: The `weighted_metrics` argument of `compile`.
        gradients: Log names of the gradient magnitudes.

    Attributes:
        metrics: Mapping of output names to metrics, as `keras.Model.compile` takes
            them.
        weighted_metrics: Mapping of output names to weighted metrics.
        losses: Means of the loss and of its terms.
        nonfinite_steps: Number of skipped steps.
        gradients: Means of the gradient magnitudes.

    Raises:
        TypeError: `metrics` is a mapping, or a metric cannot be copied.
        ValueError: The name of a metric is unknown.

    Example:
        >>> logs = ExitLogs(["exit_1", "final"], ["label_loss"], ["accuracy"], None)
        >>> logs.named({"exit_1_exit_1_accuracy": 0.5, "final_accuracy": 0.75})
        {'exit_1_accuracy': 0.5, 'accuracy': 0.75}
    """

    def __init__(
        self,
        exit_names: Sequence[str],
        terms: Iterable[str],
        metrics: MetricsLike,
        weighted_metrics: MetricsLike,
        gradients: Iterable[str] = (),
    ):
        self._outputs = ["final", *exit_names[:-1], "ensemble"]
        self.metrics = exit_metrics(metrics, self._outputs, argument="metrics")
        self.weighted_metrics = exit_metrics(
            weighted_metrics,
            self._outputs,
            argument="weighted_metrics",
            taken=[metric.name for metric in self.metrics["final"]],
        )
        self.losses = RunningMeans(["loss", *terms])
        self.nonfinite_steps = keras.metrics.Sum(name="nonfinite_steps")
        self.gradients = RunningMeans(list(gradients))
        self._training = True
        # By training: terms of the recipe that an overridden loss does not compute.
        self._missing: dict[bool, tuple[str, ...]] = {True: (), False: ()}
        # Keras prefixes the name of a metric with that of its output.
        self._names = {
            f"{output}_{metric.name}": metric.name
            for output in self._outputs
            for metric in self.metrics[output] + self.weighted_metrics[output]
        }

    @property
    def names(self) -> set[str]:
        """Names of all logs but the loss and its terms, also those Keras gives them."""
        training = {"nonfinite_steps", *self.gradients.metrics}
        return {*self._names, *self._names.values(), *training}

    def show(self, terms: Iterable[str]) -> None:
        """Hide the loss terms that a step does not compute.

        Args:
            terms: Names of the terms that the step computes.
        """
        shown = {"loss", *terms}
        missing = tuple(name for name in self.losses.metrics if name not in shown)
        self._missing = {**self._missing, self._training: missing}

    def trackers(self, metrics: Iterable[keras.Metric]) -> list[keras.Metric]:
        """Return all metrics in the order of the logs.

        Args:
            metrics: Metrics of the exits.
        """
        training = [self.nonfinite_steps, *self.gradients.metrics.values()]
        return [*self.losses.metrics.values(), *metrics, *training]

    @contextlib.contextmanager
    def of_evaluation(self) -> Iterator[None]:
        """Context manager that hides the logs of training only."""
        before, self._training = self._training, False
        try:
            yield
        finally:
            self._training = before

    def ordered(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return outputs in the order of the logs.

        Args:
            outputs: Mapping of output names to outputs.
        """
        # Keras sorts the keys of a plain dict.
        return collections.OrderedDict((name, outputs[name]) for name in self._outputs)

    def named(self, results: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the results of metrics under the names of the logs.

        Args:
            results: Mapping of the names that Keras gives to values.
        """
        hidden = () if self._training else ("nonfinite_steps", *self.gradients.metrics)
        hidden += self._missing[self._training]
        return {
            self._names.get(name, name): each
            for name, each in results.items()
            if name not in hidden
        }
