"""Spread the models nested in a base out, so that every layer can be tapped."""

import collections
import dataclasses
import inspect
import re
import weakref
from collections.abc import Collection
from typing import Any

import keras
from keras import layers

from keras_selfdistill.graph.nodes import input_structure, model_nodes
from keras_selfdistill.graph.open_layer import LayerGraph, holds_layers, opened
from keras_selfdistill.graph.shells import Renamed, WithMask
from keras_selfdistill.utils.keras_internals import mask_of


@dataclasses.dataclass(frozen=True)
class FlatModel:
    """A model without nested models, on the weights of one that may have some.

    Args:
        model: Functional; the user's own where nothing is nested in it.
        calls: Symbolic output of every call, in the order of the data, by its path:
            the layer's name, in a nested model `"backbone/stage/layer"`. Several calls
            of one layer are numbered: `"encoder@1"`, `"encoder@2"`.
    """

    model: Any
    calls: dict[str, Any]


# Spread models by the model they come from, the paths that taps open, and its calls.
_KNOWN: Any = weakref.WeakKeyDictionary()


def flatten(model: Any, taps: Collection[str] = ()) -> FlatModel:
    """Return a model whose nested functional and Sequential models are spread out.

    Layers are called again behind and in nested models only, and once for all wrappers
    of a model, because Keras keeps their calls as long as the layers; weights are
    shared and the user's model stays as it is. A model or layer with a `call` of its
    own stays one layer, unless a tap names a layer inside.

    Args:
        model: Functional or built Sequential model.
        taps: Names that will be tapped.

    Raises:
        ValueError: A tap names a layer inside one that cannot be opened.

    Example:
        >>> stack = [keras.Input((4,)), keras.layers.Dense(3, name="hidden")]
        >>> nested = keras.Sequential(stack, name="backbone")
        >>> top = keras.layers.Dense(2, name="top")
        >>> flat = flatten(keras.Sequential([keras.Input((4,)), nested, top]))
        >>> [name for name in flat.calls if "/" in name or name == "top"]
        ['backbone/hidden', 'top']
    """
    nested = _Nested(taps)
    known = _KNOWN.setdefault(model, {})
    nodes, flat = known.get(nested.paths, (None, None))
    if nodes != _all_nodes(model):  # The first time, or it was rebuilt.
        flat = _spread_out(model, nested)
        if flat.model is not model:  # Which would keep itself alive.
            known[nested.paths] = _all_nodes(model), flat
    return flat


def _spread_out(model, nested):
    nodes = model_nodes(model)
    if not any(nested.model(node, label) for label, node in _labelled(nodes)):
        calls = {label: node.outputs[0] for label, node in _labelled(nodes)}
        return FlatModel(model, calls)
    spread = _Spread(nested, _renamed(model, nested))
    values = {id(tensor): tensor for tensor in model.inputs}
    spread.run(model, values, prefix="", training=None)
    outputs = [values[id(tensor)] for tensor in model.outputs]
    outputs = outputs[0] if len(outputs) == 1 else outputs
    whole = keras.Model(input_structure(model), outputs, name=model.name)
    return FlatModel(whole, spread.calls)


class _Nested:
    """Knows the model inside a call: a nested one, or a layer that taps look into."""

    def __init__(self, taps):
        self.paths = frozenset(
            tap[: end.start()]
            for tap in taps
            if isinstance(tap, str)
            for end in re.finditer("/", tap)
        )
        self._opened: dict[int, Any] = {}

    def model(self, node, path):
        """Return the model or graph inside a call, `None` if it stays closed."""
        operation = node.operation
        if _is_nested(operation):
            return operation
        if path not in self.paths or not holds_layers(operation):
            return None
        if id(node) not in self._opened:
            self._opened[id(node)] = opened(operation, node, path)
        return self._opened[id(node)]


