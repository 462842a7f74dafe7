"""TensorFlow functions that run a section only for samples that still need it."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_selfdistill.early_exit.export.scored_section import ScoredSection


def batched_function(
    sections: Sequence[ScoredSection], inputs: Sequence[Any], limits: Sequence[float]
) -> Any:
    """Return a function of any number of samples, each of which leaves by itself.

    Args:
        sections: The network's, shallow to deep.
        inputs: Symbolic inputs that the first section takes, in its order.
        limits: A threshold for each exit but the last.

    Returns:
        A `tf.function` of tensors `(batch, …)`; its outputs are `prediction` of shape
        `(batch, classes)`, `exit` and `score` of shape `(batch,)`.
    """
    import tensorflow as tf

    parts = _as_functions(sections)

    def run(i, tensors):
        prediction, score, *alive = parts[i](tensors)
        here = {
            "prediction": prediction,
            "exit": tf.fill(tf.shape(score), i),
            "score": score,
        }
        if i == len(limits):
            return here
        # A score that is no number is not sure, so it is not below the threshold.
        rows = tf.where(tf.logical_not(score >= limits[i]))

        def go_on():
            # A copy of all rows would cost a batch of one sample more than its cut.
            all_ = tf.size(rows) == tf.size(score)
            rest = tf.cond(
                all_, lambda: alive, lambda: [tf.gather_nd(x, rows) for x in alive]
            )
            found = run(i + 1, rest)
            return {
                name: tf.tensor_scatter_nd_update(value, rows, found[name])
                for name, value in here.items()
            }

        return tf.cond(tf.size(rows) > 0, go_on, lambda: here)

    return tf.function(
        lambda *tensors: run(0, list(tensors)),
        input_signature=_signature(inputs),
        autograph=False,
    )


def single_function(
    sections: Sequence[ScoredSection], inputs: Sequence[Any], limits: Sequence[float]
) -> Any:
    """Return a function of one sample, which refuses batches of more when it runs.

    Args:
        sections: As for `batched_function`.
        inputs: Likewise.
        limits: Likewise.

    Returns:
        A `tf.function` like that of `batched_function`, for a batch of one.
    """
    import tensorflow as tf

    parts = _as_functions(sections)

    def run(i, tensors):
        prediction, score, *alive = parts[i](tensors)
        here = {"prediction": prediction, "exit": tf.constant([i]), "score": score}
        if i == len(limits):
            return here
        return tf.cond(score[0] >= limits[i], lambda: here, lambda: run(i + 1, alive))

    def one(tensor):
        # LiteRT lets callers resize an input of one sample. Reshaping what may have any
        # number fails there, where a mere size of 1 would be taken for granted.
        known = None not in tensor.shape[1:]
        rest = tensor.shape[1:] if known else tf.shape(tensor)[1:]
        return tf.reshape(tensor, tf.concat([[1], rest], 0))

    return tf.function(
        lambda *tensors: run(0, list(map(one, tensors))),
        input_signature=_signature(inputs),
        autograph=False,
    )


def _signature(inputs):
    import tensorflow as tf

    names = ["input"] if len(inputs) == 1 else [tensor.name for tensor in inputs]
    return [
        tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype, name=name)
        for name, tensor in zip(names, inputs, strict=True)
    ]


def _as_functions(sections) -> list[Callable]:
    """Return functions of the sections whose weights are constants where they are read.

    As variables or captured tensors they would reach a branch as arguments, which
    LiteRT can neither fold into convolutions nor hand to its fast kernels.
    """
    import tensorflow as tf

    def as_function(section):
        values = [
            (each, keras.ops.convert_to_numpy(each)) for each in section.variables
        ]

        def run(tensors):
            constants = [(variable, tf.constant(value)) for variable, value in values]
            with keras.StatelessScope(state_mapping=constants):
                return section(tensors)

        return run

    return [as_function(section) for section in sections]
