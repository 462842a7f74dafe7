"""Quantise the ONNX models of sections by onnxruntime, with QuantizeLinear nodes."""

import collections
import itertools
import pathlib
from collections.abc import Container, Iterator, Sequence
from typing import Any

import numpy as np

from keras_selfdistill.early_exit.export.int8.report import SectionSize
from keras_selfdistill.early_exit.export.int8.samples import Scored
from keras_selfdistill.early_exit.export.section_runner import load_onnx
from keras_selfdistill.utils.optional_packages import optional_module

# Operators with weights, behind the last of which an exit is scored in float32.
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_BATCH = 32


def quantize_section(
    path: pathlib.Path, samples: Sequence[np.ndarray], alive: int
) -> tuple[list[np.ndarray], SectionSize, set[str]]:
    """Replace the float model of a section by one in int8.

    Args:
        path: File of the section.
        samples: Representative samples, one array for each input of the section.
        alive: Number of tensors that the next section computes with, which are the
            outputs behind prediction and score, before the memory of the scores.

    Returns:
        The inputs of the next section for these samples, the section's size, and the
        kinds of its operators with weights in float32, such as LSTM.
    """
    onnx = optional_module("onnx", "ONNX in int8", "export")
    quantization = optional_module("onnxruntime.quantization", "ONNX in int8", "export")
    section = load_onnx(path)
    behind = [section(batch)[2:] for batch in in_batches(samples)]
    made = path.with_suffix(".int8")
    prepare = optional_module(
        "onnxruntime.quantization.shape_inference", "ONNX in int8", "export"
    )
    # The other inference of shapes needs SymPy, and tells nothing of these models.
    prepare.quant_pre_process(path, made, skip_symbolic_shape=True)
    made.replace(path)
    graph = onnx.load(path).graph
    scored = scored_nodes(graph, alive)
    quantization.quantize_static(
        path,
        made,
        _Samples([each.name for each in graph.input], samples),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
        nodes_to_exclude=scored,
    )
    model = onnx.load(made)
    graph = model.graph
    kinds = collections.Counter(node.op_type for node in graph.node)
    weights = (onnx.numpy_helper.to_array(each) for each in graph.initializer)
    size = SectionSize(
        operators=dict(sorted(kinds.items())),
        weight_bytes=sum(each.nbytes for each in weights),
    )
    floats = {
        each.name
        for each in graph.initializer
        if each.data_type == onnx.TensorProto.FLOAT and len(each.dims) > 1
    }
    kept = {
        node.op_type
        for node in graph.node
        if node.name not in scored and floats & set(node.input)
    }
    shorten_names(graph, {each.name for each in (*graph.input, *graph.output)})
    onnx.save(model, made)
    made.replace(path)
    return [np.concatenate(each) for each in zip(*behind, strict=True)], size, kept


def run_all(
    paths: Sequence[pathlib.Path], inputs: Sequence[np.ndarray]
) -> list[Scored]:
    """Return the predictions and scores of every exit.

    Args:
        paths: Files of the sections, shallow to deep.
        inputs: Samples, one array for each input of the first section.
    """
    sections = [load_onnx(path) for path in paths]
    found: list[tuple[list, list]] = [([], []) for _ in sections]
    for tensors in in_batches(inputs):
        for section, (predictions, scores) in zip(sections, found, strict=True):
            prediction, score, *tensors = section(tensors)
            predictions.append(prediction)
            scores.append(score)
    return [(np.concatenate(p), np.concatenate(s)) for p, s in found]


def in_batches(arrays: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Yield some samples after another, of all arrays."""
    for start in range(0, len(arrays[0]), _BATCH):
        yield [each[start : start + _BATCH] for each in arrays]


def scored_nodes(graph: Any, alive: int) -> list[str]:
    """Return the nodes that no operator with weights needs, nor the next section.

    They score an exit, which int8 would make coarse.

    Args:
        graph: Graph of a section, whose first outputs are prediction and score.
        alive: Number of the outputs behind them that the next section computes with.
    """
    makers = {name: node for node in graph.node for name in node.output}
    waiting = [each.name for each in graph.output[2 : 2 + alive]]
    waiting += [
        name for node in graph.node if node.op_type in _WEIGHTED for name in node.output
    ]
    needed = set()
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in needed:
            needed.add(node.name)
            waiting += node.input
    return [node.name for node in graph.node if node.name not in needed]


def shorten_names(graph: Any, kept: Container[str]) -> None:
    """Give short names to all values of a graph: in int8 they are a sixth of the file.

    Args:
        graph: Graph, whose nodes lose their names.
        kept: Names that stay, such as those of inputs and outputs.
    """
    short: dict[str, str] = {}
    free = (name for i in itertools.count() if (name := f"_{i}") not in kept)

    def rename(name: str) -> str:
        if not name or name in kept:  # An optional input that is missing has none.
            return name
        return short[name] if name in short else short.setdefault(name, next(free))

    waiting = [graph]
    while waiting:
        part = waiting.pop()
        part.ClearField("value_info")  # Shapes, which onnxruntime infers anew.
        for sparse in part.sparse_initializer:
            sparse.values.name = rename(sparse.values.name)
        for value in (*part.input, *part.output, *part.initializer):
            value.name = rename(value.name)
        for node in part.node:
            node.name = ""
            node.input[:] = map(rename, node.input)
            node.output[:] = map(rename, node.output)
            waiting += [each.g for each in node.attribute if each.HasField("g")]
            waiting += [
                each for attribute in node.attribute for each in attribute.graphs
            ]


class _Samples:
    """Yields representative samples, as onnxruntime's `CalibrationDataReader` does."""

    def __init__(self, names: Sequence[str], arrays: Sequence[np.ndarray]):
        self._names, self._batches = names, in_batches(arrays)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch by the names of inputs; `None` at the end."""
        batch = next(self._batches, None)
        if batch is None:
            return None
        return dict(zip(self._names, batch, strict=True))
