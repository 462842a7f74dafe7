"""The data format and the dtype policy of a base's tensors."""

import keras
from keras import layers

from keras_selfdistill.graph.nodes import producer
from keras_selfdistill.graph.shells import original
from keras_selfdistill.utils.type_aliases import SymbolicTensor

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
# Layers and operations (by class name) that move axes.
_REARRANGING = (layers.Reshape, layers.Permute, layers.RepeatVector)
_REARRANGING_OPERATIONS = ("Reshape", "Transpose", "Moveaxis", "Swapaxes")


def data_format_of(tensor: SymbolicTensor, default: str | None = None) -> str:
    """Return the data format of a symbolic tensor.

    It is the format of the nearest layer before it that has one, a normalisation only
    if there is no other. Keras' global image format applies to images only: recurrent
    layers, attention and Dense have their features last.

    Args:
        tensor: Symbolic tensor, `(batch, ..., channels)` or `(batch, channels, ...)`.
        default: Format if no layer before has one. By default channels last; for images
            (four axes or more) `keras.config.image_data_format()`.

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
    node, of_normalization = producer(tensor), None
    while not node.is_input:
        operation = original(node.operation)
        if (found := layer_data_format(operation, rank)) is not None:
            if not isinstance(operation, _NORMALIZATION):
                return found
            # It may normalise each step as well: other layers before it know better.
            of_normalization = of_normalization or found
        sources = [each for each in node.input_tensors if len(each.shape) == rank]
        if not sources or _rearranges(operation):
            break
        node = producer(sources[0])
    return of_normalization or default


def layer_data_format(operation: keras.Operation, rank: int) -> str | None:
    """Return the data format of a layer's tensors, `None` if it works on any.

    Args:
        operation: Layer or operation.
        rank: Number of axes of its tensors.

    Example:
        >>> layer_data_format(layers.Conv1D(4, 3, data_format="channels_first"), 3)
        'channels_first'
        >>> layer_data_format(layers.ReLU(), 3)
    """
    if isinstance(operation, layers.Bidirectional):
        operation = operation.forward_layer
    if isinstance(operation, layers.RNN):
        return getattr(operation.cell, "data_format", "channels_last")
    if isinstance(operation, layers.Wrapper):
        return layer_data_format(operation.layer, rank)
    own = getattr(operation, "data_format", None)
    if own in ("channels_last", "channels_first"):
        return own
    if isinstance(operation, _FEATURES_LAST) and rank > 2:
        return "channels_last"
    if isinstance(operation, _NORMALIZATION) and rank == 3:
        axis = operation.axis
        (axis, *others) = axis if isinstance(axis, (list, tuple)) else (axis,)
        if not others and axis in (-1, 1, 2):
            return "channels_first" if axis == 1 else "channels_last"
    return None


def _rearranges(operation: keras.Operation) -> bool:
    if isinstance(operation, keras.Layer):
        return isinstance(operation, _REARRANGING)
    return type(operation).__name__ in _REARRANGING_OPERATIONS


def dtype_policy(tensor: SymbolicTensor) -> keras.DTypePolicy:
    """Return the dtype policy of the layer that produced a tensor.

    If an operation without a policy produced it, such as `x + shortcut`, the policy is
    that of the nearest layer before. For a quantised layer it is the policy from before
    quantisation: new layers are built with weights to train.
    """
    node = producer(tensor)
    while not isinstance(node.operation, keras.Layer):
        node = producer(node.input_tensors[0])
    policy = node.operation.dtype_policy
    if policy.quantization_mode is None:
        return policy
    return keras.dtype_policies.get(policy.get_config()["source_name"])
