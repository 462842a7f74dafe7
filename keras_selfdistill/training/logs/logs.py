"""What a wrapper logs: loss terms and the metrics of every exit, in order and named."""

import collections
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_selfdistill.training.logs.exit_metrics import exit_metrics


class MeanOfCounted(keras.metrics.Mean):
    """A mean that leaves out what is not to be counted, and is NaN of nothing at all.

    Example:
        >>> mean = MeanOfCounted(name="loss")
        >>> mean.add(2.0, counted=True)
        >>> mean.add(float("nan"), counted=False)
        >>> float(ops.convert_to_numpy(mean.result()))
        2.0
    """

    def add(self, value: Any, *, counted: Any, weight: Any = 1.0) -> None:
        """Add a value with a weight where `counted`, a boolean scalar, holds."""
        self.update_state(
            ops.where(counted, value, 0.0),
            sample_weight=ops.where(counted, ops.cast(weight, "float32"), 0.0),
        )

    def result(self) -> Any:
        """Return the mean."""
        return ops.where(self.count > 0, super().result(), float("nan"))


class Logs:
    """The order and the names of the logs of one `compile`.

    The final exit comes first, then the others from shallow to deep, then the ensemble,
    and what only training logs.

    Args:
        exit_names: Names of the exits, shallow to deep.
        terms: Names of the loss terms.
        metrics: What `compile` was given.
        weighted_metrics: Likewise.
        gradients: Names of the gradients' mean magnitudes.

    Attributes:
        metrics: Metrics of every output, as `keras.Model.compile` takes them.
        weighted_metrics: Likewise.
        losses: The mean of the loss and of every loss term.
        nonfinite_steps: Number of steps that were skipped.
        gradients: The mean of every magnitude.

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
        self.losses = {name: MeanOfCounted(name=name) for name in ("loss", *terms)}
        self.nonfinite_steps = keras.metrics.Sum(name="nonfinite_steps")
        self.gradients = {name: MeanOfCounted(name=name) for name in gradients}
        self._training = True
        # Of training and of evaluation: terms that an overridden loss does not have.
        self._missing: dict[bool, tuple[str, ...]] = {True: (), False: ()}
        # Keras prefixes the name of a metric with that of its output.
        self._names = {
            f"{output}_{metric.name}": metric.name
            for output in self._outputs
            for metric in self.metrics[output] + self.weighted_metrics[output]
        }

    def show(self, terms: Iterable[str]) -> None:
        """Leave out the loss terms that are not among those that a step computes."""
        shown = {"loss", *terms}
        missing = tuple(name for name in self.losses if name not in shown)
        self._missing = {**self._missing, self._training: missing}

    def trackers(self, metrics: Iterable[keras.Metric]) -> list[keras.Metric]:
        """Return all that counts, in order, around the user's metrics."""
        training = [self.nonfinite_steps, *self.gradients.values()]
        return [*self.losses.values(), *metrics, *training]

    @contextlib.contextmanager
    def of_evaluation(self) -> Iterator[None]:
        """Leave out what only training logs."""
        before, self._training = self._training, False
        try:
            yield
        finally:
            self._training = before

    def ordered(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return outputs in the order of the logs."""
        # Keras would sort the names of a plain dict.
        return collections.OrderedDict((name, outputs[name]) for name in self._outputs)

    def named(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Return Keras' results under the names that the logs show."""
        left_out = () if self._training else ("nonfinite_steps", *self.gradients)
        left_out += self._missing[self._training]
        return {
            self._names.get(name, name): each
            for name, each in results.items()
            if name not in left_out
        }
