"""Multiply-adds of a model's nodes, from their shapes.

Products that are summed count: dense layers, convolutions of every kind, matrix
products, attention. Activations, normalisation, pooling, resampling, lookups and sums
count as zero, as is usual in the field. A layer without a rule is traced: its `call`
runs on symbolic tensors, and the calls inside are counted, down to Keras' operations.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
from absl import logging
from keras import layers

from keras_selfdistill.costs.layer_rules import has_rule, is_free, rule
from keras_selfdistill.costs.operation_rules import count_operation, is_primitive, size
from keras_selfdistill.graph.ends.pre_activation import PreActivation
from keras_selfdistill.graph.flatten import takes_training
from keras_selfdistill.graph.nodes import model_nodes
from keras_selfdistill.graph.shells import original
from keras_selfdistill.graph.trace_calls import calls_inside
from keras_selfdistill.utils.keras_internals import flatten_layers
from keras_selfdistill.utils.type_aliases import Node, SymbolicTensor

# Shape of one sample of each input, without the batch, by the id of its tensor.
Shapes = Mapping[int, tuple[int, ...]]


class Count(NamedTuple):
    """The cost of a call for one sample.

    Args:
        macs: Multiply-adds of the known parts.
        unknown: Names of the unknown parts.
    """

    macs: int = 0
    unknown: tuple[str, ...] = ()

    @classmethod
    def total(cls, counts: "Iterable[Count]") -> "Count":
        """Return the sum of several counts.

        Example:
            >>> Count.total([Count(2), Count(3, ("fft",))])
            Count(macs=5, unknown=('fft',))
        """
        counts = list(counts)
        names = [name for count in counts for name in count.unknown]
        return cls(sum(count.macs for count in counts), tuple(names))


def macs_ratio(count: Count, of_base: Count) -> float:
    """Return the multiply-adds of a count as a fraction of the base's.

    NaN if a part of either is unknown, or if the base has no multiply-adds.

    Example:
        >>> macs_ratio(Count(1), Count(4)), macs_ratio(Count(1), Count(4, ("fourier",)))
        (0.25, nan)
        >>> macs_ratio(Count(1), Count(0))
        nan
    """
    if count == of_base and of_base.macs:
        return 1.0  # Also if both have the same unknown layers.
    if count.unknown or of_base.unknown or not of_base.macs:
        return math.nan
    return count.macs / of_base.macs


def model_macs(model: keras.Model, shapes: Shapes | None = None) -> Count:
    """Return a functional model's multiply-adds and its unknown layers.

    Args:
        model: Functional or built Sequential model.
        shapes: Shapes of its inputs, if they have unknown sizes.

    Raises:
        ValueError: A count depends on an unknown size.

    Example:
        >>> dense = keras.layers.Dense(8)
        >>> model_macs(keras.Sequential([keras.Input((4,)), dense]))
        Count(macs=32, unknown=())
    """
    return Count.total(macs_by_node(model_nodes(model), shapes).values())


def macs_by_node(
    nodes: Sequence[Node], shapes: Shapes | None = None
) -> dict[Node, Count]:
    """Return the multiply-adds of each call in a functional graph, for one sample.

    Args:
        nodes: Nodes as returned by `model_nodes`.
        shapes: Shapes of the inputs among them, if they have unknown sizes.

    Raises:
        ValueError: A count depends on an unknown size.

    Example:
        >>> inputs = keras.Input((8, 8, 3))
        >>> outputs = keras.layers.Conv2D(16, 3, padding="same")(inputs)
        >>> counts = macs_by_node(model_nodes(keras.Model(inputs, outputs)))
        >>> [count.macs for count in counts.values()]
        [0, 27648]
    """
    counts = {}
    sized: dict[int, SymbolicTensor] = {}  # One sample of each tensor, by its id.
    for node in nodes:
        given = {
            id(each): sized[id(each)] if id(each) in sized else _with_batch(each, 1)
            for each in node.input_tensors
        }
        own = _outputs(node, given, shapes or {})
        counts[node], outputs = _count(node, given, own)
        # Making symbolic tensors would be most of the time of counting.
        sized |= {
            id(tensor): each
            if outputs is own and None not in each.shape[:1]
            else _with_batch(each, 1)
            for tensor, each in zip(node.outputs, outputs, strict=True)
        }
    return counts


def _outputs(
    node: Node, given: Mapping[int, SymbolicTensor], shapes: Shapes
) -> list[SymbolicTensor]:
    """Return a node's outputs for one sample, as far as their sizes are known."""
    rows = max((each.shape[0] for each in given.values() if each.shape), default=1)
    if _reshapes_the_batch(node):
        before, after = node.input_tensors[0].shape, node.outputs[0].shape
        rows = rows * math.prod(before[1:]) // math.prod(after[1:])
    outputs = [
        _with_batch(tensor, rows, shapes.get(id(tensor))) for tensor in node.outputs
    ]
    is_open = any(None in tensor.shape for tensor in outputs) and not node.is_input
    if is_open and (is_primitive(node.operation) or _is_leaf(node.operation)):
        # Sizes that the symbolic call did not know are known now.
        args, kwargs = node.arguments.fill_in(given)
        spec = node.operation.compute_output_spec(*args, **kwargs)
        outputs = keras.tree.flatten(spec)
    return outputs


