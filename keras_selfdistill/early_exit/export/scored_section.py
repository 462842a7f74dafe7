"""A section that also computes the score of its exit, for exported artifacts."""

import pathlib

import keras
from keras import ops

from keras_selfdistill.criteria import Memory
from keras_selfdistill.early_exit.scoring import Scorer
from keras_selfdistill.early_exit.section_models import Section, cut_sections
from keras_selfdistill.exits.attach import ExitGraph
from keras_selfdistill.utils.type_aliases import Shape, Tensor

# Dtypes in which a scorer's memory is passed between sections, by the kind of array.
_DTYPES = {"f": "float32", "i": "int32", "u": "int32", "b": "bool"}


class ScoredSection(keras.Model):
    """A section, with the score of its exit and the scorer's memory.

    Its graph contains the scorer, so that an exported file does not need NumPy. Called
    with the list of tensors alive at the cut before it and of the memory of the section
    before, in the order of `input_specs`, it returns a list: prediction
    `(batch, classes)`, score `(batch,)`, then the inputs of the next section.

    Args:
        section: Section that returns the output named by `scorer.reads`.
        scorer: Computes predictions and confidence scores.
        index: Index of the section, from 0.
        classes: Number of classes.
    """

    def __init__(self, section: Section, scorer: Scorer, index: int, classes: int):
        super().__init__(name=section.name, autocast=False)
        self.section = section
        self._scorer = scorer
        self._index = index
        self._classes = classes
        self._before = _signature(scorer.remembered(index, classes))
        self._after = {}
        if index < scorer.exits - 1:
            self._after = _signature(scorer.remembered(index + 1, classes))
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

    def call(self, tensors: list[Tensor], training: bool = False) -> list[Tensor]:
        """Return prediction, score and the inputs of the next section."""
        alive = list(tensors[: len(self.section.inputs)])
        memory = dict(zip(self._before, tensors[len(alive) :], strict=True))
        found = self.section(alive, training=False)
        # A layer may return an array, for which the scorer would use NumPy.
        outputs = ops.cast(found[self._scorer.reads], "float32")
        prediction, score, *remembered = self._score(outputs, memory)
        return [prediction, score, *found["alive"], *remembered]

    def write(self, path: pathlib.Path, format: str) -> None:
        """Write the section to a file.

        Args:
            path: Path of the file.
            format: `"onnx"` or `"openvino"`.
        """
        signature = [self.input_specs]
        self.export(str(path), format=format, input_signature=signature, verbose=False)

    def check_criterion(self) -> None:
        """Check that the criterion runs in a TensorFlow graph.

        Raises:
            ValueError: It does not, for example because it calls NumPy.
        """
        import tensorflow as tf

        outputs = tf.TensorSpec((None, self._classes), "float32")
        memory = {name: tf.TensorSpec(*spec) for name, spec in self._before.items()}
        try:
            tf.function(self._score, autograph=False).get_concrete_function(
                outputs, memory
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

    def _score(self, outputs: Tensor, memory: dict[str, Tensor]) -> list[Tensor]:
        memory = dict(memory)
        prediction, score = self._scorer(self._index, outputs, memory)
        remembered = [
            ops.cast(memory[name], dtype) for name, (_, dtype) in self._after.items()
        ]
        return [prediction, score, *remembered]


def scored_sections(graph: ExitGraph, scorer: Scorer) -> list[ScoredSection]:
    """Return the sections of a network with the scores of their exits.

    Args:
        graph: Network of a wrapper.
        scorer: Computes predictions and confidence scores.
    """
    return [
        ScoredSection(section, scorer, index, graph.task.units)
        for index, section in enumerate(cut_sections(graph, [scorer.reads]))
    ]


def _signature(memory: Memory) -> dict[str, tuple[Shape, str]]:
    """Return the shape, with an open batch size, and the dtype of each array."""
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
