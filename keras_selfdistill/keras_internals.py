"""What is read of Keras that Keras does not publish: one small function for each."""

from typing import Any

import keras
from keras.src.backend.common.global_state import get_global_attribute


def writes_legacy_format() -> bool:
    """Tell whether Keras is asking for a config for a legacy `.h5` file.

    Its own models read the same attribute; nothing public tells a model what its config
    is for.

    Example:
        >>> writes_legacy_format()
        False
    """
    return bool(get_global_attribute("use_legacy_config", False))


def value_without_autocast(variable: Any) -> Any:
    """Return a variable's value in its own dtype, also inside of a layer's call.

    There, `variable.value` is cast to the layer's compute dtype, and Keras' scope that
    turns this off is not public.

    Example:
        >>> import keras
        >>> value_without_autocast(keras.Variable([1.0, 2.0])).shape == (2,)
        True
    """
    return variable._value


def run_in_inference_mode(function: keras.Function, inputs: Any) -> Any:
    """Return a graph's outputs where every layer is called with `training=False`.

    `keras.Function` replays the arguments of its symbolic calls, and there layers whose
    `call` has `training=True` as its default, such as `RandomFlip`, recorded that. Only
    functional models override it, but a functional model whose inputs are not those of
    `keras.Input` copies every call, and the layers would keep the copies.

    Uses `Function._run_through_graph`, as `Functional.call` does.

    Args:
        function: Symbolic graph.
        inputs: Tensors, in the structure of its inputs.

    Example:
        >>> inputs = keras.Input((2,))
        >>> noisy = keras.layers.GaussianNoise(1.0)(inputs, training=True)
        >>> outputs = run_in_inference_mode(
        ...     keras.Function(inputs, noisy), keras.ops.ones((1, 2)))
        >>> keras.ops.convert_to_numpy(outputs).tolist()
        [[1.0, 1.0]]
    """

    def inferring(operation):
        if not isinstance(operation, keras.Layer):
            return operation
        # Every layer takes `training`; those whose `call` does not ask hand it on.
        return lambda *args, **kwargs: operation(*args, **{**kwargs, "training": False})

    return function._run_through_graph(inputs, operation_fn=inferring)
