"""TensorFlow Lite models of every exit: the network in int8, its scores in float32.

The converter sees one network without branches, so that representative samples pass
all of its sections, and tensors between sections stay int8.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_selfdistill.early_exit.export.deciding import (
    as_constants,
    one_sample,
    signature,
)
from keras_selfdistill.early_exit.export.scored_section import ScoredSection
from keras_selfdistill.early_exit.scoring import Scorer
from keras_selfdistill.utils.type_aliases import Tensor


def convert_network(
    sections: Sequence[ScoredSection], samples: Sequence[np.ndarray]
) -> bytes:
    """Return the network in int8, from its inputs to the logits of every exit.

    Args:
        sections: Sections of the network, shallow to deep, that return logits.
        samples: Representative samples, one array for each input of the first section.

    Returns:
        A model of one sample. Its inputs have the names of `signature`; its outputs
        are `logits_0`, `logits_1`, …, in float32, shape `(1, classes)`.

    Raises:
        ValueError: An operator has no int8 form.
    """
    import tensorflow as tf

    specs = signature(sections[0].section.inputs)
    constants = [as_constants(section) for section in sections]

    def run(*tensors: Tensor) -> dict[str, Tensor]:
        alive, found = [one_sample(each) for each in tensors], {}
        for i, section in enumerate(sections):
            with constants[i]():
                made = section.section(alive, training=False)
            found[f"logits_{i}"] = keras.ops.cast(made["logits"], "float32")
            alive = made["alive"]
        return found

    def representative() -> Iterator[dict[str, np.ndarray]]:
        names = [spec.name for spec in specs]
        for row in range(len(samples[0])):
            yield {
                name: each[row : row + 1]
                for name, each in zip(names, samples, strict=True)
            }

    function = _function(run, specs)
    _check_loops(function)
    converter = _converter(function)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.int8
    try:
        with warnings.catch_warnings():
            # TensorFlow warns users of the interpreter that it calibrates with itself.
            warnings.filterwarnings("ignore", r"\s*Warning: tf\.lite\.Interpreter")
            return converter.convert()
    except Exception as error:  # The converter raises errors of several kinds.
        raise ValueError(
            "This network cannot be quantised to int8: TensorFlow's converter refused "
            f"it. Received: {error!s:.300}. Expected: layers that compute in "
            "float32, not in mixed precision, and that TensorFlow Lite has. Export "
            "without quantize=, or replace the layer."
        ) from error


def convert_scores(scorer: Scorer, classes: int, limits: Sequence[float]) -> bytes:
    """Return the scores of every exit and whether a sample exits there, in float32.

    Args:
        scorer: Computes predictions and scores from logits.
        classes: Number of classes.
        limits: Thresholds of all exits but the last.

    Returns:
        A model of one sample. Its inputs are `logits_0`, …; its outputs
        `prediction_0`, …, `score_0`, …, and but for the last exit `stop_0`, ….
    """
    import tensorflow as tf

    def run(*logits: Tensor) -> dict[str, Tensor]:
        memory: dict[str, Tensor] = {}
        found = {}
        for i, each in enumerate(logits):
            prediction, score = scorer(i, each, memory)
            found[f"prediction_{i}"] = prediction
            found[f"score_{i}"] = score
            if i < len(limits):
                found[f"stop_{i}"] = score[0] >= limits[i]
        return found

    specs = [
        tf.TensorSpec((1, classes), "float32", name=f"logits_{i}")
        for i in range(scorer.exits)
    ]
    return _converter(_function(run, specs)).convert()


def _function(run: Callable, specs: Sequence[Any]) -> Any:
    import tensorflow as tf

    return tf.function(run, input_signature=specs, autograph=False)


def _converter(function: Any) -> Any:
    import tensorflow as tf

    module = tf.Module()  # With it the converter keeps names of inputs and outputs.
    module.serve = function
    return tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], module
    )


def _check_loops(function: Any) -> None:
    """Refuse loops, with which TensorFlow's calibrator would end the process."""
    graph = function.get_concrete_function().graph.as_graph_def()
    bodies = [graph.node, *(each.node_def for each in graph.library.function)]
    loops = [node.name for body in bodies for node in body if "While" in node.op]
    if loops:
        raise ValueError(
            "A network with loops cannot be quantised to int8, because TensorFlow's "
            "converter cannot measure the ranges of their tensors. Received: loops "
            f"{', '.join(loops)}. Expected: recurrent layers with unroll=True, such as "
            "keras.layers.LSTM(8, unroll=True)."
        )
