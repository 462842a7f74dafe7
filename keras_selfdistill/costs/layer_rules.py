"""Multiply-adds of Keras' layers, in closed form, and of users' that are registered."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import layers

from keras_selfdistill.costs.free_operations import FREE_LAYERS
from keras_selfdistill.costs.operation_rules import size

Rule = Callable[[Any, Sequence[Any], Sequence[Any]], int]


def register_macs(
    layer_class: type[keras.Operation],
) -> Callable[[Rule], Rule]:
    """Teach `profile` what a layer costs that it cannot open.

    Args:
        layer_class: Class of layers or operations, with its subclasses. Not with those
            of a layer of Keras that have a `call` of their own: they are opened, or
            registered themselves.

    Returns:
        A decorator of a function of (layer, inputs, outputs), the symbolic tensors of
        one call for one sample, that returns the multiply-adds.

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


def has_rule(operation: Any) -> bool:
    """Tell whether `rule` knows what a layer costs.

    Example:
        >>> has_rule(layers.Dense(2)), has_rule(layers.MultiHeadAttention(1, 2))
        (True, False)
    """
    own: Any = type(operation)
    if rule.dispatch(own) is rule.dispatch(object):
        return False
    of_keras = [each for each in own.__mro__ if each.__module__.startswith("keras.")]
    if not any(each in rule.registry for each in of_keras):
        return True  # A user's layer, registered.
    # A user's subclass of Keras' layer may compute something else: it is opened.
    return own in rule.registry or own.call is of_keras[0].call


def is_free(operation: Any) -> bool:
    """Tell whether a layer of Keras multiplies by nothing that counts.

    Example:
        >>> is_free(layers.ReLU()), is_free(layers.Dense(2))
        (True, False)
    """
    own = type(operation)  # Subclasses may do more: those of users are opened.
    return own.__module__.startswith("keras.src.layers.") and (
        own.__name__ in FREE_LAYERS
    )


@functools.singledispatch
def rule(operation: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """Return what one call costs: an integer, or a `counting.Count`."""
    raise TypeError(operation)  # Not called: the mark of classes without a rule.


@rule.register(layers.Dense)
def _count_dense(layer, inputs, outputs):
    return size(outputs[0], layer.name) * inputs[0].shape[-1]


@rule.register(layers.AdditiveAttention)
def _count_additive_attention(layer, inputs, outputs):
    query, value = inputs[:2]
    key = inputs[2] if len(inputs) > 2 else value
    keys = size(key, layer.name) * query.shape[1]  # Weighted and summed to scores.
    return keys + size(value, layer.name) * query.shape[1]


# Keras has no public base class for these: they are named one by one.
def _count_convolution(layer, inputs, outputs):
    channels = _channels(inputs[0], layer) // layer.groups
    return size(outputs[0], layer.name) * math.prod(layer.kernel_size) * channels


def _count_transposed(layer, inputs, outputs):
    return size(inputs[0], layer.name) * math.prod(layer.kernel_size) * layer.filters


def _count_depthwise(layer, inputs, outputs):
    return size(outputs[0], layer.name) * math.prod(layer.kernel_size)


def _count_separable(layer, inputs, outputs):
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


def _channels(tensor, layer):
    return tensor.shape[-1 if layer.data_format == "channels_last" else 1]
