"""Quality of predictions, accumulated batch by batch; NumPy only.

The task decides what counts as one prediction: the class of a sample, each label of a
sample, or the class or label at each of its positions.
"""

import dataclasses
from typing import Any

import numpy as np

from keras_selfdistill.evaluation.data_adapter import best_classes
from keras_selfdistill.evaluation.reliability import Reliability, binned
from keras_selfdistill.graph.task import Task


@dataclasses.dataclass(frozen=True)
class Quality:
    """Quality of one exit's predictions; `None` where the task has no such measure.

    Args:
        accuracy: Share of correct predictions: of classes, or of labels at a threshold
            of 0.5.
        top_5: Share of predictions whose label is among the five likeliest classes; for
            more than five classes.
        loss: Mean crossentropy; mean squared error of a regression.
        calibration_error: Expected calibration error: the distance between confidence
            and accuracy, where the confidence is the probability of the prediction. See
            `reliability.Reliability`.
        agreement: Share of predictions equal to the final exit's.
        absolute_error: Mean absolute error of a regression.
    """

    accuracy: float | None = None
    top_5: float | None = None
    loss: float | None = None
    calibration_error: float | None = None
    agreement: float | None = None
    absolute_error: float | None = None


class BatchPredictions:
    """Predictions of one batch, from its logits.

    Args:
        logits: Shape `(batch, *positions, units)`; the output of a regression.
        task: Task of the exit.

    Attributes:
        predicted: Predicted classes or labels, shape `(predictions,)`; -1, which is
            never correct, where logits are not finite; `None` for a regression.
    """

    def __init__(self, logits: np.ndarray, task: Task) -> None:
        self._logits = np.asarray(logits, "float64")
        self.task = task
        self.predicted: Any = None
        if task.name == "multiclass":
            self._logits = self._logits.reshape(-1, task.units)
            # With an infinite logit, or with -inf alone, softmax is NaN.
            defined = np.isfinite(self._logits.max(axis=-1, keepdims=True))
            self._logits = np.where(defined, self._logits, np.nan)
            self.predicted = best_classes(self._logits)
        elif task.name != "regression":
            self._logits = self._logits.ravel()
            yes = (self._logits > 0).astype("int64")
            self.predicted = np.where(np.isnan(self._logits), -1, yes)

    def sums(self, labels: np.ndarray) -> dict[str, Any]:
        """Return the sums over the batch that `Sums` accumulates.

        Args:
            labels: Labels as `flat_labels` returns them.
        """
        if self.task.name == "regression":
            error = self._logits.reshape(labels.shape) - labels
            return {"loss": (error**2).sum(), "absolute_error": np.abs(error).sum()}
        log_p = _log_softmax(self._logits) if self.task.name == "multiclass" else None
        if log_p is None:
            with np.errstate(invalid="ignore"):  # NaN stays NaN.
                signed = np.where(labels > 0, -self._logits, self._logits)
                label_log_p = -np.logaddexp(0, signed)
                confidence = np.exp(-np.logaddexp(0, -np.abs(self._logits)))
        else:
            label_log_p = np.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
            confidence = np.exp(log_p.max(axis=-1))
        correct = np.equal(self.predicted, labels)
        sums = {
            "loss": -label_log_p.sum(),
            "accuracy": correct.sum(),
            "reliability": binned(confidence, correct),
        }
        if log_p is not None and self.task.units > 5:
            above = (log_p > label_log_p[:, None]).sum(axis=-1)
            sums["top_5"] = ((above < 5) & ~np.isnan(label_log_p)).sum()
        return sums


class Sums:
    """Sums over batches, from which `Quality` is computed.

    Example:
        >>> task, sums = Task("multiclass", 2, "softmax"), Sums()
        >>> labels = flat_labels(np.array([0, 1]), task)
        >>> sums.add(BatchPredictions(np.array([[2.0, 0.0], [1.0, 0.0]]), task), labels)
        >>> sums.quality().accuracy
        0.5
    """

    def __init__(self) -> None:
        self._totals: dict[str, Any] = {}
        self._count = 0

    def add(
        self,
        predictions: BatchPredictions,
        labels: np.ndarray,
        final: BatchPredictions | None = None,
    ) -> None:
        """Add a batch.

        Args:
            predictions: Predictions of the exit.
            labels: Labels as `flat_labels` returns them.
            final: Predictions of the final exit, for the agreement with them.
        """
        sums = predictions.sums(labels)
        predicted = predictions.predicted
        if final is not None and predicted is not None:
            same = np.equal(predicted, final.predicted) & (predicted >= 0)
            sums["agreement"] = same.sum()
        for name, value in sums.items():
            known = self._totals.get(name)
            self._totals[name] = value if known is None else known + value
        self._count += labels.size

    def quality(self) -> Quality:
        """Return the means over all batches."""
        totals = dict(self._totals)
        found: Reliability | None = totals.pop("reliability", None)
        means = {name: float(total) / self._count for name, total in totals.items()}
        if found is not None:
            means["calibration_error"] = found.expected_calibration_error
        return Quality(**means)


def flat_labels(labels: np.ndarray, task: Task) -> np.ndarray:
    """Return labels in the form in which predictions are compared with them.

    Args:
        labels: Class indices, one-hot labels, labels of 0 and 1, or numbers.
        task: Task that the labels are for.

    Returns:
        Class indices, or labels of 0 and 1, shape `(predictions,)`; the numbers of a
        regression in their own shape.

    Raises:
        ValueError: The labels do not fit the task.

    Example:
        >>> flat_labels(np.array([[0, 1], [1, 0]]), Task("multiclass", 2, "softmax"))
        array([1, 0])
    """
    task.check_labels(labels)
    if task.name == "regression":
        return labels.astype("float64")
    rank = len(task.positions) + 2
    one_hot = labels.ndim == rank and labels.shape[-1] == task.units > 1
    if task.name == "multiclass" and one_hot:
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=-1) == 1).all()):
            raise ValueError(
                "Rows of labels are not one-hot. Received: a row that is no 1 among "
                "zeros. Expected: one-hot rows or class indices; of soft labels, "
                "`labels.argmax(axis=-1)`; for several classes a sample, a model with "
                "task='multilabel'."
            )
        return labels.argmax(axis=-1).ravel()
    classes = task.units if task.name == "multiclass" else 2
    flat = labels.ravel()
    if not np.isin(flat, np.arange(classes)).all():
        raise ValueError(
            f"Labels are out of range. Received: values from {flat.min()} to "
            f"{flat.max()}. Expected: integers from 0 to {classes - 1}, for task "
            f"{task.name!r}."
        )
    return flat.astype("int64")


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
