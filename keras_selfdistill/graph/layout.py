"""Where a tensor of a base has its channels: last, or first behind the batch."""

from typing import Any

import keras
from keras import layers

from keras_selfdistill.graph.nodes import producer
from keras_selfdistill.graph.shells import original

# Layers that compute along the last axis, whatever the global image format is.
_FEATURES_LAST = (
    layers.Dense,
    layers.EinsumDense,
    layers.Embedding,
    layers.Attention,
    layers.AdditiveAttention,
    layers.MultiHeadAttention,
    layers.GroupQueryAttention,
)
_NORMALIZATION = (
    layers.BatchNormalization,
    layers.GroupNormalization,
    layers.LayerNormalization,
)
# Behind them the axes are others: layers, and operations by their class's name.
_REARRANGING = (layers.Reshape, layers.Permute, layers.RepeatVector)
_REARRANGING_OPERATIONS = ("Reshape", "Transpose", "Moveaxis", "Swapaxes")


def data_format_of(tensor: Any, default: str | None = None) -> str:
    """Return where a symbolic tensor has its channels.

    That is what the nearest layer before it says. Keras' global image format is about
    images: recurrent layers, attention and Dense have their features last.

    Args:
        tensor: Symbolic tensor, `(batch, ..., channels)` or `(batch, channels, ...)`.
        default: Where no layer says it. By default last, for images (of four axes or
            more) as `keras.config.image_data_format()` says.

    Returns:
        `"channels_last"` or `"channels_first"`.

    Example:
        >>> steps = layers.LSTM(4, return_sequences=True)(keras.Input((5, 3)))
        >>> data_format_of(layers.Dropout(0.5)(steps))
        'channels_last'
    """
    rank = len(tensor.shape)
    if default is None:
        image = rank > 3
        default = keras.config.image_data_format() if image else "channels_last"
    node = producer(tensor)
    while not node.is_input:
        operation = original(node.operation)
        if (said := format_said_by(operation, rank)) is not None:
            return said
        sources = [each for each in node.input_tensors if len(each.shape) == rank]
        if not sources or _rearranges(operation):
            return default
        node = producer(sources[0])
    return default


def format_said_by(operation: Any, rank: int) -> str | None:
    """Return where a layer's tensors have their channels, `None` if it does not say.

    Args:
        operation: Layer or operation.
        rank: Number of axes of its tensors.

    Example:
        >>> format_said_by(layers.Conv1D(4, 3, data_format="channels_first"), 3)
        'channels_first'
        >>> format_said_by(layers.ReLU(), 3)
    """
    if isinstance(operation, layers.Bidirectional):
        operation = operation.forward_layer
    if isinstance(operation, layers.RNN):
        return getattr(operation.cell, "data_format", "channels_last")
    if isinstance(operation, layers.Wrapper):
        return format_said_by(operation.layer, rank)
    said = getattr(operation, "data_format", None)
    if said in ("channels_last", "channels_first"):
        return said
    if isinstance(operation, _FEATURES_LAST) and rank > 2:
        return "channels_last"
    if isinstance(operation, _NORMALIZATION) and rank == 3:
        axis = operation.axis
        (axis, *others) = axis if isinstance(axis, (list, tuple)) else (axis,)
        if not others and axis in (-1, 1, 2):
            return "channels_first" if axis == 1 else "channels_last"
    return None


def _rearranges(operation):
    if isinstance(operation, keras.Layer):
        return isinstance(operation, _REARRANGING)
    return type(operation).__name__ in _REARRANGING_OPERATIONS
