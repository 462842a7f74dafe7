"""Read the graph inside a layer that is made of layers, such as a stack of blocks."""

from typing import Any

import keras


def opened(layer: keras.Layer, node: Any, path: str) -> keras.Model:
    """Return what a layer's `call` does with its own layers, as a functional model.

    Args:
        layer: Built layer that calls other layers, and has no weights beside theirs.
        node: The call that is opened.
        path: How messages name the layer.

    Returns:
        A model on the layer's own layers and weights; one input for each symbolic
        tensor of the call.

    Raises:
        ValueError: The layer has weights beside those of its layers, or reads a mask,
            or its `call` needs more than the shapes of its inputs.

    Example:
        >>> class Stack(keras.layers.Layer):
        ...     def __init__(self, **kwargs):
        ...         super().__init__(**kwargs)
        ...         self.first = keras.layers.Dense(4, name="first")
        ...         self.second = keras.layers.Dense(2, name="second")
        ...     def call(self, x):
        ...         return self.second(self.first(x))
        >>> stack = Stack(name="stack")
        >>> node = stack(keras.Input((4,)))._keras_history.operation._inbound_nodes[0]
        >>> [layer.name for layer in opened(stack, node, "stack").layers[1:]]
        ['first', 'second']
    """
    given = node.arguments.keras_tensors
    if any(getattr(tensor, "_keras_mask", None) is not None for tensor in given):
        raise _closed(path, "it reads a mask")
    inputs = [
        keras.Input(batch_shape=tensor.shape, dtype=_dtype(layer, tensor))
        for tensor in given
    ]
    values = {id(old): new for old, new in zip(given, inputs, strict=True)}
    args, kwargs = node.arguments.fill_in(values)
    kwargs.pop("training", None)
    try:
        inside = keras.Model(inputs, layer.call(*args, **kwargs), name=layer.name)
    except Exception as error:
        raise _closed(path, f"its call fails on symbolic tensors: {error}") from error
    reached = {id(weight) for weight in inside.weights}
    alone = [weight.path for weight in layer.weights if id(weight) not in reached]
    if alone or len(inside.layers) == len(inputs):
        raise _closed(
            path, f"it has weights of its own, {alone}" if alone else "it calls none"
        )
    return inside


def holds_layers(operation: Any) -> bool:
    """Tell a layer that is made of others from one that is not.

    Example:
        >>> holds_layers(keras.layers.Dense(2))
        False
        >>> holds_layers(keras.layers.Bidirectional(keras.layers.LSTM(2)))
        True
    """
    return isinstance(operation, keras.Layer) and bool(operation._layers)


def _dtype(layer, tensor):
    floating = keras.backend.is_float_dtype(tensor.dtype)
    return layer.input_dtype if layer.autocast and floating else tensor.dtype


def _closed(path, reason):
    return ValueError(
        f"The layers inside {path!r} cannot be tapped. Received: a layer that shows no "
        f"graph of layers, because {reason}. Tap {path!r} itself or a layer beside it."
    )
