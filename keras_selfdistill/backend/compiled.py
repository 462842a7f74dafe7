"""Compile a model once for each batch size, on each backend."""

import operator
import threading
from collections.abc import Callable, Sequence

import keras

from keras_selfdistill.utils.type_aliases import Tensor, TensorStructure

_Call = Callable[[Sequence[Tensor]], TensorStructure]
_Compiled = tuple[list[keras.Variable], dict[int, _Call]]


class CompiledModel:
    """A model with a list of inputs, compiled once for every batch size it meets.

    Weights are read at every call, so that later training has effect. If variables are
    added or replaced, as by `enable_lora` and `quantize`, the model is compiled again.
    Variables that a call assigns, such as the seeds of random layers, are updated.
    Several threads may call it.

    Args:
        model: A `Section`, or a functional model called with a list of its inputs.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> call = CompiledModel(keras.Model(model.inputs, model.outputs[0]))
        >>> call([np.ones((3, 4), "float32")]).shape[0]
        3
        >>> call.compile_count <= 1
        True
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        # The variables for which it was compiled, and compiled functions by batch size.
        self._compiled: _Compiled = [], {}
        self._lock = threading.Lock()
        self.compile_count = 0  # Number of times the backend traced the model.

    def __call__(self, tensors: Sequence[Tensor]) -> TensorStructure:
        """Return the model's outputs.

        Args:
            tensors: Arrays or tensors of the backend, of the same batch size.
        """
        rows = int(tensors[0].shape[0])
        call = self._calls().get(rows)
        return call(tensors) if call else self._first_call(rows, tensors)

    def _calls(self) -> dict[int, _Call]:
        """Return the functions compiled for the current variables, by batch size."""
        variables, calls = self._compiled
        now = self._model.variables
        if len(now) != len(variables) or any(map(operator.is_not, now, variables)):
            self._compiled = now, calls = now, {}
        return calls

    def _first_call(self, rows: int, tensors: Sequence[Tensor]) -> TensorStructure:
        with self._lock:  # One thread compiles; the others wait and use it.
            calls = self._calls()
            call = calls.get(rows)
            if call:
                return call(tensors)
            compile_ = _COMPILERS[keras.backend.backend()]
            call = compile_(self._model, rows, self._count)
            outputs = call(tensors)  # JAX compiles at the first call.
            calls[rows] = call
            return outputs

    def _count(self) -> None:
        self.compile_count += 1


def _compile_tensorflow(
    model: keras.Model, rows: int, traced: Callable[[], None]
) -> _Call:
    import tensorflow as tf

    def run(*tensors: Tensor) -> TensorStructure:
        traced()
        return model(list(tensors), training=False)

    signature = [
        tf.TensorSpec((rows, *tensor.shape[1:]), tensor.dtype)
        for tensor in model.inputs
    ]
    function = tf.function(
        run, input_signature=signature, autograph=False, jit_compile=False
    ).get_concrete_function()
    return lambda tensors: function(*map(tf.convert_to_tensor, tensors))


def _compile_jax(model: keras.Model, rows: int, traced: Callable[[], None]) -> _Call:
    import jax

    trainable, others = model.trainable_variables, model.non_trainable_variables
    assigned: list[int] = []  # Indices of the others that calls assign, mostly seeds.

    @jax.jit
    def run(weights: list[list[Tensor]], tensors: Sequence[Tensor]) -> TensorStructure:
        traced()
        outputs, after = model.stateless_call(*weights, tensors, training=False)
        new = enumerate(zip(weights[1], after, strict=True))
        assigned[:] = [i for i, (old, value) in new if value is not old]
        return outputs, [after[i] for i in assigned]

    def call(tensors: Sequence[Tensor]) -> TensorStructure:
        weights = [
            [variable.value for variable in group] for group in (trainable, others)
        ]
        outputs, values = run(weights, list(tensors))
        for i, value in zip(assigned, values, strict=True):
            others[i].assign(value)
        return outputs

    return call


def _compile_torch(model: keras.Model, rows: int, traced: Callable[[], None]) -> _Call:
    import torch

    def call(tensors: Sequence[Tensor]) -> TensorStructure:
        with torch.inference_mode():
            tensors = [keras.ops.convert_to_tensor(tensor) for tensor in tensors]
            return model(tensors, training=False)

    return call


_COMPILERS = {
    "tensorflow": _compile_tensorflow,
    "jax": _compile_jax,
    "torch": _compile_torch,
}
