"""TensorFlow functions that run a section only for samples that have not exited."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_selfdistill.early_exit.export.scored_section import ScoredSection
from keras_selfdistill.utils.type_aliases import SymbolicTensor, Tensor


def batched_function(
    sections: Sequence[ScoredSection],
    limits: Sequence[float],
) -> Any:
    """Return a function of any number of samples, which exit individually.

    Args:
        sections: Sections of the network, shallow to deep.
        limits: Thresholds of all exits but the last.

    Returns:
        A `tf.function` of tensors `(batch, …)`; its outputs are `prediction` of shape
        `(batch, classes)`, `exit` and `score` of shape `(batch,)`.
    """
    import tensorflow as tf

    parts = _as_functions(sections)

    def run(i: int, tensors: list[Tensor]) -> dict[str, Tensor]:
        prediction, score, *alive = parts[i](tensors)
        here = {
            "prediction": prediction,
            "exit": tf.fill(tf.shape(score), i),
            "score": score,
        }
        if i == len(limits):
            return here
        # Not `score < limits[i]`, so that samples with a score of NaN go on.
        rows = tf.where(tf.logical_not(score >= limits[i]))

        def go_on() -> dict[str, Tensor]:
            # Gathering all rows would cost a batch of one sample more than it saves.
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
        input_signature=signature(sections[0].section.inputs),
        autograph=False,
    )


def single_function(
    sections: Sequence[ScoredSection],
    limits: Sequence[float],
) -> Any:
    """Return a function of one sample, which refuses larger batches at run time.

    Args:
        sections: Sections of the network, shallow to deep.
        limits: Thresholds of all exits but the last.

    Returns:
        A `tf.function` like that of `batched_function`, for a batch of one.
    """
    import tensorflow as tf

    parts = _as_functions(sections)

    def run(i: int, tensors: list[Tensor]) -> dict[str, Tensor]:
        prediction, score, *alive = parts[i](tensors)
        here = {"prediction": prediction, "exit": tf.constant([i]), "score": score}
        if i == len(limits):
            return here
        return tf.cond(score[0] >= limits[i], lambda: here, lambda: run(i + 1, alive))

    return tf.function(
        lambda *tensors: run(0, list(map(one_sample, tensors))),
        input_signature=signature(sections[0].section.inputs),
        autograph=False,
    )


def input_names(inputs: Sequence[SymbolicTensor]) -> list[str]:
    """Return the names that clients use for the inputs of a network.

    Args:
        inputs: Inputs of its first section.

    Example:
        >>> input_names([keras.Input((8,))])
        ['input']
    """
    return ["input"] if len(inputs) == 1 else [tensor.name for tensor in inputs]


def one_sample(tensor: Tensor) -> Tensor:
    """Return a tensor of any batch size as one of a single sample.

    LiteRT lets callers resize an input of one sample. Reshaping an input of any batch
    size then fails, whereas a static size of 1 would not be checked.
    """
    import tensorflow as tf

    known = None not in tensor.shape[1:]
    rest = tensor.shape[1:] if known else tf.shape(tensor)[1:]
    return tf.reshape(tensor, tf.concat([[1], rest], 0))


def signature(inputs: Sequence[SymbolicTensor]) -> list[Any]:
    """Return the specifications of the inputs of an artifact, with their names."""
    import tensorflow as tf

    return [
        tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype, name=name)
        for name, tensor in zip(input_names(inputs), inputs, strict=True)
    ]


def _as_functions(sections: Sequence[ScoredSection]) -> list[Callable]:
    """Return functions of the sections, with weights as constants."""

    def as_function(section: ScoredSection) -> Callable:
        constants = as_constants(section)

        def run(tensors: list[Tensor]) -> list[Tensor]:
            with constants():
                return section(tensors)

        return run

    return [as_function(section) for section in sections]


def as_constants(section: ScoredSection) -> Callable[[], keras.StatelessScope]:
    """Return a function of scopes in which the weights of a section are constants.

    Variables or captured tensors would be arguments of a branch, which LiteRT can
    neither fold into convolutions nor pass to its fast kernels.
    """
    import tensorflow as tf

    values = [(each, keras.ops.convert_to_numpy(each)) for each in section.variables]

    def scope() -> keras.StatelessScope:
        constants = [(variable, tf.constant(value)) for variable, value in values]
        return keras.StatelessScope(state_mapping=constants)

    return scope
