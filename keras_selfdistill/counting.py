"""Multiply-adds of a model's calls, from their shapes.

Counted are products that are summed: dense layers, convolutions of every kind, matrix
products, attention. Activations, normalisation, pooling, lookups and sums count as
zero, as is usual in the field. A layer without a rule here is opened: its `call` runs
on symbolic tensors, and what it calls is counted, down to Keras' own operations.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
from absl import logging
from keras import layers

from keras_selfdistill.classifier import PreActivation
from keras_selfdistill.flat import original, takes_training
from keras_selfdistill.graph import calls_inside, model_nodes
from keras_selfdistill.operation_rules import count_operation, is_primitive, size

Rule = Callable[[Any, Sequence[Any], Sequence[Any]], int]
# Of one sample of each input, without the batch, by the id of its symbolic tensor.
Shapes = Mapping[int, tuple[int, ...]]

# Packages of Keras whose layers multiply by no kernel, but for those named below.
_FREE = tuple(
    f"keras.src.layers.{package}."
    for package in (
        "activations",
        "merging",
        "normalization",
        "pooling",
        "preprocessing",
        "regularization",
        "reshaping",
    )
)
_NOT_FREE = (
    layers.Dot,
    layers.MelSpectrogram,
    layers.Pipeline,
    layers.SpectralNormalization,
    layers.STFTSpectrogram,
)
_FREE_LAYERS = (layers.InputLayer, layers.Embedding, layers.Masking, layers.Identity)


class Count(NamedTuple):
    """What a call costs for one sample.

    Args:
        multiply_adds: Of the parts that are known.
        unknown: Names of those that are not.
    """

    multiply_adds: int = 0
    unknown: tuple[str, ...] = ()

    @classmethod
    def total(cls, counts: "Iterable[Count]") -> "Count":
        """Return the sum of several.

        Example:
            >>> Count.total([Count(2), Count(3, ("fft",))])
            Count(multiply_adds=5, unknown=('fft',))
        """
        counts = list(counts)
        names = [name for count in counts for name in count.unknown]
        return cls(sum(count.multiply_adds for count in counts), tuple(names))


def register_multiply_adds(
    layer_class: type[keras.Operation],
) -> Callable[[Rule], Rule]:
    """Teach `profile` what a layer costs that it cannot open.

    Args:
        layer_class: Class of layers or operations, with its subclasses.

    Returns:
        A decorator of a function of (layer, inputs, outputs), the symbolic tensors of
        one call for one sample, that returns the multiply-adds.

    Example:
        >>> class Fourier(keras.layers.Layer):
        ...     def call(self, x):
        ...         return keras.ops.fft2((x, keras.ops.zeros_like(x)))[0]
        >>> fourier = Fourier(name="fourier")
        >>> model = keras.Sequential([keras.Input((8, 8)), fourier])
        >>> model_multiply_adds(model)
        Count(multiply_adds=0, unknown=('fourier/fft2',))
        >>> @register_multiply_adds(Fourier)
        ... def count_fourier(layer, inputs, outputs):
        ...     size = 8 * 8
        ...     return 4 * size * 6  # log2(size)
        >>> model_multiply_adds(model)
        Count(multiply_adds=1536, unknown=())
    """
    return _rule.register(layer_class)


def model_multiply_adds(model: Any, shapes: Shapes | None = None) -> Count:
    """Return a functional model's multiply-adds, and the layers that are unknown.

    Args:
        model: The model.
        shapes: Of its inputs, where it leaves sizes open.

    Raises:
        ValueError: A size is unknown on which a count depends.

    Example:
        >>> dense = keras.layers.Dense(8)
        >>> model_multiply_adds(keras.Sequential([keras.Input((4,)), dense]))
        Count(multiply_adds=32, unknown=())
    """
    return Count.total(multiply_adds(model_nodes(model), shapes).values())


def multiply_adds(
    nodes: Sequence[Any], shapes: Shapes | None = None
) -> dict[Any, Count]:
    """Return the multiply-adds of each call in a functional graph, for one sample.

    Args:
        nodes: What `model_nodes` returned.
        shapes: Of inputs among them that leave sizes open.

    Raises:
        ValueError: A size is unknown on which a count depends.

    Example:
        >>> inputs = keras.Input((8, 8, 3))
        >>> outputs = keras.layers.Conv2D(16, 3, padding="same")(inputs)
        >>> counts = multiply_adds(model_nodes(keras.Model(inputs, outputs)))
        >>> [count.multiply_adds for count in counts.values()]
        [0, 27648]
    """
    counts = {}
    sized: dict[int, Any] = {}  # What stands for each tensor: one sample of it.
    for node in nodes:
        given = {
            id(tensor): sized.get(id(tensor), tensor) for tensor in node.input_tensors
        }
        counts[node], outputs = _count(node, given, _outputs(node, given, shapes or {}))
        sized |= {
            id(tensor): _of_rows(each, 1)
            for tensor, each in zip(node.outputs, outputs, strict=True)
        }
    return counts


def _outputs(node, given, shapes):
    """Return a node's outputs for one sample, as far as their sizes are known."""
    rows = max((each.shape[0] for each in given.values() if each.shape), default=1)
    if _reshapes_the_batch(node):
        before, after = node.input_tensors[0].shape, node.outputs[0].shape
        rows = rows * math.prod(before[1:]) // math.prod(after[1:])
    outputs = [
        _of_rows(tensor, rows, shapes.get(id(tensor))) for tensor in node.outputs
    ]
    forgets = any(None in tensor.shape for tensor in outputs) and not node.is_input
    if forgets and (is_primitive(node.operation) or _is_leaf(node.operation)):
        # Its symbolic call did not know sizes that are known now.
        args, kwargs = node.arguments.fill_in(given)
        spec = node.operation.compute_output_spec(*args, **kwargs)
        outputs = keras.tree.flatten(spec)
    return outputs


