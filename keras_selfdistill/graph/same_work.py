"""Tell whether two traces of a layer's call are the same work, and what differs."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np


def difference(one: Any, other: Any, training: tuple = (None, None)) -> str | None:
    """Return the first difference between two graphs of calls, `None` if none.

    Args:
        one: `LayerGraph`.
        other: `LayerGraph` of the same layer.
        training: Whether each was traced as in training, `None` where that is not
            known: a call must then be told the same, else what its graph was told.
    """
    if len(one.nodes) != len(other.nodes):
        names = [
            [each.operation.name for each in graph.nodes] for graph in (one, other)
        ]
        return f"it makes the calls {names[0]} or {names[1]}"
    places = [_places(one), _places(other)]
    for first, second in zip(one.nodes, other.nodes, strict=True):
        name = first.operation.name
        if not _same_operation(first.operation, second.operation, places):
            return f"it calls {name!r} or {second.operation.name!r}"
        given = [_arguments(node) for node in (first, second)]
        told = [kwargs.pop("training", None) for _, kwargs in given]
        if None not in training and isinstance(first.operation, keras.Layer):
            modes = [
                mode if each is None else each
                for each, mode in zip(told, training, strict=True)
            ]
            if modes != list(training):
                return f"it tells {name!r} training={modes[0]} or {modes[1]}"
        if not _same(given[0], given[1], places):
            return f"it gives {name!r} other values"
    if not _same(one.outputs, other.outputs, places):
        return "it returns other tensors"
    return None


def reads_weights(nodes: Iterable[Any]) -> list[str]:
    """Return the paths of the variables that calls are given as arguments."""
    return [
        value.path
        for node in nodes
        for value in keras.tree.flatten(list(_arguments(node)))
        if isinstance(value, keras.Variable)
    ]


def _arguments(node):
    return node.arguments.args, dict(node.arguments.kwargs)


def _places(graph):
    """Return where each tensor of a graph comes from, by its id."""
    places = {id(tensor): (-1, i) for i, tensor in enumerate(graph.inputs)}
    for i, node in enumerate(graph.nodes):
        places |= {id(tensor): (i, j) for j, tensor in enumerate(node.outputs)}
    return places


def _same_operation(one, other, places):
    if one is other:
        return True
    if type(one) is not type(other) or isinstance(one, keras.Layer):
        return False
    attributes = [
        {
            key: value
            for key, value in vars(each).items()
            if not key.startswith("_") and key != "name"
        }
        for each in (one, other)
    ]
    return _same(attributes[0], attributes[1], places)


def _same(one, other, places):
    """Whether two values are the same; symbolic tensors, by where they are made."""
    if isinstance(one, keras.KerasTensor) and isinstance(other, keras.KerasTensor):
        place = places[0].get(id(one))
        return place is not None and place == places[1].get(id(other))
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        same_keys = one.keys() == other.keys()
        return same_keys and all(_same(one[key], other[key], places) for key in one)
    if isinstance(one, (list, tuple)):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_same(a, b, places) for a, b in pairs)
    if one is other:
        return True
    if hasattr(one, "__code__"):  # A function, made anew by each call.
        parts = [
            (each.__code__, each.__defaults__, _closed_over(each))
            for each in (one, other)
        ]
        return _same(parts[0], parts[1], places)
    if keras.ops.is_tensor(one) or isinstance(one, np.ndarray):
        arrays = [keras.ops.convert_to_numpy(each) for each in (one, other)]
        return arrays[0].dtype == arrays[1].dtype and np.array_equal(*arrays)
    return bool(one == other)


def _closed_over(function):
    return [cell.cell_contents for cell in function.__closure__ or ()]
