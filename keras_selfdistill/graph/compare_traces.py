"""Compare two traces of a layer's call: equal, or where they first differ."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from keras_selfdistill.utils.type_aliases import Node

_Places = dict[int, tuple[int, int]]


def first_difference(
    one: Any, other: Any, training: tuple[bool | None, bool | None] = (None, None)
) -> str | None:
    """Return a description of the first difference between two traces.

    Args:
        one: `LayerGraph` of a layer.
        other: `LayerGraph` of the same layer.
        training: The `training` argument with which each was traced. `None` if unknown:
            sublayers must then be called with equal `training` arguments, otherwise
            each with that of its trace.

    Returns:
        The description; `None` if the traces are equal.
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
        passed = [kwargs.pop("training", None) for _, kwargs in given]
        if None not in training and isinstance(first.operation, keras.Layer):
            modes = [
                mode if each is None else each
                for each, mode in zip(passed, training, strict=True)
            ]
            if modes != list(training):
                return f"it calls {name!r} with training={modes[0]} or {modes[1]}"
        if not _same(given[0], given[1], places):
            return f"it calls {name!r} with other arguments"
    if not _same(one.outputs, other.outputs, places):
        return "it returns other tensors"
    return None


def reads_weights(nodes: Iterable[Node]) -> list[str]:
    """Return the paths of the variables that calls are given as arguments."""
    return [
        value.path
        for node in nodes
        for value in keras.tree.flatten(list(_arguments(node)))
        if isinstance(value, keras.Variable)
    ]


def _arguments(node: Node) -> tuple[tuple, dict[str, Any]]:
    return node.arguments.args, dict(node.arguments.kwargs)


def _places(graph: Any) -> _Places:
    """Return the position of each tensor of a graph (node, output), by its id."""
    places = {id(tensor): (-1, i) for i, tensor in enumerate(graph.inputs)}
    for i, node in enumerate(graph.nodes):
        places |= {id(tensor): (i, j) for j, tensor in enumerate(node.outputs)}
    return places


def _same_operation(
    one: keras.Operation, other: keras.Operation, places: Sequence[_Places]
) -> bool:
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


def _same(one: Any, other: Any, places: Sequence[_Places]) -> bool:
    """Return whether two values are equal; symbolic tensors, by their position."""
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
    if hasattr(one, "__code__"):  # A function that each call defines anew.
        parts = [
            (each.__code__, each.__defaults__, _closed_over(each))
            for each in (one, other)
        ]
        return _same(parts[0], parts[1], places)
    if keras.ops.is_tensor(one) or isinstance(one, np.ndarray):
        arrays = [keras.ops.convert_to_numpy(each) for each in (one, other)]
        return arrays[0].dtype == arrays[1].dtype and np.array_equal(*arrays)
    return bool(one == other)


def _closed_over(function: Any) -> list[Any]:
    return [cell.cell_contents for cell in function.__closure__ or ()]
