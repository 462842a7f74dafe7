"""Multiply-adds of Keras' layers, in closed form, and of users' registered layers."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import layers

from keras_selfdistill.costs.free_operations import FREE_LAYERS
from keras_selfdistill.costs.operation_rules import size
from keras_selfdistill.utils.config import is_of_keras
from keras_selfdistill.utils.type_aliases import SymbolicTensor

Rule = Callable[[Any, Sequence[SymbolicTensor], Sequence[SymbolicTensor]], int]


def register_macs(
    layer_class: type[keras.Operation],
) -> Callable[[Rule], Rule]:
    """Register a function that counts the multiply-adds of a layer.

    It is needed for layers that cannot be traced, or whose operations have no rule.

    Args:
        layer_class: Class of layers or operations. The rule also applies to its
            subclasses; for a layer of Keras, only to those that inherit its `call`.

    Returns:
        Decorator of a function `(layer, inputs, outputs) -> int`. It gets the lists of
        symbolic tensors of one call, with batch size 1, and returns the multiply-adds.

    Example:
        >>> from keras_selfdistill.costs.counting import model_macs
        >>> class Fourier(keras.layers.Layer):
        ...     def call(self, x):
        ...         return keras.ops.fft2((x, keras.ops.zeros_like(x)))[0]
        >>> fourier = Fourier(name="fourier")
        >>> model = keras.Sequential([keras.Input((8, 8)), fourier])
        >>> model_macs(model)
        Count(macs=0, unknown=('fourier/fft2',))
        >>> @register_macs(Fourier)
        ... def count_fourier(layer, inputs, outputs):
        ...     size = 8 * 8
        ...     return 4 * size * 6  # log2(size)
        >>> model_macs(model)
        Count(macs=1536, unknown=())
    """
    return rule.register(layer_class)


def has_rule(operation: keras.Operation) -> bool:
    """Return whether `rule` applies to a layer.

    Example:
        >>> has_rule(layers.Dense(2)), has_rule(layers.MultiHeadAttention(1, 2))
        (True, False)
    """
    own: Any = type(operation)
    if rule.dispatch(own) is rule.dispatch(object):
        return False
    of_keras = [each for each in own.__mro__ if is_of_keras(each)]
    if not any(each in rule.registry for each in of_keras):
        return True  # A user's registered layer.
    # A user's subclass of Keras' layer may compute something else: it is traced.
    return own in rule.registry or own.call is of_keras[0].call


def is_free(operation: keras.Operation) -> bool:
    """Return whether a layer of Keras has no multiply-adds.

    Example:
        >>> is_free(layers.ReLU()), is_free(layers.Dense(2))
        (True, False)
    """
    own = type(operation)  # Users' subclasses may do more: they are traced.
    return own.__name__ in FREE_LAYERS and own is getattr(layers, own.__name__)


@functools.singledispatch
def rule(
    operation: keras.Operation,
    inputs: Sequence[SymbolicTensor],
    outputs: Sequence[SymbolicTensor],
) -> Any:
    """Return the cost of one call: an integer, or a `counting.Count`."""
    raise TypeError(operation)  # Never called: the default marks a missing rule.


@rule.register(layers.Dense)
def _count_dense(
    layer: keras.Layer,
    inputs: Sequence[SymbolicTensor],
    outputs: Sequence[SymbolicTensor],
) -> int:
    return size(outputs[0], layer.name) * inputs[0].shape[-1]


@rule.register(layers.AdditiveAttention)
def _count_additive_attention(
    layer: keras.Layer,
    inputs: Sequence[SymbolicTensor],
    outputs: Sequence[SymbolicTensor],
) -> int:
    query, value = inputs[:2]
    key = inputs[2] if len(inputs) > 2 else value
    keys = size(key, layer.name) * query.shape[1]  # Weighted and summed to scores.
    return keys + size(value, layer.name) * query.shape[1]


# Keras has no public base class for convolutions: each is registered below.
def _count_convolution(
    layer: keras.Layer,
    inputs: Sequence[SymbolicTensor],
    outputs: Sequence[SymbolicTensor],
) -> int:
    channels = _channels(inputs[0], layer) // layer.groups
    return size(outputs[0], layer.name) * math.prod(layer.kernel_size) * channels


def _count_transposed(
    layer: keras.Layer,
    inputs: Sequence[SymbolicTensor],
    outputs: Sequence[SymbolicTensor],
) -> int:
    return size(inputs[0], layer.name) * math.prod(layer.kernel_size) * layer.filters


def _count_depthwise(
    layer: keras.Layer,
    inputs: Sequence[SymbolicTensor],
    outputs: Sequence[SymbolicTensor],
) -> int:
    return size(outputs[0], layer.name) * math.prod(layer.kernel_size)


def _count_separable(
    layer: keras.Layer,
    inputs: Sequence[SymbolicTensor],
    outputs: Sequence[SymbolicTensor],
) -> int:
    positions = size(outputs[0], layer.name) // layer.filters
    channels = _channels(inputs[0], layer) * layer.depth_multiplier
    return positions * channels * (math.prod(layer.kernel_size) + layer.filters)


for _layer in (layers.Conv1D, layers.Conv2D, layers.Conv3D):
    rule.register(_layer, _count_convolution)
for _layer in (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose):
    rule.register(_layer, _count_transposed)
for _layer in (layers.DepthwiseConv1D, layers.DepthwiseConv2D):
    rule.register(_layer, _count_depthwise)
for _layer in (layers.SeparableConv1D, layers.SeparableConv2D):
    rule.register(_layer, _count_separable)


def _channels(tensor: SymbolicTensor, layer: keras.Layer) -> int:
    return tensor.shape[-1 if layer.data_format == "channels_last" else 1]
