"""A section that also scores its exit, in the graph: what artifacts are made of."""

from typing import Any

import keras
from keras import ops

from keras_selfdistill import criteria
from keras_selfdistill.early_exit.scoring import Scorer
from keras_selfdistill.early_exit.section_models import Section

_SMALLEST_SCORE = -3.4e38  # Of float32, below every threshold that is written.


class ScoredSection(keras.Model):
    """A section, the score of its exit, and what the next section has to know.

    It computes in its graph what `Scorer` computes in NumPy, so that an exported file
    needs neither. Called with the list of tensors alive at the cut before it and of
    what the section before remembered, in the order of `input_specs`, it returns a
    list: prediction `(batch, classes)`, score `(batch,)`, then the next section's
    inputs.

    Args:
        section: Cut for the scorer's `reads`.
        scorer: Says how sure an answer is.
        number: Of the section, from 0.
        classes: How many the base tells apart.

    Raises:
        ValueError: The criterion is a user's own, which is no part of a graph.
    """

    def __init__(self, section: Section, scorer: Scorer, number: int, classes: int):
        super().__init__(name=section.name, autocast=False)
        if type(scorer.criterion) not in _SCORES:
            raise ValueError(
                "This criterion cannot be exported: it runs in NumPy, not in the "
                f"network's graph. Received: {scorer.criterion!r}. Expected one of "
                f"{', '.join(each.__name__ for each in _SCORES)}."
            )
        self.section = section
        self._scorer = scorer
        self._number = number
        self._classes = classes
        self.built = True

    @property
    def input_specs(self) -> list[keras.layers.InputSpec]:
        """Shapes `(None, …)` and dtypes of the inputs, in order."""
        specs = [
            (tuple(tensor.shape), tensor.dtype) for tensor in self.section.inputs
        ] + [
            ((None, self._classes) if name == "sum" else (None,), "float32")
            for name in self._remembered(self._number)
        ]
        return [
            keras.layers.InputSpec(dtype=dtype, shape=shape, name=f"input_{i}")
            for i, (shape, dtype) in enumerate(specs)
        ]

    def call(self, tensors: list[Any], training: bool = False) -> list[Any]:
        """Return prediction, score and the next section's inputs."""
        alive = list(tensors[: len(self.section.inputs)])
        before = dict(
            zip(self._remembered(self._number), tensors[len(alive) :], strict=True)
        )
        found = self.section(alive, training=False)
        prediction, probabilities, after = self._answer(
            ops.cast(found[self._scorer.reads], "float32"), before
        )
        score = _SCORES[type(self._scorer.criterion)](probabilities, before, after)
        # What is no number is not sure, whatever a criterion makes of it.
        missing = ops.isnan(ops.sum(probabilities, axis=-1))
        score = ops.where(missing, _SMALLEST_SCORE, score)
        remembered = [after[name] for name in self._remembered(self._number + 1)]
        return [prediction, score, *found["alive"], *remembered]

    def _remembered(self, number):
        """Names of what section `number` gets from the one before."""
        if number in (0, self._scorer.exits):
            return []
        names = ["sum"] if self._scorer.averages else []
        if isinstance(self._scorer.criterion, criteria.Patience):
            names += ["class", "agreed"]
        return names

    def _answer(self, answers, before):
        """Return prediction, probabilities and what is to be remembered."""
        scorer, last = self._scorer, self._number == self._scorer.exits - 1
        total = before["sum"] + answers if "sum" in before else answers
        averaged = scorer.scores_from == "running_mean"
        if last:
            averaged = scorer.last_resort == "ensemble"
        chosen = total / (self._number + 1) if averaged else answers
        if scorer.softmax and not scorer.averages:
            return chosen, chosen, {"sum": total}
        probabilities = ops.softmax(chosen, axis=-1)
        prediction = probabilities if scorer.softmax else chosen
        return prediction, probabilities, {"sum": total}


def _confidence(probabilities, before, after):
    del before, after
    return ops.max(probabilities, axis=-1)


def _margin(probabilities, before, after):
    del before, after
    largest, _ = ops.top_k(probabilities, 2)
    return largest[:, 0] - largest[:, 1]


def _entropy(probabilities, before, after):
    del before, after
    safe = ops.where(probabilities > 0, probabilities, 1.0)  # 0 · log 0 is 0.
    entropy = -ops.sum(probabilities * ops.log(safe), axis=-1)
    return 1.0 - entropy / ops.log(float(probabilities.shape[-1]))


def _patience(probabilities, before, after):
    classes = ops.cast(ops.argmax(probabilities, axis=-1), "float32")
    agreed = ops.ones_like(classes)
    if "class" in before:
        same = ops.cast(ops.equal(classes, before["class"]), "float32")
        agreed = same * before["agreed"] + 1.0
    after["class"], after["agreed"] = classes, agreed
    return agreed


_SCORES = {
    criteria.Confidence: _confidence,
    criteria.Margin: _margin,
    criteria.Entropy: _entropy,
    criteria.Patience: _patience,
}