class _Spread:
    """Calls the operations of nested models on the tensors of the model around them."""

    def __init__(self, nested, renamed):
        self.calls: dict[str, Any] = {}
        self._nested = nested
        self._renamed = renamed

    def run(self, model, values, prefix, training):
        """Fill `values`: what each tensor of a model is in the flat one."""
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

    def _run_nested(self, inner, node, values, path, training):
        args, kwargs = node.arguments.fill_in(values)
        given = _given(inner, args, kwargs)
        masks = keras.tree.flatten(kwargs.get("mask")) if "mask" in kwargs else []
        masks += [None] * (len(given) - len(masks))
        inside = {
            id(tensor): _taken_over(value, mask, tensor.dtype, f"{path}_{i}")
            for i, (tensor, value, mask) in enumerate(
                zip(inner.inputs, given, masks, strict=True)
            )
        }
        training = kwargs.get("training", training)
        self.run(inner, inside, f"{path}/", training)
        outputs = [inside[id(tensor)] for tensor in inner.outputs]
        return _regularized(node.operation, outputs, f"{path}_activity")

    def _run_operation(self, node, values, training):
        if all(values[id(tensor)] is tensor for tensor in node.input_tensors):
            return node.outputs
        args, kwargs = node.arguments.fill_in(values)
        operation = node.operation
        if training is not None and takes_training(operation):
            kwargs.setdefault("training", training)
        call = self._renamed.get(id(operation), operation)
        return keras.tree.flatten(call(*args, **kwargs))


def _calls_of(model):
    return model.nodes if isinstance(model, LayerGraph) else model_nodes(model)


def _all_nodes(model):
    """Return every call of a model and of those nested in it."""
    nodes = model_nodes(model)
    inner = [node.operation for node in nodes if _is_nested(node.operation)]
    return nodes + [node for model in inner for node in _all_nodes(model)]


def _is_nested(operation):
    """Whether an operation is a graph of others, whose `call` is Keras' own."""
    if not isinstance(operation, (keras.Function, keras.Sequential)):
        return False
    owner = next(each for each in type(operation).__mro__ if "call" in vars(each))
    return owner.__module__.split(".")[0] == "keras"


def takes_training(operation: Any) -> bool:
    """Whether a layer's `call` asks whether it trains."""
    return "training" in inspect.signature(operation.call).parameters


def _labelled(nodes):
    """Yield (name in this graph, node) of every node; calls of one are numbered."""
    calls = collections.Counter(node.operation.name for node in nodes)
    done: dict[str, int] = collections.Counter()
    for node in nodes:
        name = node.operation.name
        done[name] += 1
        yield (f"{name}@{done[name]}" if calls[name] > 1 else name), node


def _renamed(model, nested):
    """Return `Renamed` operations, by the id of those whose name another one has."""
    found: dict[int, tuple[str, Any]] = {}
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


def _collect(model, prefix, found, nested):
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


def _given(inner, args, kwargs):
    """Return what a call gives for each input of the model inside, in their order."""
    if not _is_nested(inner):  # A layer was opened: its tensors as they come.
        return [
            value
            for value in keras.tree.flatten((args, kwargs))
            if isinstance(value, keras.KerasTensor)
        ]
    inputs = args[0] if args else kwargs["inputs"]
    if isinstance(inputs, dict) and not isinstance(input_structure(inner), dict):
        return [inputs[tensor.name] for tensor in inner.inputs]  # Keras goes by name.
    return keras.tree.flatten(inputs)


def _taken_over(tensor, mask, dtype, name):
    """Return an input of a nested model as Keras hands it on: cast, mask and all."""
    mask = mask_of(tensor) if mask is None else mask
    if mask is not None:
        # Always: the layers of a wrapper from a file must come in the same order.
        return WithMask(dtype, name=_layer_name(name) + "_mask")(tensor, mask=mask)
    if tensor.dtype == dtype:
        return tensor
    cast = keras.ops.cast(tensor, dtype)
    cast._keras_history.operation.name = _layer_name(name) + "_cast"
    return cast


def _regularized(operation, outputs, name):
    """Return outputs of a layer that is spread out, with its own activity loss."""
    regularizer = getattr(operation, "activity_regularizer", None)
    if regularizer is None:
        return outputs
    identity = layers.Identity(
        activity_regularizer=regularizer,
        autocast=False,
        dtype=operation.dtype_policy,
        name=_layer_name(name),
    )
    return [identity(tensor) for tensor in outputs]


def _layer_name(path):
    return path.replace("/", "_")
