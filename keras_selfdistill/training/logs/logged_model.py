"""The metrics and logs of a wrapper."""

import contextlib
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_selfdistill.training.batch_loss import Step
from keras_selfdistill.training.data_checks import check_labels
from keras_selfdistill.training.logs.progress_bar import with_progress_bar
from keras_selfdistill.training.nonfinite import FiniteCheck
from keras_selfdistill.utils.type_aliases import (
    CallbacksLike,
    Data,
    Evaluation,
    Labels,
    Logs,
    Tensor,
    TensorStructure,
)


class LoggedModel(keras.Model):
    """The part of a `SelfDistiller` that updates its metrics and names its logs.

    It reads the `Logs` and the objective that `compile` created.
    """

    @property
    def exit_metric_names(self) -> list[str]:
        """Names of the metrics of every exit, as they were compiled; none before."""
        if not self.compiled:
            return []
        metrics = self._logs.metrics["final"] + self._logs.weighted_metrics["final"]
        return [metric.name for metric in metrics]

    def evaluate(
        self,
        x: Data = None,
        y: Labels = None,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        sample_weight: Tensor | None = None,
        steps: int | None = None,
        callbacks: CallbacksLike = None,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Evaluation:
        """Evaluate, with the arguments of `keras.Model.evaluate`."""
        # `fit` passes arguments of its own, and has checked the labels before.
        if self.compiled and not kwargs:
            self._check_labels(y)
        callbacks = with_progress_bar(callbacks, verbose)
        with self._evaluating():
            return super().evaluate(
                x,
                y,
                batch_size,
                verbose,
                sample_weight,
                steps,
                callbacks,
                return_dict,
                **kwargs,
            )

    def _check_labels(self, y: Labels) -> None:
        check_labels(
            y,
            base=self.base,
            task=self.exit_graph.task,
            label_loss=self._objective.label_loss,
        )

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Evaluation:
        """Evaluate a batch, with the arguments of `keras.Model.test_on_batch`."""
        with self._evaluating():
            return super().test_on_batch(*args, **kwargs)

    def _evaluating(self) -> contextlib.AbstractContextManager[None]:
        # Keras raises an error for a model that is not compiled.
        return self._logs.of_evaluation() if self.compiled else contextlib.nullcontext()

    def _update_logs(
        self,
        step: Step,
        check: FiniteCheck | None = None,
        magnitudes: dict[str, Tensor] | None = None,
        *,
        replicas: int = 1,
    ) -> Logs:
        """Add a batch to the metrics and return the logs.

        Args:
            step: Results of the batch, with losses divided by `replicas`.
            check: Finite check of a training step; a loss that is not finite is left
                out of the means.
            magnitudes: Mean gradient of each section by log name.
            replicas: Number of devices that train together, each with its own update
                of the metrics.
        """
        losses = {"loss": step.loss, **step.terms}
        if replicas > 1:
            losses = {name: loss * replicas for name, loss in losses.items()}
        self._logs.show(step.terms)
        self._logs.losses.add(
            losses,
            counted=True if check is None else check.forward,
            weight=ops.shape(step.labels)[0],
        )
        if check is not None:
            skipped = ops.logical_not(check.finite)
            self._logs.nonfinite_steps.update_state(
                ops.cast(skipped, "float32") / replicas
            )
            if magnitudes:
                self._logs.gradients.add(magnitudes, counted=check.finite)
        return self.compute_metrics(
            None, step.labels, step.outputs, sample_weight=step.sample_weight
        )

    def compute_metrics(
        self,
        x: TensorStructure,
        y: Labels,
        y_pred: Mapping[str, Tensor],
        sample_weight: Tensor | None = None,
    ) -> Logs:
        """Add a batch to the metrics of every exit and return the logs.

        Args:
            x: Inputs of the batch; not read.
            y: Labels of the batch.
            y_pred: Output of every exit and, under `ensemble`, of the ensemble.
            sample_weight: Sample weights of shape `(batch,)`, or `None`.
        """
        if "ensemble" not in y_pred:
            # Keras builds the metrics with symbolic outputs of `call`, before the first
            # step: wrong labels are refused before any weight has changed.
            self._objective.check_labels(y, self.base.outputs[0], sample_weight)
            self._objective.label_loss(y, y_pred["final"], sample_weight)
            y_pred = {**y_pred, "ensemble": y_pred["final"]}
        outputs = self._logs.ordered(y_pred)
        labels = dict.fromkeys(outputs, y)
        return super().compute_metrics(x, labels, outputs, sample_weight)

    def get_metrics_result(self) -> Logs:
        """Return the logs: the loss and its terms, and the metrics of every exit."""
        return self._logs.named(super().get_metrics_result())

    @property
    def metrics(self) -> list[keras.Metric]:
        """The loss, its terms, and the metrics of every exit and the ensemble."""
        if not self.compiled:
            return super().metrics
        _, *others = super().metrics  # Without the loss tracker of Keras.
        return self._logs.trackers(others)
