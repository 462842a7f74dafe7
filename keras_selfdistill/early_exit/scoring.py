"""From what sections answer to predictions and scores, in NumPy."""

import dataclasses

import numpy as np

from keras_selfdistill.criteria import Criterion, Memory

SCORES_FROM = ("exit", "running_mean")
LAST_RESORTS = ("final", "ensemble")
_LARGEST_SCORE = 1e300  # Infinite thresholds lie beyond every score.


@dataclasses.dataclass(frozen=True)
class Scorer:
    """What a sample is answered at each exit, and how sure the answer is.

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

    def __call__(
        self, number: int, answers: np.ndarray, memory: Memory
    ) -> tuple[np.ndarray, np.ndarray]:
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
        answers = answers.astype("float32", copy=False)
        averaged = self.scores_from == "running_mean"
        if number == self.exits - 1:
            averaged = self.last_resort == "ensemble"
        if self.averages:
            memory["sum"] = memory["sum"] + answers if number else answers
        chosen = memory["sum"] / (number + 1) if averaged else answers
        if self.softmax and not self.averages:
            return chosen, self._scores(chosen.astype("float64"), memory)
        probabilities = softmax(chosen)
        predictions = probabilities.astype("float32") if self.softmax else chosen
        return predictions, self._scores(probabilities, memory)

    def _scores(self, probabilities, memory):
        mine = {name[2:]: memory[name] for name in memory if name.startswith("c.")}
        scores = self.criterion(probabilities, mine)
        memory.update({f"c.{name}": array for name, array in mine.items()})
        # What is no number is not sure, whatever a criterion makes of it.
        missing = np.isnan(probabilities).any(axis=-1) | np.isnan(scores)
        scores = np.where(missing, -_LARGEST_SCORE, scores)
        return np.clip(scores, -_LARGEST_SCORE, _LARGEST_SCORE)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities in float64.

    Example:
        >>> softmax(np.array([[1000.0, 1000.0]])).tolist()
        [[0.5, 0.5]]
    """
    logits = logits.astype("float64")
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)
