"""Trace which calls a function of symbolic tensors makes, without recording them."""

import collections
import contextlib
import graphlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
from absl import logging

from keras_selfdistill.graph.nodes import GRAPH_LOCK, calls_of, origin, readers_of
from keras_selfdistill.utils.type_aliases import Node, SymbolicTensor, TensorStructure


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
    with GRAPH_LOCK:
        try:
            with _run_through(through), scope:
                outputs = function(*args, **kwargs)
        finally:
            nodes = _behind(inputs)
            for node in nodes:
                calls_of(node.operation).remove(node)
                for tensor in node.input_tensors:
                    operation, _ = origin(tensor)
                    readers = readers_of(operation)
                    readers[:] = [reader for reader in readers if reader is not node]
    return nodes, outputs


def needed_calls(nodes: Sequence[Node], outputs: TensorStructure) -> list[Node]:
    """Return the nodes that the outputs need, in the order given.

    Example:
        >>> inputs = keras.Input((4,))
        >>> outputs = keras.layers.Dense(2, name="a")(inputs)
        >>> unused = keras.layers.Dense(2, name="b")(inputs)
        >>> from keras_selfdistill.graph.nodes import producer
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
        operation, _ = origin(tensor)
        for node in readers_of(operation):
            if id(node) not in found and any(tensor is x for x in node.input_tensors):
                found[id(node)] = node
                pending.extend(node.outputs)
    made = {id(tensor): node for node in found.values() for tensor in node.outputs}
    reads = {
        node: {made[id(x)] for x in node.input_tensors if id(x) in made}
        for node in found.values()
    }
    return list(graphlib.TopologicalSorter(reads).static_order())
