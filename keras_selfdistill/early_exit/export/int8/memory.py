"""Operators, weights and working memory of the sections of a LiteRT model."""

import collections
import math
from collections.abc import Sequence
from typing import Any

from keras_selfdistill.early_exit.export.int8.flatbuffer import (
    Model,
    Operator,
    Subgraph,
    buffer_bytes,
    name_of,
    read,
    schema,
    tensors_read,
    tensors_written,
)
from keras_selfdistill.early_exit.export.int8.report import SectionSize

_ALIGNMENT = 16  # Bytes, of each tensor in the arena.
_BYTES = {
    "BOOL": 1,
    "INT8": 1,
    "UINT8": 1,
    "INT16": 2,
    "FLOAT16": 2,
    "INT32": 4,
    "UINT32": 4,
    "FLOAT32": 4,
    "INT64": 8,
    "FLOAT64": 8,
}


def section_sizes(content: bytes, sections: Sequence[int]) -> list[SectionSize]:
    """Return what each section of a model needs.

    Args:
        content: File of a model of `branches.branched`.
        sections: Subgraphs of the sections, shallow to deep.
    """
    model = read(content)
    found, held, counted = [], 0, {0}
    for index in sections:
        subgraph = model.subgraphs[index]
        names = [name_of(model, each) for each in subgraph.operators]
        buffers = {tensor.buffer for tensor in subgraph.tensors} - counted
        counted |= buffers
        levels = arena_levels(model, subgraph)
        found.append(
            SectionSize(
                operators=dict(sorted(collections.Counter(names).items())),
                weight_bytes=sum(len(buffer_bytes(model, each)) for each in buffers),
                arena_bytes=held + max(levels),
            )
        )
        held += levels[-1]  # What a section holds while the next one runs in its IF.
    return found


def float_operators(content: bytes) -> list[str]:
    """Return the kinds of operators of a quantised network that compute in float32.

    The converter leaves those in float32 that have no int8 form.

    Args:
        content: File of a network, without scores.
    """
    model = read(content)
    floats = schema().TensorType.FLOAT32
    found = {
        name_of(model, operator)
        for subgraph in model.subgraphs
        for operator in subgraph.operators
        if any(subgraph.tensors[i].type == floats for i in operator.outputs)
    }
    return sorted(found - {"DEQUANTIZE", "WHILE"})


def arena_levels(model: Model, subgraph: Subgraph) -> list[int]:
    """Return the bytes of tensors that are needed at once, at each operator.

    A tensor is needed from the operator that computes it, or from the beginning if it
    is an input, to the last operator that reads it, or to the end if it is an output.
    The branches of an `IF` are not counted; the subgraphs of a loop are.

    Args:
        model: A model.
        subgraph: One of its subgraphs.
    """
    last = len(subgraph.operators) - 1
    begin = {int(each): 0 for each in subgraph.inputs}
    end = dict(begin)
    for i, operator in enumerate(subgraph.operators):
        begin |= dict.fromkeys(tensors_written(operator), i)
        end |= dict.fromkeys(tensors_written(operator) | tensors_read(operator), i)
    end |= {int(each): last for each in subgraph.outputs}
    sizes = {each: tensor_bytes(subgraph.tensors[each]) for each in begin}
    return [
        sum(sizes[each] for each in begin if begin[each] <= i <= end[each])
        + _inner(model, operator)
        for i, operator in enumerate(subgraph.operators)
    ]


def tensor_bytes(tensor: Any) -> int:
    """Return the bytes of a tensor in the arena."""
    types = vars(schema().TensorType).items()
    name = next(name for name, number in types if number == tensor.type)
    shape = [] if tensor.shape is None else tensor.shape
    size = math.prod(map(int, shape)) * _BYTES.get(name, 8)
    return math.ceil(size / _ALIGNMENT) * _ALIGNMENT


def _inner(model: Model, operator: Operator) -> int:
    """Return the bytes that the subgraphs of a loop need."""
    if name_of(model, operator) != "WHILE":
        return 0
    options = operator.builtinOptions
    inner = (options.condSubgraphIndex, options.bodySubgraphIndex)
    return max(max(arena_levels(model, model.subgraphs[each])) for each in inner)
