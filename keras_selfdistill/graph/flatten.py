"""Flatten a base with nested models, so that every layer can be tapped."""

import collections
import dataclasses
import inspect
import re
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import keras

from keras_selfdistill.graph.nodes import (
    GRAPH_LOCK,
    input_structure,
    model_nodes,
)
from keras_selfdistill.graph.shells import Renamed, as_inner_input, regularized
from keras_selfdistill.graph.trace_layer import LayerGraph, holds_layers, trace_layer
from keras_selfdistill.utils.config import is_of_keras
from keras_selfdistill.utils.type_aliases import Node, SymbolicTensor


@dataclasses.dataclass(frozen=True)
class FlatModel:
    """A model without nested models that shares the weights of the user's model.

    Args:
        model: Functional model; the user's own if no model is nested in it.
        calls: Symbolic output of every call, in topological order, by its path, such as
            `"backbone/stage/layer"`; repeated calls are `"encoder@1"`, `"encoder@2"`.
    """

    model: keras.Model
    calls: dict[str, SymbolicTensor]


# Flat models by the user's model, then by the traced paths; with the model's nodes.
_KNOWN: Any = weakref.WeakKeyDictionary()


def flatten(model: keras.Model, taps: Collection[str] = ()) -> FlatModel:
    """Return a model whose nested functional and Sequential models are flattened.

    Layers in and after nested models are called again. That happens once for all
    wrappers of a model, because Keras keeps the calls as long as the layers. Weights
    are shared, and the user's model is not changed. A model or layer with a `call` of
    its own stays one layer, unless a tap names one of its sublayers; it is then traced.

    Args:
        model: Functional or built Sequential model.
        taps: Names that will be tapped.

    Raises:
        ValueError: A tap names a sublayer of a layer that cannot be traced.

    Example:
        >>> stack = [keras.Input((4,)), keras.layers.Dense(3, name="hidden")]
        >>> nested = keras.Sequential(stack, name="backbone")
        >>> top = keras.layers.Dense(2, name="top")
        >>> flat = flatten(keras.Sequential([keras.Input((4,)), nested, top]))
        >>> [name for name in flat.calls if "/" in name or name == "top"]
        ['backbone/hidden', 'top']
    """
    nested = _Nested(taps)
    # A call is known by its index among the calls of its layer, which shifts if another
    # thread traces the layer meanwhile and removes its own calls.
    with GRAPH_LOCK:
        known = _KNOWN.setdefault(model, {})
        before, flat = known.get(nested.paths, (None, None))
        nodes = _all_nodes(model)
        if before != nodes:  # The first time, or it was rebuilt.
            flat = _flatten(model, nested)
            if flat.model is not model:  # Which would keep itself alive.
                known[nested.paths] = nodes, flat
    return flat


def _flatten(model: keras.Model, nested: "_Nested") -> FlatModel:
    nodes = model_nodes(model)
    if not any(nested.model(node, label) for label, node in _labelled(nodes)):
        calls = {label: node.outputs[0] for label, node in _labelled(nodes)}
        return FlatModel(model, calls)
    flattener = _Flattener(nested, _renamed(model, nested))
    values = {id(tensor): tensor for tensor in model.inputs}
    flattener.run(model, values, prefix="", training=None)
    outputs = [values[id(tensor)] for tensor in model.outputs]
    outputs = outputs[0] if len(outputs) == 1 else outputs
    whole = keras.Model(input_structure(model), outputs, name=model.name)
    return FlatModel(whole, flattener.calls)


_Graph: TypeAlias = keras.Model | LayerGraph


class _Nested:
    """Maps a call to the model inside: a nested model, or a layer that taps trace."""

    def __init__(self, taps: Collection[Any]) -> None:
        self.paths = frozenset(
            tap[: end.start()]
            for tap in taps
            if isinstance(tap, str)
            for end in re.finditer("/", tap)
        )
        self._traced: dict[int, LayerGraph] = {}

    def model(self, node: Node, path: str) -> _Graph | None:
        """Return the model or traced graph inside a call, `None` if it stays whole."""
        operation = node.operation
        if _is_nested(operation):
            return operation
        if path not in self.paths or not holds_layers(operation):
            return None
        if id(node) not in self._traced:
            self._traced[id(node)] = trace_layer(operation, node, path)
        return self._traced[id(node)]


