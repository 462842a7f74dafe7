"""How good answers are, added up batch by batch; NumPy only.

What counts as one answer is decided by the task: the class of a sample, each label of a
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
    """How good the answers of one exit are; `None` where a task knows no such number.

    Args:
        accuracy: Share of right answers: of classes, or of labels at a threshold of a
            half.
        top_5: Share of answers whose class is among the five likeliest; for more than
            five classes.
        loss: Mean crossentropy; of numbers, mean squared error.
        calibration_error: Expected calibration error: how far the confidence of answers
            is from their accuracy; confidence is the probability of what is answered.
            See `confidence.Reliability`.
        agreement: Share of answers that are those of the final exit.
        absolute_error: Of numbers: the mean.
    """

    accuracy: float | None = None
    top_5: float | None = None
    loss: float | None = None
    calibration_error: float | None = None
    agreement: float | None = None
    absolute_error: float | None = None


class BatchAnswers:
    """Logits of one batch as answers.

    Args:
        logits: Shape `(batch, *positions, units)`; the output of a regression.
        task: What they answer.

    Attributes:
        chosen: The answers, shape `(answers,)`, -1 where logits are no numbers, which
            is never right; `None` of a regression.
    """

    def __init__(self, logits: np.ndarray, task: Task):
        self._logits = np.asarray(logits, "float64")
        self.task = task
        self.chosen: Any = None
        if task.name == "multiclass":
            self._logits = self._logits.reshape(-1, task.units)
            # Of an infinite logit, or of nothing else but -inf, softmax is NaN.
            defined = np.isfinite(self._logits.max(axis=-1, keepdims=True))
            self._logits = np.where(defined, self._logits, np.nan)
            self.chosen = best_classes(self._logits)
        elif task.name != "regression":
            self._logits = self._logits.ravel()
            yes = (self._logits > 0).astype("int64")
            self.chosen = np.where(np.isnan(self._logits), -1, yes)

    def sums(self, labels: np.ndarray) -> dict[str, Any]:
        """Return what `Sums` adds up.

        Args:
            labels: What `as_answers` returned.
        """
        if self.task.name == "regression":
            error = self._logits.reshape(labels.shape) - labels
            return {"loss": (error**2).sum(), "absolute_error": np.abs(error).sum()}
        log_p = _log_softmax(self._logits) if self.task.name == "multiclass" else None
        if log_p is None:
            with np.errstate(invalid="ignore"):  # NaN stays NaN.
                signed = np.where(labels > 0, -self._logits, self._logits)
                right = -np.logaddexp(0, signed)
                confidence = np.exp(-np.logaddexp(0, -np.abs(self._logits)))
        else:
            right = np.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
            confidence = np.exp(log_p.max(axis=-1))
        correct = np.equal(self.chosen, labels)
        sums = {
            "loss": -right.sum(),
            "accuracy": correct.sum(),
            "reliability": binned(confidence, correct),
        }
        if log_p is not None and self.task.units > 5:
            above = (log_p > right[:, None]).sum(axis=-1)
            sums["top_5"] = ((above < 5) & ~np.isnan(right)).sum()
        return sums


class Sums:
    """What batches gave, added up.

    Example:
        >>> task, sums = Task("multiclass", 2, "softmax"), Sums()
        >>> labels = as_answers(np.array([0, 1]), task)
        >>> sums.add(BatchAnswers(np.array([[2.0, 0.0], [1.0, 0.0]]), task), labels)
        >>> sums.quality().accuracy
        0.5
    """

    def __init__(self):
        self._totals: dict[str, Any] = {}
        self._count = 0

    def add(
        self,
        answers: BatchAnswers,
        labels: np.ndarray,
        final: BatchAnswers | None = None,
    ) -> None:
        """Add a batch.

        Args:
            answers: Of the exit.
            labels: What `as_answers` returned.
            final: Of the final exit, to agree with.
        """
        sums = answers.sums(labels)
        if final is not None and answers.chosen is not None:
            alike = np.equal(answers.chosen, final.chosen) & (answers.chosen >= 0)
            sums["agreement"] = alike.sum()
        for name, value in sums.items():
            known = self._totals.get(name)
            self._totals[name] = value if known is None else known + value
        self._count += labels.size

    def quality(self) -> Quality:
        """Return the means."""
        totals = dict(self._totals)
        found: Reliability | None = totals.pop("reliability", None)
        means = {name: float(total) / self._count for name, total in totals.items()}
        if found is not None:
            means["calibration_error"] = found.expected_calibration_error
        return Quality(**means)


def as_answers(labels: np.ndarray, task: Task) -> np.ndarray:
    """Return labels as they are compared with answers.

    Args:
        labels: Class numbers or one-hot rows; yes or no as 1 or 0; numbers.
        task: Says which.

    Returns:
        Class numbers or 0 and 1, shape `(answers,)`; numbers as they are.

    Raises:
        ValueError: They are none of these.

    Example:
        >>> as_answers(np.array([[0, 1], [1, 0]]), Task("multiclass", 2, "softmax"))
        array([1, 0])
    """
    task.check_labels(labels)
    if task.name == "regression":
        return labels.astype("float64")
    rank = len(task.positions) + 2
    one_hot = labels.ndim == rank and labels.shape[-1] == task.units > 1
    if task.name == "multiclass" and one_hot:
        return labels.argmax(axis=-1).ravel()
    classes = task.units if task.name == "multiclass" else 2
    flat = labels.ravel()
    if not np.isin(flat, np.arange(classes)).all():
        raise ValueError(
            f"Labels are out of range. Received: values from {flat.min()} to "
            f"{flat.max()}. Expected: whole numbers from 0 to {classes - 1}, for task "
            f"{task.name!r}."
        )
    return flat.astype("int64")


def _log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
