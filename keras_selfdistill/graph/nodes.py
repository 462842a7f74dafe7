"""Read the graph of a functional model: its calls in order, and who feeds whom.

Keras offers the graph through `keras.Function`; the one place that touches its
node lists is here.
"""

import collections
import contextlib
import graphlib
import threading
from collections.abc import Iterator
from typing import Any

import keras
from absl import logging

# Keras' lists of calls are plain lists: one thread at a time adds and takes out.
_GRAPH = threading.RLock()


def check_functional(base):
    """Check that a base has a graph that can be read.

    Raises:
        TypeError: It is no functional or Sequential model.
        ValueError: It is a Sequential model whose input shape is not known.

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


def graph_nodes(inputs, outputs):
    """Return every call between two sets of symbolic tensors, in an order that runs.

    Args:
        inputs: List of symbolic tensors where the graph starts.
        outputs: Symbolic tensor, or nested structure of them, where it ends.

    Returns:
        List of Keras nodes; each has `operation`, `input_tensors` and `outputs`.
        The order is that of Keras' own run: by decreasing distance to the output.

    Example:
        >>> inputs = keras.Input((4,), name="table")
        >>> outputs = keras.layers.Dense(2, name="answer")(inputs)
        >>> [node.operation.name for node in graph_nodes([inputs], outputs)]
        ['table', 'answer']
    """
    return _in_order(keras.Function(inputs, outputs))


def model_nodes(model):
    """Return every call of a functional model, in an order that runs.

    The same as `graph_nodes` from its inputs to its outputs, but Keras has that list.

    Example:
        >>> dense = keras.layers.Dense(2, name="answer")
        >>> model = keras.Sequential([keras.Input((4,), name="table"), dense])
        >>> [node.operation.name for node in model_nodes(model)]
        ['table', 'answer']
    """
    sequential = isinstance(model, keras.Sequential)
    return _in_order(model._functional if sequential else model)


def _in_order(function):
    by_depth = function._nodes_by_depth
    return [
        node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]
    ]


def calls_inside(function, args, kwargs, inputs, through):
    """Return every call that a function's result needs, and the result.

    The layers that it calls do not remember this, so `layer.output` stays what it was.

    Args:
        function: Of symbolic tensors, such as a layer's `call`.
        args: Its arguments, which hold the `inputs`.
        kwargs: Likewise.
        inputs: Symbolic tensors of `keras.Input`.
        through: Layers whose own calls are returned instead of the call of the layer,
            where they can run on symbolic tensors.

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


def trace_calls(function, args, kwargs, inputs, through, scope):
    """Return every call that a function makes, in an order that runs, and its result.

    Args:
        function: As in `calls_inside`.
        args: Likewise.
        kwargs: Likewise.
        inputs: Likewise.
        through: Likewise.
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


def needed_calls(nodes, outputs):
    """Return those of some calls, in an order that runs, that the outputs need.

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
def _run_through(layers):
    """Let layers run on symbolic tensors, where they would only say their shapes.

    Python looks for `__call__` in the class alone, so their classes get another one
    meanwhile. It is for these layers in this thread; all others are called as ever.
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


def _transparent(usual, chosen, thread):
    """Return a `__call__` whose symbolic calls leave no node but those inside."""

    def call(self, *args, **kwargs):
        if id(self) in chosen and threading.get_ident() == thread:
            values = keras.tree.flatten((args, kwargs))
            if any(isinstance(value, keras.KerasTensor) for value in values):
                try:
                    return self.call(*args, **kwargs)
                # It may ask anything of tensors that have no values. Keras then calls
                # it in its own way, and raises what is wrong there, too.
                except Exception as error:
                    logging.debug("%s stays one call: %r", self.name, error)
        return usual(self, *args, **kwargs)

    return call


def _behind(tensors):
    """Return all nodes that read the tensors or need them, in an order that runs."""
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
def unrecorded(model: Any) -> Iterator[None]:
    """Let calls on a model's symbolic tensors leave nothing in the model's layers.

    Keras lists such calls in the layers whose tensors they take, and never reads that
    list. It would keep alive, as long as the model, all that was ever built on it.
    Threads that build on the same layers wait for each other.

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


def input_structure(model):
    """Return a model's symbolic inputs, in the structure in which it takes them.

    Example:
        >>> stack = [keras.Input((4,), name="table"), keras.layers.Dense(2)]
        >>> input_structure(keras.Sequential(stack)).name
        'table'
    """
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def producer(tensor):
    """Return the node whose call made a symbolic tensor.

    Example:
        >>> inputs = keras.Input((4,))
        >>> producer(keras.layers.Dense(2, name="answer")(inputs)).operation.name
        'answer'
    """
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index]


def dtype_policy(tensor):
    """Return the dtype policy of the layer that a tensor comes from.

    Where an operation without one, such as `x + shortcut`, made the tensor, it is that
    of the nearest layer before. Of a quantised layer it is the one from before: layers
    are made with weights to train, and quantised later, if at all.
    """
    node = producer(tensor)
    while not isinstance(node.operation, keras.Layer):
        node = producer(node.input_tensors[0])
    policy = node.operation.dtype_policy
    if policy.quantization_mode is None:
        return policy
    return keras.dtype_policies.get(policy.get_config()["source_name"])


def ancestors(tensor):
    """Return the ids of all symbolic tensors that a tensor is made from, and its own.

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
