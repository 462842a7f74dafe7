"""A section that also scores its exit, in the graph: what artifacts are made of."""

from typing import Any

import keras
from keras import ops

from keras_selfdistill.early_exit.scoring import Scorer
from keras_selfdistill.early_exit.section_models import Section

# What a scorer remembers passes from section to section as, by the kind of its array.
_DTYPES = {"f": "float32", "i": "int32", "u": "int32", "b": "bool"}


class ScoredSection(keras.Model):
    """A section, the score of its exit, and what the next section has to know.

    Its graph holds the scorer, so that an exported file needs no NumPy for it. Called
    with the list of tensors alive at the cut before it and of what the section before
    remembered, in the order of `input_specs`, it returns a list: prediction
    `(batch, classes)`, score `(batch,)`, then the next section's inputs.

    Args:
        section: Cut for the scorer's `reads`.
        scorer: Says how sure an answer is.
        number: Of the section, from 0.
        classes: How many the base tells apart.
    """

    def __init__(self, section: Section, scorer: Scorer, number: int, classes: int):
        super().__init__(name=section.name, autocast=False)
        self.section = section
        self._scorer = scorer
        self._number = number
        self._classes = classes
        self._before = _signature(scorer.remembered(number, classes))
        self._after = {}
        if number < scorer.exits - 1:
            self._after = _signature(scorer.remembered(number + 1, classes))
        self.built = True

    @property
    def input_specs(self) -> list[keras.layers.InputSpec]:
        """Shapes `(None, …)` and dtypes of the inputs, in order."""
        specs = [(tuple(tensor.shape), tensor.dtype) for tensor in self.section.inputs]
        specs += self._before.values()
        return [
            keras.layers.InputSpec(dtype=dtype, shape=shape, name=f"input_{i}")
            for i, (shape, dtype) in enumerate(specs)
        ]

    def call(self, tensors: list[Any], training: bool = False) -> list[Any]:
        """Return prediction, score and the next section's inputs."""
        alive = list(tensors[: len(self.section.inputs)])
        memory = dict(zip(self._before, tensors[len(alive) :], strict=True))
        found = self.section(alive, training=False)
        # A tensor also where a layer returned an array: the scorer goes by that.
        answers = ops.cast(found[self._scorer.reads], "float32")
        prediction, score, *remembered = self._score(answers, memory)
        return [prediction, score, *found["alive"], *remembered]

    def check_criterion(self) -> None:
        """Check that the criterion runs in a graph of TensorFlow, before all else does.

        Raises:
            ValueError: It does not, as where it needs values: NumPy does.
        """
        import tensorflow as tf

        answers = tf.TensorSpec((None, self._classes), "float32")
        memory = {name: tf.TensorSpec(*spec) for name, spec in self._before.items()}
        try:
            tf.function(self._score, autograph=False).get_concrete_function(
                answers, memory
            )
        # A user's criterion may raise anything on tensors without values.
        except Exception as error:
            raise ValueError(
                "This criterion cannot be exported: it does not run on tensors of a "
                f"graph. Received: {self._scorer.criterion!r}, which raised: {error}. "
                "Expected: functions of xp = keras_selfdistill.criteria."
                "array_namespace(probabilities) in place of NumPy's, such as "
                "xp.sort(probabilities, axis=-1)."
            ) from error

    def _score(self, answers, memory):
        memory = dict(memory)
        prediction, score = self._scorer(self._number, answers, memory)
        remembered = [
            ops.cast(memory[name], dtype) for name, (_, dtype) in self._after.items()
        ]
        return [prediction, score, *remembered]


def _signature(memory):
    """Return shape and dtype of each array, any number of rows."""
    for name, array in memory.items():
        if array.shape[:1] != (2,) or array.dtype.kind not in _DTYPES:
            raise ValueError(
                "A criterion's memory must be numbers with one row for each sample. "
                f"Received: shape {array.shape} and dtype {array.dtype} under "
                f"{name.removeprefix('c.')!r} for 2 samples. Expected: (2, ...)."
            )
    return {
        name: ((None, *array.shape[1:]), _DTYPES[array.dtype.kind])
        for name, array in memory.items()
    }
