"""Read the graph of a functional model: its nodes in order, and their connections.

Keras exposes graphs through `keras.Function`, but neither its nodes, which are calls,
nor the node that made a symbolic tensor. Only this module reads the private lists of
these, each by one function. Of a `Node` (ops/node.py in Keras), this package uses
`operation`, `arguments`, `input_tensors`, `outputs` and `is_input`.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras

from keras_selfdistill.utils.type_aliases import Node, SymbolicTensor, TensorStructure

# Keras' lists of nodes are plain lists: one thread at a time may change them.
GRAPH_LOCK = threading.RLock()


def check_functional(base: object) -> None:
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
    return nodes_of_function(keras.Function(inputs, outputs))


def model_nodes(model: keras.Model) -> list[Node]:
    """Return the nodes of a functional model, in topological order.

    Example:
        >>> dense = keras.layers.Dense(2, name="logits")
        >>> model = keras.Sequential([keras.Input((4,), name="table"), dense])
        >>> [node.operation.name for node in model_nodes(model)]
        ['table', 'logits']
    """
    sequential = isinstance(model, keras.Sequential)
    return nodes_of_function(function_inside(model) if sequential else model)


def function_inside(model: keras.Sequential) -> keras.Function:
    """Return the function that a built Sequential model runs.

    Returns `Sequential._functional` (models/sequential.py). Public are its inputs and
    outputs, of which a function would be made at every look.
    """
    return model._functional


def nodes_of_function(function: keras.Function) -> list[Node]:
    """Return the nodes of a `keras.Function`, in the order in which Keras runs them.

    Reads `Function._nodes_by_depth` (ops/function.py). Only its operations are public,
    which does not tell several calls of one layer apart.
    """
    by_depth = function._nodes_by_depth
    return [
        node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]
    ]


def run_in_inference_mode(
    function: keras.Function, inputs: TensorStructure
) -> TensorStructure:
    """Return a graph's outputs where every layer is called with `training=False`.

    Calls `Function._run_through_graph` (ops/function.py), as `Functional.call` does.
    `keras.Function` replays the arguments of its symbolic calls, and there layers whose
    `call` has `training=True` as its default, such as `RandomFlip`, recorded that. Only
    functional models override it, but a functional model whose inputs are not those of
    `keras.Input` copies every call, and the layers would keep the copies.
    """

    def inferring(operation: keras.Operation) -> Callable[..., Any]:
        if not isinstance(operation, keras.Layer):
            return operation
        # Every layer takes `training`; those whose `call` does not ask hand it on.
        return lambda *args, **kwargs: operation(*args, **{**kwargs, "training": False})

    return function._run_through_graph(inputs, operation_fn=inferring)


def run_other_operations(
    function: keras.Function, other: Callable[[keras.Operation], keras.Operation]
) -> None:
    """Make a function run other operations than those of its nodes.

    Overrides `Function._run_through_graph` (ops/function.py), for this object alone. It
    takes such a replacement as an argument, which calling the function does not.

    Args:
        function: Function, or functional model, that nobody else runs.
        other: From the operation of a node to the one to run.

    Example:
        >>> inputs = keras.Input((2,))
        >>> function = keras.Function(inputs, keras.layers.ReLU()(inputs))
        >>> run_other_operations(function, lambda _: keras.layers.Rescaling(2.0))
        >>> keras.ops.convert_to_numpy(function(keras.ops.ones((1, 2)))).tolist()
        [[2.0, 2.0]]
    """
    usual = function._run_through_graph

    def run_through_graph(
        inputs: TensorStructure,
        operation_fn: Callable[..., Any] = lambda each: each,
        call_fn: Callable[..., Any] | None = None,
    ) -> TensorStructure:
        return usual(inputs, lambda each: operation_fn(other(each)), call_fn)

    vars(function)["_run_through_graph"] = run_through_graph


def calls_of(operation: keras.Operation) -> list[Node]:
    """Return the list of an operation's symbolic calls, its inbound nodes.

    Returns `Operation._inbound_nodes` (ops/operation.py). Only `input` and `output` of
    an operation with a single call are public.
    """
    return operation._inbound_nodes


def readers_of(operation: keras.Operation) -> list[Node]:
    """Return the list of the nodes that take an operation's outputs.

    Returns `Operation._outbound_nodes` (ops/operation.py). Keras only appends to it;
    nothing public reads it or removes a node.
    """
    return operation._outbound_nodes


def origin(tensor: SymbolicTensor) -> tuple[keras.Operation, int]:
    """Return the operation that made a symbolic tensor, and the index of the call.

    Reads `KerasTensor._keras_history` (set in ops/node.py). Only the way from an
    operation to its outputs is public.
    """
    history = tensor._keras_history
    return history.operation, history.node_index


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
        >>> readers_of(dense)
        []
    """
    with GRAPH_LOCK:
        operations = {id(node.operation): node.operation for node in model_nodes(model)}
        known = {key: len(readers_of(each)) for key, each in operations.items()}
        try:
            yield
        finally:
            for key, operation in operations.items():
                del readers_of(operation)[known[key] :]


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
    operation, index = origin(tensor)
    return calls_of(operation)[index]


def nodes_behind(
    known: Iterable[Node], outputs: Sequence[SymbolicTensor]
) -> list[Node]:
    """Return the nodes that outputs need besides some known ones, in topological order.

    Unlike `graph_nodes`, it does not visit the known part, which may be large.

    Args:
        known: Nodes behind which to begin, with all that they need.
        outputs: Symbolic tensors where the graph ends.

    Example:
        >>> base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> outputs = keras.layers.ReLU(name="relu")(base.outputs[0])
        >>> found = nodes_behind(model_nodes(base), [outputs])
        >>> [node.operation.name for node in found]
        ['relu']
    """
    visited = set(known)
    found: list[Node] = []
    pending = [(producer(tensor), False) for tensor in outputs]
    while pending:
        node, sources_are_done = pending.pop()
        if sources_are_done:
            found.append(node)
        elif node not in visited:
            visited.add(node)
            pending.append((node, True))
            pending += [(producer(each), False) for each in node.input_tensors]
    return found


def ancestors(*tensors: SymbolicTensor) -> set[int]:
    """Return the ids of symbolic tensors and of all tensors they depend on.

    Example:
        >>> inputs = keras.Input((4,))
        >>> hidden = keras.layers.Dense(3)(inputs)
        >>> id(inputs) in ancestors(keras.layers.Dense(2)(hidden))
        True
    """
    found, pending = set(), list(tensors)
    while pending:
        tensor = pending.pop()
        if id(tensor) not in found:
            found.add(id(tensor))
            pending.extend(producer(tensor).input_tensors)
    return found
