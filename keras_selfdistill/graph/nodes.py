"""Read the graph of a functional model: its nodes in order, and their connections.

Keras exposes the graph through `keras.Function`; only this module reads its private
node lists.
"""

import collections
import contextlib
import graphlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
from absl import logging

from keras_selfdistill.utils.type_aliases import Node, SymbolicTensor, TensorStructure

# Keras' lists of nodes are plain lists: one thread at a time may change them.
_GRAPH = threading.RLock()


def check_functional(base: Any) -> None:
    """Check that a base is a functional or built Sequential model.

    Raises:
        TypeError: The base is not a functional or Sequential model.
        ValueError: The base is a Sequential model whose input shape is not known.

    Example:
        >>> check_functional(keras.Sequential([keras.Input((4,)), keras.layers.ReLU()]))
    """
    if not isinstance(base, (keras.Function, keras.Sequential)):
        kind = "a subclassed model" if isinstance(base, keras.Model) else "no model"
        raise TypeError(
            f"The base must be a functional or Sequential model, whose layers can be "
            f"tapped. Received: {kind}, {type(base).__name__}. Expected: one built as "
            "keras.Model(inputs, outputs), such as any of keras.applications."
        )
    if not base.built or not base.inputs:
        raise ValueError(
            f"The base must be built. Received: Sequential model {base.name!r} whose "
            "input shape is not known. Start it with keras.Input(shape=...)."
        )


def graph_nodes(
    inputs: Sequence[SymbolicTensor], outputs: TensorStructure
) -> list[Node]:
    """Return the nodes between two sets of symbolic tensors, in topological order.

    Args:
        inputs: List of symbolic tensors where the graph starts.
        outputs: Symbolic tensor, or nested structure of them, where it ends.

    Returns:
        List of Keras nodes; each has `operation`, `input_tensors` and `outputs`. The
        order is that in which Keras runs them: by decreasing distance to the output.

    Example:
        >>> inputs = keras.Input((4,), name="table")
        >>> outputs = keras.layers.Dense(2, name="logits")(inputs)
        >>> [node.operation.name for node in graph_nodes([inputs], outputs)]
        ['table', 'logits']
    """
    return _in_order(keras.Function(inputs, outputs))


def model_nodes(model: keras.Model) -> list[Node]:
    """Return the nodes of a functional model, in topological order.

    Equal to `graph_nodes` from its inputs to its outputs, but read from Keras' list.

    Example:
        >>> dense = keras.layers.Dense(2, name="logits")
        >>> model = keras.Sequential([keras.Input((4,), name="table"), dense])
        >>> [node.operation.name for node in model_nodes(model)]
        ['table', 'logits']
    """
    sequential = isinstance(model, keras.Sequential)
    return _in_order(model._functional if sequential else model)


def _in_order(function: keras.Function) -> list[Node]:
    by_depth = function._nodes_by_depth
    return [
        node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]
    ]


def calls_inside(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    inputs: Sequence[SymbolicTensor],
    through: Iterable[keras.Layer],
) -> tuple[list[Node], TensorStructure]:
    """Trace a function of symbolic tensors; return the nodes its result needs, and it.

    The layers it calls keep no record of the trace: `layer.output` does not change.

    Args:
        function: Function of symbolic tensors, such as a layer's `call`.
        args: Positional arguments, which contain the `inputs`.
        kwargs: Keyword arguments, which may contain `inputs`, too.
        inputs: Symbolic tensors made by `keras.Input`.
        through: Layers to trace through: the nodes inside replace the layer's own,
            where its `call` runs on symbolic tensors.

    Example:
        >>> inputs = keras.Input((4,))
        >>> stack = keras.Sequential([keras.layers.Dense(2, name="a")])
        >>> nodes, _ = calls_inside(stack, [inputs], {}, [inputs], [stack])
        >>> [node.operation.name for node in nodes]
        ['a']
    """
    scope = keras.StatelessScope(collect_losses=True)
    nodes, outputs = trace_calls(function, args, kwargs, inputs, through, scope)
    return needed_calls(nodes, outputs), outputs


def trace_calls(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    inputs: Sequence[SymbolicTensor],
    through: Iterable[keras.Layer],
    scope: keras.StatelessScope,
) -> tuple[list[Node], TensorStructure]:
    """Trace a function of symbolic tensors; return all nodes, in order, and its result.

    Args:
        function: Function to trace, as in `calls_inside`.
        args: Positional arguments, as in `calls_inside`.
        kwargs: Keyword arguments, as in `calls_inside`.
        inputs: Symbolic inputs, as in `calls_inside`.
        through: Layers to trace through, as in `calls_inside`.
        scope: `keras.StatelessScope` in which the function runs.
    """
    with _GRAPH:
        try:
            with _run_through(through), scope:
                outputs = function(*args, **kwargs)
        finally:
            nodes = _behind(inputs)
            for node in nodes:
                node.operation._inbound_nodes.remove(node)
                for tensor in node.input_tensors:
                    readers = tensor._keras_history.operation._outbound_nodes
                    readers[:] = [reader for reader in readers if reader is not node]
    return nodes, outputs