def _of_rows(tensor, rows, sample_shape=None):
    """Return a symbolic tensor with so many rows where the batch is open."""
    shape = tuple(tensor.shape)
    if sample_shape is not None:
        shape = (shape[0], *sample_shape)
    if shape and shape[0] is None:
        shape = (rows, *shape[1:])
    return keras.KerasTensor(shape, tensor.dtype)


def _reshapes_the_batch(node):
    # `keras.ops.reshape`; the layer of this name leaves the batch axis alone.
    kind = type(node.operation)
    if kind.__name__ != "Reshape" or issubclass(kind, keras.Layer):
        return False
    before, after = node.input_tensors[0].shape, node.outputs[0].shape
    return before[:1] == after[:1] == (None,) and None not in before[1:] + after[1:]


def _count(node, tensors, outputs):
    """Return the count of a call, and its outputs with all sizes.

    Args:
        node: The call.
        tensors: What stands for each of its input tensors, by id.
        outputs: What stands for its outputs, as far as it is known.
    """
    operation = _behind_shells(node.operation)
    inputs = [tensors[id(tensor)] for tensor in node.input_tensors]
    if node.is_input:
        return Count(), outputs
    if _has_rule(operation):
        counted = _rule(operation, inputs, outputs)
        return (counted if isinstance(counted, Count) else Count(counted)), outputs
    if _is_free(operation):
        return Count(), outputs
    args, kwargs = node.arguments.fill_in(tensors)
    if is_primitive(operation):
        known = count_operation(operation, args, kwargs, outputs[0])
        unknown = () if known is not None else (operation.name,)
        return Count(known or 0, unknown), outputs
    kwargs.pop("training", None)
    if takes_training(operation):
        kwargs["training"] = False
    return _count_inside(operation, operation.call, args, kwargs, outputs)


def _behind_shells(operation):
    operation = original(operation)
    if isinstance(operation, PreActivation) and _has_rule(operation.layer):
        return operation.layer
    return operation


def _layers(operation):
    """Return a layer and all that it holds."""
    if not isinstance(operation, keras.Layer):
        return []
    return list(operation._flatten_layers())