class _Flattener:
    """Calls the operations of nested models on the tensors of the outer model."""

    def __init__(self, nested: _Nested, renamed: Mapping[int, Renamed]) -> None:
        self.calls: dict[str, SymbolicTensor] = {}
        self._nested = nested
        self._renamed = renamed

    def run(
        self,
        model: _Graph,
        values: dict[int, SymbolicTensor],
        prefix: str,
        training: bool | None,
    ) -> None:
        """Fill `values`: the flat model's tensor for each tensor of a model, by id."""
        for label, node in _labelled(_calls_of(model)):
            path = prefix + label
            if node.is_input:
                if not prefix:
                    self.calls[path] = node.outputs[0]
                continue
            inner = self._nested.model(node, path)
            if inner:
                outputs = self._run_nested(inner, node, values, path, training)
            else:
                outputs = self._run_operation(node, values, training)
                self.calls[path] = outputs[0]
            values.update(zip(map(id, node.outputs), outputs, strict=True))

    def _run_nested(
        self,
        inner: _Graph,
        node: Node,
        values: dict[int, SymbolicTensor],
        path: str,
        training: bool | None,
    ) -> list[SymbolicTensor]:
        args, kwargs = node.arguments.fill_in(values)
        given = _given(inner, args, kwargs)
        masks = keras.tree.flatten(kwargs.get("mask")) if "mask" in kwargs else []
        masks += [None] * (len(given) - len(masks))
        inside = {
            id(tensor): as_inner_input(value, mask, tensor.dtype, f"{path}_{i}")
            for i, (tensor, value, mask) in enumerate(
                zip(inner.inputs, given, masks, strict=True)
            )
        }
        training = kwargs.get("training", training)
        self.run(inner, inside, f"{path}/", training)
        outputs = [inside[id(tensor)] for tensor in inner.outputs]
        return regularized(node.operation, outputs, f"{path}_activity")

    def _run_operation(
        self, node: Node, values: dict[int, SymbolicTensor], training: bool | None
    ) -> list[SymbolicTensor]:
        if all(values[id(tensor)] is tensor for tensor in node.input_tensors):
            return node.outputs
        args, kwargs = node.arguments.fill_in(values)
        operation = node.operation
        if training is not None and takes_training(operation):
            kwargs.setdefault("training", training)
        call = self._renamed.get(id(operation), operation)
        return keras.tree.flatten(call(*args, **kwargs))


def _calls_of(model: _Graph) -> list[Node]:
    return model.nodes if isinstance(model, LayerGraph) else model_nodes(model)


def _all_nodes(model: keras.Model) -> list[Node]:
    """Return the nodes of a model and of the models nested in it."""
    nodes = model_nodes(model)
    inner = [node.operation for node in nodes if _is_nested(node.operation)]
    return nodes + [node for model in inner for node in _all_nodes(model)]


def _is_nested(operation: keras.Operation) -> bool:
    """Return whether an operation is a nested model whose `call` is Keras' own."""
    if not isinstance(operation, (keras.Function, keras.Sequential)):
        return False
    owner = next(each for each in type(operation).__mro__ if "call" in vars(each))
    return is_of_keras(owner)


def takes_training(operation: keras.Operation) -> bool:
    """Return whether a layer's `call` has a `training` argument."""
    return "training" in inspect.signature(operation.call).parameters


def _labelled(nodes: Sequence[Node]) -> Iterator[tuple[str, Node]]:
    """Yield (name in this graph, node); several calls of one layer are numbered."""
    calls = collections.Counter(node.operation.name for node in nodes)
    done: dict[str, int] = collections.Counter()
    for node in nodes:
        name = node.operation.name
        done[name] += 1
        yield (f"{name}@{done[name]}" if calls[name] > 1 else name), node


def _renamed(model: keras.Model, nested: _Nested) -> dict[int, Renamed]:
    """Return `Renamed` layers, by the id of the operations whose names collide."""
    found: dict[int, tuple[str, keras.Operation]] = {}
    _collect(model, "", found, nested)
    taken = {path for path, _ in found.values() if "/" not in path}
    renamed = {}
    for key, (path, operation) in found.items():
        if "/" not in path:
            continue
        name, count = operation.name, 1
        while name in taken:
            count += 1
            name = re.sub(r"@\d+", "", path).replace("/", "_")
            name += f"_{count}" if count > 2 else ""
        taken.add(name)
        if name != operation.name:
            renamed[key] = Renamed(operation, name=name)
    return renamed


def _collect(
    model: _Graph,
    prefix: str,
    found: dict[int, tuple[str, keras.Operation]],
    nested: _Nested,
) -> None:
    """Add (path, operation) of every operation in a model and those nested in it."""
    for label, node in _labelled(_calls_of(model)):
        operation = node.operation
        if node.is_input and prefix:
            continue
        inner = nested.model(node, prefix + label)
        if inner:
            _collect(inner, f"{prefix}{label}/", found, nested)
        else:
            found.setdefault(id(operation), (prefix + operation.name, operation))


def _given(
    inner: _Graph, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[SymbolicTensor]:
    """Return the arguments of a call in the order of the inner model's inputs."""
    if not _is_nested(inner):  # A traced layer: its tensors in the order of the call.
        return [
            value
            for value in keras.tree.flatten((args, kwargs))
            if isinstance(value, keras.KerasTensor)
        ]
    inputs = args[0] if args else kwargs["inputs"]
    if isinstance(inputs, dict) and not isinstance(input_structure(inner), dict):
        return [inputs[tensor.name] for tensor in inner.inputs]  # Keras goes by name.
    return keras.tree.flatten(inputs)
