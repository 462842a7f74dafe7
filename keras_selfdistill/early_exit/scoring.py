"""From what sections answer to predictions and scores, on arrays or in a graph."""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_selfdistill.backend.tensors import to_numpy
from keras_selfdistill.criteria import Criterion, Memory, array_namespace

SCORES_FROM = ("exit", "running_mean")
LAST_RESORTS = ("final", "ensemble")
# Infinite thresholds lie beyond every score, also in float32, where exported files have
# 3e38 for infinity.
LARGEST_SCORE = 1e38


@dataclasses.dataclass(frozen=True)
class Scorer:
    """What a sample is answered at each exit, and how sure the answer is.

    One definition for `predict`, where arrays come from NumPy and scores are computed
    in float64, and for exported files, where tensors are symbolic and float32.

    Args:
        criterion: Scores probabilities.
        scores_from: `"exit"`: an exit's own output is scored and answered.
            `"running_mean"`: the mean of the logits of all exits so far.
        last_resort: `"final"` or `"ensemble"`: what answers where no exit was sure.
        softmax: Whether the base ends in softmax; else it ends in logits.
        exits: Number of exits, the last one included.
    """

    criterion: Criterion
    scores_from: str
    last_resort: str
    softmax: bool
    exits: int

    def __post_init__(self):
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
        """Which answer of a section is read: `"logits"` or `"output"`."""
        return "logits" if self.averages else "output"

    def __call__(self, number: int, answers: Any, memory: Memory) -> tuple[Any, Any]:
        """Return the predictions and scores of samples at one exit.

        Args:
            number: Of the exit, from 0.
            answers: Of the exit's section, shape `(samples, classes)`.
            memory: Arrays with a row for each sample; what is to be known at the next
                exit is put in.

        Returns:
            Predictions in the base's own form, `(samples, classes)`, and scores,
            `(samples,)`.
        """
        precise = "float64" if isinstance(answers, np.ndarray) else "float32"
        answers = _cast(answers, "float32")
        averaged = self.scores_from == "running_mean"
        if number == self.exits - 1:
            averaged = self.last_resort == "ensemble"
        if self.averages:
            memory["sum"] = memory["sum"] + answers if number else answers
        chosen = memory["sum"] / (number + 1) if averaged else answers
        if self.softmax and not self.averages:
            return chosen, self._scores(_cast(chosen, precise), memory)
        probabilities = softmax(_cast(chosen, precise))
        predictions = _cast(probabilities, "float32") if self.softmax else chosen
        return predictions, self._scores(probabilities, memory)

    def remembered(self, number: int, classes: int) -> Memory:
        """Return an example of what is known of samples when they come to an exit.

        Args:
            number: Of the exit, from 0.
            classes: How many the base tells apart.

        Returns:
            Arrays with two rows.
        """
        memory: Memory = {}
        for before in range(number):
            self(before, np.full((2, classes), 1 / classes, "float32"), memory)
        return memory

    def _scores(self, probabilities, memory):
        xp = array_namespace(probabilities)
        mine = {name[2:]: memory[name] for name in memory if name.startswith("c.")}
        scores = self.criterion(probabilities, mine)
        if xp is np:  # Also where a criterion of tensors scored an array.
            mine = {name: to_numpy(each) for name, each in mine.items()}
            scores = to_numpy(scores)
        memory.update({f"c.{name}": each for name, each in mine.items()})
        scores = _cast(scores, probabilities.dtype)
        _check_shape(scores, probabilities, self.criterion)
        # What is no number is not sure, whatever a criterion makes of it.
        missing = xp.logical_or(
            xp.isnan(xp.sum(probabilities, axis=-1)), xp.isnan(scores)
        )
        scores = xp.where(missing, -LARGEST_SCORE, scores)
        return xp.clip(scores, -LARGEST_SCORE, LARGEST_SCORE)


def softmax(logits: Any) -> Any:
    """Return probabilities in the precision of the logits.

    Example:
        >>> softmax(np.array([[1000.0, 1000.0]])).tolist()
        [[0.5, 0.5]]
    """
    xp = array_namespace(logits)
    raised = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
    return raised / xp.sum(raised, axis=-1, keepdims=True)


def _cast(array, dtype):
    if isinstance(array, np.ndarray):
        return array.astype(dtype, copy=False)
    return keras.ops.cast(array, dtype)


def _check_shape(scores, probabilities, criterion):
    found, expected = tuple(scores.shape), tuple(probabilities.shape)[:1]
    if len(found) != 1 or (found != expected and None not in found + expected):
        raise ValueError(
            "A criterion must return one score for each sample. Received: scores of "
            f"shape {found} from {criterion!r} for probabilities of shape "
            f"{tuple(probabilities.shape)}. Expected: {expected}, e.g. "
            "probabilities.max(axis=-1)."
        )