def needed_calls(nodes: Sequence[Node], outputs: TensorStructure) -> list[Node]:
    """Return the nodes that the outputs need, in the order given.

    Example:
        >>> inputs = keras.Input((4,))
        >>> outputs = keras.layers.Dense(2, name="a")(inputs)
        >>> unused = keras.layers.Dense(2, name="b")(inputs)
        >>> nodes = [producer(each) for each in (outputs, unused)]
        >>> [node.operation.name for node in needed_calls(nodes, outputs)]
        ['a']
    """
    needed = {id(tensor) for tensor in keras.tree.flatten(outputs)}
    for node in reversed(nodes):
        if any(id(tensor) in needed for tensor in node.outputs):
            needed.update(id(tensor) for tensor in node.input_tensors)
    return [node for node in nodes if needed & {id(each) for each in node.outputs}]


@contextlib.contextmanager
def _run_through(layers: Iterable[keras.Layer]) -> Iterator[None]:
    """Let layers run their `call` on symbolic tensors, instead of only their specs.

    Python looks up `__call__` in the class, so the classes get another one meanwhile.
    It applies to these layers in this thread; all others are called as usual.
    """
    chosen = {id(layer) for layer in layers}
    classes = {type(layer): type(layer).__call__ for layer in layers}
    own = {each: vars(each).get("__call__") for each in classes}
    try:
        for each, usual in classes.items():
            each.__call__ = _transparent(usual, chosen, threading.get_ident())
        yield
    finally:
        for each, call in own.items():
            if call is not None:
                each.__call__ = call
            elif "__call__" in vars(each):
                del each.__call__


def _transparent(
    usual: Callable[..., Any], chosen: set[int], thread: int
) -> Callable[..., Any]:
    """Return a `__call__` whose symbolic calls record only the nodes inside."""

    def call(self: keras.Layer, *args: Any, **kwargs: Any) -> TensorStructure:
        if id(self) in chosen and threading.get_ident() == thread:
            values = keras.tree.flatten((args, kwargs))
            if any(isinstance(value, keras.KerasTensor) for value in values):
                try:
                    return self.call(*args, **kwargs)
                # User code may need the values of its tensors. Keras then calls the
                # layer as usual, and raises if that fails, too.
                except Exception as error:
                    logging.debug("%s stays one call: %r", self.name, error)
        return usual(self, *args, **kwargs)

    return call


def _behind(tensors: Iterable[SymbolicTensor]) -> list[Node]:
    """Return all nodes that depend on the tensors, in topological order."""
    found, pending = {}, collections.deque(tensors)
    while pending:
        tensor = pending.popleft()
        for node in tensor._keras_history.operation._outbound_nodes:
            if id(node) not in found and any(tensor is x for x in node.input_tensors):
                found[id(node)] = node
                pending.extend(node.outputs)
    made = {id(tensor): node for node in found.values() for tensor in node.outputs}
    reads = {
        node: {made[id(x)] for x in node.input_tensors if id(x) in made}
        for node in found.values()
    }
    return list(graphlib.TopologicalSorter(reads).static_order())


@contextlib.contextmanager
def unrecorded(model: keras.Model) -> Iterator[None]:
    """Keep calls on a model's symbolic tensors out of the records of its layers.

    Keras lists such calls in the layers whose tensors they read. The list would keep
    everything ever built on the model alive as long as the model itself. Threads that
    build on the same layers wait for each other.

    Example:
        >>> dense = keras.layers.Dense(2)
        >>> model = keras.Sequential([keras.Input((4,)), dense])
        >>> with unrecorded(model):
        ...     outputs = keras.layers.ReLU()(model.outputs[0])
        >>> dense._outbound_nodes
        []
    """
    with _GRAPH:
        operations = {id(node.operation): node.operation for node in model_nodes(model)}
        known = {key: len(each._outbound_nodes) for key, each in operations.items()}
        try:
            yield
        finally:
            for key, operation in operations.items():
                del operation._outbound_nodes[known[key] :]


def input_structure(model: keras.Model) -> TensorStructure:
    """Return a model's symbolic inputs, in the structure that the model expects.

    Example:
        >>> stack = [keras.Input((4,), name="table"), keras.layers.Dense(2)]
        >>> input_structure(keras.Sequential(stack)).name
        'table'
    """
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def producer(tensor: SymbolicTensor) -> Node:
    """Return the node that produced a symbolic tensor.

    Example:
        >>> inputs = keras.Input((4,))
        >>> producer(keras.layers.Dense(2, name="logits")(inputs)).operation.name
        'logits'
    """
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index]


def ancestors(tensor: SymbolicTensor) -> set[int]:
    """Return the ids of a symbolic tensor and of all tensors it depends on.

    Example:
        >>> inputs = keras.Input((4,))
        >>> hidden = keras.layers.Dense(3)(inputs)
        >>> id(inputs) in ancestors(keras.layers.Dense(2)(hidden))
        True
    """
    found, pending = set(), [tensor]
    while pending:
        tensor = pending.pop()
        if id(tensor) not in found:
            found.add(id(tensor))
            pending.extend(producer(tensor).input_tensors)
    return found