def _with_batch(
    tensor: SymbolicTensor, rows: int, sample_shape: tuple[int, ...] | None = None
) -> SymbolicTensor:
    """Return a symbolic tensor with a batch size, if its own is unknown."""
    shape = tuple(tensor.shape)
    if sample_shape is not None:
        shape = (shape[0], *sample_shape)
    if shape and shape[0] is None:
        shape = (rows, *shape[1:])
    # With a name, as Keras takes long to make one up.
    return keras.KerasTensor(shape, tensor.dtype, name=tensor.name)


def _reshapes_the_batch(node: Node) -> bool:
    # `keras.ops.reshape`; the layer of this name keeps the batch axis.
    kind = type(node.operation)
    if kind.__name__ != "Reshape" or issubclass(kind, keras.Layer):
        return False
    before, after = node.input_tensors[0].shape, node.outputs[0].shape
    return before[:1] == after[:1] == (None,) and None not in before[1:] + after[1:]


def _count(
    node: Node, tensors: Mapping[int, SymbolicTensor], outputs: Sequence[SymbolicTensor]
) -> tuple[Count, Sequence[SymbolicTensor]]:
    """Return the count of a node, and its outputs with all sizes.

    Args:
        node: Node of the call.
        tensors: One sample of each of its input tensors, by id.
        outputs: One sample of each output, as far as its size is known.
    """
    operation = _behind_shells(node.operation)
    inputs = [tensors[id(tensor)] for tensor in node.input_tensors]
    if node.is_input:
        return Count(), outputs
    if has_rule(operation):
        counted = rule(operation, inputs, outputs)
        return (counted if isinstance(counted, Count) else Count(counted)), outputs
    if is_free(operation):
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


def _behind_shells(operation: keras.Operation) -> keras.Operation:
    operation = original(operation)
    return operation.layer if isinstance(operation, PreActivation) else operation


def _layers(operation: keras.Operation) -> list[keras.Layer]:
    """Return a layer and all its sublayers."""
    if not isinstance(operation, keras.Layer):
        return []
    return flatten_layers(operation)


def _is_leaf(operation: keras.Operation) -> bool:
    return is_free(operation) or has_rule(operation)


def _count_inside(
    operation: keras.Operation,
    function: Callable[..., Any],
    args: Any,
    kwargs: Any,
    outputs: Sequence[SymbolicTensor] = (),
) -> tuple[Count, Sequence[SymbolicTensor]]:
    """Trace a function of symbolic tensors and count the calls inside."""
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
    # User code may raise anything on tensors without values.
    except Exception as error:
        logging.info("The multiply-adds of %s are unknown: %r", operation.name, error)
        return Count(unknown=(operation.name,)), outputs
    counts = macs_by_node(nodes)
    # The names of Keras' own operations differ at each call: use their class.
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
    if len(found) == len(outputs):  # Also for outputs computed from weights only.
        outputs = [
            keras.KerasTensor(tuple(each.shape), spec.dtype)
            for each, spec in zip(found, outputs, strict=True)
        ]
    return Count(Count.total(counts.values()).macs, tuple(unknown)), outputs


@rule.register(layers.RNN)
def _count_recurrent(
    layer: keras.Layer,
    inputs: Sequence[SymbolicTensor],
    outputs: Sequence[SymbolicTensor],
) -> Count:
    sequence = inputs[0]
    rows, steps, *rest = sequence.shape
    size(sequence, layer.name)
    states = keras.tree.map_structure(
        lambda state: keras.KerasTensor(state.shape, state.dtype),
        layer.get_initial_state(rows),
    )
    step = keras.KerasTensor((rows, *rest), sequence.dtype)
    count, _ = _count_inside(layer, layer.cell, (step, states), {})
    return Count(steps * count.macs, count.unknown)


@rule.register(layers.TimeDistributed)
def _count_each_step(
    layer: keras.Layer,
    inputs: Sequence[SymbolicTensor],
    outputs: Sequence[SymbolicTensor],
) -> Count:
    size(inputs[0], layer.name)
    rows, steps, *rest = inputs[0].shape
    each = keras.KerasTensor((rows * steps, *rest), inputs[0].dtype)
    return _count_inside(layer, layer.layer, (each,), {})[0]
