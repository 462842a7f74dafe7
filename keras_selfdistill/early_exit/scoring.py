"""Predictions and confidence scores of exits, on arrays or in a graph."""

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np

from keras_selfdistill.backend.tensors import to_numpy
from keras_selfdistill.criteria import Confidence, Criterion, Memory, array_namespace
from keras_selfdistill.utils.type_aliases import Tensor

SCORES_FROM = ("exit", "running_mean")
LAST_RESORTS = ("final", "ensemble")
# Below infinite thresholds also in float32, where artifacts have 3e38 for infinity.
LARGEST_SCORE = 1e38


@dataclasses.dataclass(frozen=True)
class SectionOutput:
    """What a section computed for its exit, on the backend's device.

    Args:
        tensor: Output of the exit, shape `(rows, classes)`, also of rows of samples
            that have exited before.
        confidence: Largest value of each row, shape `(rows,)`; `None` if the section
            does not compute it.
        rows: Rows of the samples, shape `(samples,)`.
    """

    tensor: Tensor
    confidence: Tensor | None
    rows: np.ndarray

    def array(self) -> np.ndarray:
        """Return the samples' rows of the output, on the host."""
        return to_numpy(self.tensor)[self.rows]


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Computes the prediction of each exit, and its confidence score.

    Serves both `predict`, which passes NumPy arrays and gets scores in float64, and
    exported artifacts, whose tensors are symbolic and float32.

    Args:
        criterion: Function from probabilities to confidence scores.
        scores_from: Output that is scored and predicted: `"exit"` for an exit's own,
            `"running_mean"` for the mean of the logits of all exits so far.
        last_resort: Prediction of the last exit: `"final"` or `"ensemble"`.
        softmax: Whether the base ends in softmax; else it ends in logits.
        exits: Number of exits, including the last.
        temperatures: Numbers that the logits of each exit are divided by, or `None`.
    """

    criterion: Criterion
    scores_from: str
    last_resort: str
    softmax: bool
    exits: int
    temperatures: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        for field, known in (
            ("scores_from", SCORES_FROM),
            ("last_resort", LAST_RESORTS),
        ):
            value = getattr(self, field)
            if value not in known:
                raise ValueError(
                    f"Unknown {field}. Received: {field}={value!r}. Expected one of "
                    f"{', '.join(map(repr, known))}."
                )

    @property
    def averages(self) -> bool:
        """Whether logits of several exits are averaged."""
        return self.scores_from == "running_mean" or self.last_resort == "ensemble"

    @property
    def reads(self) -> str:
        """Name of the section's output that is read: `"logits"` or `"output"`."""
        scaled = self.temperatures is not None
        return "logits" if self.averages or scaled else "output"

    @property
    def is_confidence(self) -> bool:
        """Whether scores are the largest values of what a section returns.

        Sections compute these themselves. Others are computed in float64, which JAX
        does not have, or by logarithms, which differ between backends.
        """
        plain = self.softmax and self.reads == "output"
        return plain and type(self.criterion) is Confidence

    def at_exit(
        self, index: int, output: SectionOutput, memory: Memory
    ) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """Return predictions, the samples' rows of them, and the samples' scores.

        The predictions stay on the device if only the scores are needed; else the
        arguments and results are those of calling the scorer.
        """
        if not self.is_confidence:
            predictions, scores = self(index, output.array(), memory)
            return predictions, np.arange(len(scores)), scores
        # A row with NaN has no largest value on any backend.
        scores = to_numpy(output.confidence)[output.rows].astype("float64")
        return output.tensor, output.rows, _bounded(scores, np.isnan(scores))

    def __call__(
        self, index: int, outputs: Tensor, memory: Memory
    ) -> tuple[Tensor, Tensor]:
        """Return the predictions and scores of samples at one exit.

        Args:
            index: Index of the exit, from 0.
            outputs: Output of the exit's section, shape `(samples, classes)`.
            memory: Arrays with one row per sample, which pass values to the next exit;
                updated in place.

        Returns:
            Predictions in the base's own form, `(samples, classes)`, and scores,
            `(samples,)`.
        """
        precise = "float64" if isinstance(outputs, np.ndarray) else "float32"
        outputs = _cast(outputs, "float32")
        chosen = self._chosen(index, outputs, memory)
        if self.temperatures is not None:
            chosen = chosen / self.temperatures[index]
        if self.softmax and self.reads == "output":
            return chosen, self._scores(_cast(chosen, precise), memory)
        probabilities = softmax(_cast(chosen, precise))
        predictions = _cast(probabilities, "float32") if self.softmax else chosen
        return predictions, self._scores(probabilities, memory)

    def _chosen(self, index: int, outputs: Tensor, memory: Memory) -> Tensor:
        """Return an exit's own outputs, or the mean of all so far."""
        averaged = self.scores_from == "running_mean"
        if index == self.exits - 1:
            averaged = self.last_resort == "ensemble"
        if self.averages:
            memory["sum"] = memory["sum"] + outputs if index else outputs
        return memory["sum"] / (index + 1) if averaged else outputs

    def logits(self, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the logits that predictions are made of, before any temperature.

        Args:
            outputs: Logits of every exit, shape `(samples, classes)`.
        """
        memory: Memory = {}
        return [self._chosen(i, each, memory) for i, each in enumerate(outputs)]

    def remembered(self, index: int, classes: int) -> Memory:
        """Return an example of the memory that an exit gets.

        Args:
            index: Index of the exit, from 0.
            classes: Number of classes.

        Returns:
            Memory of two samples.
        """
        memory: Memory = {}
        for before in range(index):
            self(before, np.full((2, classes), 1 / classes, "float32"), memory)
        return memory

    def _scores(self, probabilities: Tensor, memory: Memory) -> Tensor:
        xp = array_namespace(probabilities)
        mine = {name[2:]: memory[name] for name in memory if name.startswith("c.")}
        scores = self.criterion(probabilities, mine)
        if xp is np:  # Also where a criterion of tensors scored an array.
            mine = {name: to_numpy(each) for name, each in mine.items()}
            scores = to_numpy(scores)
        memory.update({f"c.{name}": each for name, each in mine.items()})
        scores = _cast(scores, probabilities.dtype)
        _check_shape(scores, probabilities, self.criterion)
        # NaN gets the lowest score, whatever a criterion returns for it.
        return _bounded(scores, xp.isnan(xp.sum(probabilities, axis=-1) + scores))


def _bounded(scores: Tensor, missing: Tensor) -> Tensor:
    """Return finite scores, the lowest one where a score is missing."""
    xp = array_namespace(scores)
    scores = xp.where(missing, -LARGEST_SCORE, scores)
    return xp.minimum(xp.maximum(scores, -LARGEST_SCORE), LARGEST_SCORE)


def softmax(logits: Tensor) -> Tensor:
    """Return probabilities in the precision of the logits.

    Example:
        >>> softmax(np.array([[1000.0, 1000.0]])).tolist()
        [[0.5, 0.5]]
    """
    xp = array_namespace(logits)
    raised = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
    return raised / xp.sum(raised, axis=-1, keepdims=True)


def _cast(array: Tensor, dtype: str) -> Tensor:
    if isinstance(array, np.ndarray):
        return array.astype(dtype, copy=False)
    return keras.ops.cast(array, dtype)


def _check_shape(scores: Tensor, probabilities: Tensor, criterion: Criterion) -> None:
    found, expected = tuple(scores.shape), tuple(probabilities.shape)[:1]
    if len(found) != 1 or (found != expected and None not in found + expected):
        raise ValueError(
            "A criterion must return one score for each sample. Received: scores of "
            f"shape {found} from {criterion!r} for probabilities of shape "
            f"{tuple(probabilities.shape)}. Expected: {expected}, e.g. "
            "probabilities.max(axis=-1)."
        )