def _has_rule(operation):
    own: Any = type(operation)
    if _rule.dispatch(own) is _rule.dispatch(object):
        return False
    of_keras = [each for each in own.__mro__ if each.__module__.startswith("keras.")]
    if not any(each in _rule.registry for each in of_keras):
        return True  # A user's layer, registered.
    # A user's subclass of Keras' layer may compute something else: it is opened.
    return own in _rule.registry or own.call is of_keras[0].call


def _is_leaf(operation):
    return _is_free(operation) or _has_rule(operation)


def _is_free(operation):
    if isinstance(operation, _NOT_FREE):
        return False
    # Subclasses may do more: those of users are opened.
    own = type(operation).__module__.startswith(_FREE)
    return own or type(operation) in _FREE_LAYERS


def _count_inside(operation, function, args, kwargs, outputs=()):
    """Count what a function of symbolic tensors calls."""
    fresh = {
        id(tensor): keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype)
        for tensor in keras.tree.flatten((args, kwargs))
        if isinstance(tensor, keras.KerasTensor)
    }
    args, kwargs = keras.tree.map_structure(
        lambda value: fresh.get(id(value), value), (args, kwargs)
    )
    through = [each for each in _layers(operation) if not _is_leaf(each)]
    try:
        nodes, found = calls_inside(
            function, args, kwargs, list(fresh.values()), through
        )
    # A user's call may raise anything on tensors without values.
    except Exception as error:
        logging.info("The work of %s is not known: %r", operation.name, error)
        return Count(unknown=(operation.name,)), outputs
    counts = multiply_adds(nodes)
    # The names of Keras' own operations are new at each call: their kind stays.
    unknown = [
        f"{operation.name}/"
        + (
            type(node.operation).__name__.lower()
            if is_primitive(node.operation)
            else name
        )
        for node, count in counts.items()
        for name in count.unknown
    ]
    found = keras.tree.flatten(found)
    if len(found) == len(outputs):  # Also what comes from weights alone.
        outputs = [
            keras.KerasTensor(tuple(each.shape), spec.dtype)
            for each, spec in zip(found, outputs, strict=True)
        ]
    return Count(Count.total(counts.values()).multiply_adds, tuple(unknown)), outputs


@functools.singledispatch
def _rule(operation, inputs, outputs):
    raise TypeError(operation)  # Not called: the mark of classes without a rule.


@_rule.register(layers.Dense)
def _count_dense(layer, inputs, outputs):
    return size(outputs[0], layer.name) * inputs[0].shape[-1]


@_rule.register(layers.RNN)
def _count_recurrent(layer, inputs, outputs):
    sequence = inputs[0]
    rows, steps, *rest = sequence.shape
    size(sequence, layer.name)
    states = keras.tree.map_structure(
        lambda state: keras.KerasTensor(state.shape, state.dtype),
        layer.get_initial_state(rows),
    )
    step = keras.KerasTensor((rows, *rest), sequence.dtype)
    count, _ = _count_inside(layer, layer.cell, (step, states), {})
    return Count(steps * count.multiply_adds, count.unknown)


@_rule.register(layers.AdditiveAttention)
def _count_additive_attention(layer, inputs, outputs):
    query, value = inputs[:2]
    key = inputs[2] if len(inputs) > 2 else value
    keys = size(key, layer.name) * query.shape[1]  # Weighted and summed to scores.
    return keys + size(value, layer.name) * query.shape[1]


@_rule.register(layers.TimeDistributed)
def _count_each_step(layer, inputs, outputs):
    size(inputs[0], layer.name)
    rows, steps, *rest = inputs[0].shape
    each = keras.KerasTensor((rows * steps, *rest), inputs[0].dtype)
    return _count_inside(layer, layer.layer, (each,), {})[0]


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
    _rule.register(_layer, _count_convolution)
for _layer in (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose):
    _rule.register(_layer, _count_transposed)
for _layer in (layers.DepthwiseConv1D, layers.DepthwiseConv2D):
    _rule.register(_layer, _count_depthwise)
for _layer in (layers.SeparableConv1D, layers.SeparableConv2D):
    _rule.register(_layer, _count_separable)


def _channels(tensor, layer):
    return tensor.shape[-1 if layer.data_format == "channels_last" else 1]
