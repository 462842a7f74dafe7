"""A model repository of Triton: a model for each section, and one that runs them.

The sections are ONNX models. The model for clients is `triton_model.py`, which Triton's
Python backend runs; it calls the sections in order. Fields of `config.pbtxt` are those
of `ModelConfig` in Triton's `model_config.proto`.
"""

import json
import pathlib
import re
import shutil
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from keras_selfdistill.early_exit.export.deciding import input_names
from keras_selfdistill.early_exit.export.scored_section import ScoredSection
from keras_selfdistill.utils.optional_packages import optional_module

_MAX_BATCH_SIZE = 64
_VERSION = "1"
_MODEL = pathlib.Path(__file__).with_name("triton_model.py")
_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
} | {
    f"tensor({kind}{bits})": f"TYPE_{kind.upper()}{bits}"
    for kind in ("int", "uint")
    for bits in (8, 16, 32, 64)
}


class _OnnxTensor(Protocol):
    """What onnxruntime tells of an input or output."""

    name: str
    type: str
    shape: Sequence[int | str | None]


class _Tensor(NamedTuple):
    """An input or output of a model.

    Args:
        name: Its name.
        data_type: Its type, as Triton names it.
        dims: Sizes of all axes but that of the samples; -1 if open.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]

    def __str__(self) -> str:
        """Return it as an item of a list in `config.pbtxt`."""
        dims, reshape = ", ".join(map(str, self.dims)), ""
        if not self.dims:  # Triton has one axis more than a model of one number.
            dims, reshape = "1", " reshape: { shape: [ ] }"
        name = json.dumps(self.name)
        return (
            f"{{ name: {name} data_type: {self.data_type} dims: [ {dims} ]{reshape} }}"
        )


class _Ends(NamedTuple):
    """Inputs and outputs of a model, in order."""

    inputs: list[_Tensor]
    outputs: list[_Tensor]


def write_repository(
    path: pathlib.Path,
    sections: Sequence[ScoredSection],
    *,
    exits: Sequence[str],
    thresholds: Sequence[float],
) -> None:
    """Write a model repository to a folder that does not exist.

    Args:
        path: Path of the folder.
        sections: Sections of the network, shallow to deep.
        exits: Names of the exits, shallow to deep.
        thresholds: Thresholds of all exits but the last.

    Raises:
        ImportError: onnxruntime is missing, or a package that writes ONNX.
        ValueError: Triton's Python backend cannot pass on a tensor between sections.
    """
    names = [model_name(section.name) for section in sections]
    ends = [
        _write_section(path / name, section)
        for name, section in zip(names, sections, strict=True)
    ]
    calls = [
        {
            "model": name,
            "inputs": [tensor.name for tensor in inputs],
            "outputs": [tensor.name for tensor in outputs],
        }
        for name, (inputs, outputs) in zip(names, ends, strict=True)
    ]
    folder = path / names[0].removesuffix("_section_1")
    (folder / _VERSION).mkdir(parents=True)
    shutil.copy(_MODEL, folder / _VERSION / "model.py")
    _write_config(
        folder,
        "python",
        _ends_for_clients(ends[0], input_names(sections[0].section.inputs)),
        # While one instance waits for a section, the other one calls another.
        "instance_group [ { count: 2 kind: KIND_CPU } ]",
        _parameter("exits", list(exits)),
        _parameter("thresholds", list(thresholds)),
        _parameter("sections", calls),
    )


def model_name(name: str) -> str:
    """Return the name of a model for Triton, which is that of its folder.

    Args:
        name: Name of a Keras model.

    Example:
        >>> model_name("my-base.v2_section_1")
        'my_base_v2_section_1'
    """
    return re.sub(r"\W", "_", name, flags=re.ASCII)


def _write_section(folder: pathlib.Path, section: ScoredSection) -> _Ends:
    """Write a section as a model of its own; return its inputs and outputs."""
    onnxruntime = optional_module("onnxruntime", "format='triton'", "export")
    file = folder / _VERSION / "model.onnx"
    file.parent.mkdir(parents=True)
    section.write(file, "onnx")
    # Also checks the file: tf2onnx only logs operations that it cannot convert.
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    ends = _Ends(
        [_described(tensor) for tensor in session.get_inputs()],
        [_described(tensor) for tensor in session.get_outputs()],
    )
    _write_config(folder, "onnxruntime", ends)
    return ends


def _described(tensor: _OnnxTensor) -> _Tensor:
    if tensor.type not in _TYPES:
        raise ValueError(
            "Triton's Python backend passes on tensors that NumPy has. Received: "
            f"{tensor.name!r} of type {tensor.type}. Expected one of "
            f"{', '.join(_TYPES)}: build the base with another dtype policy, or export "
            "it with format='tf_saved_model'."
        )
    sizes = [size if isinstance(size, int) else -1 for size in tensor.shape]
    return _Tensor(tensor.name, _TYPES[tensor.type], tuple(sizes[1:]))


def _ends_for_clients(first: _Ends, names: Sequence[str]) -> _Ends:
    """Return inputs and outputs of the model that runs the sections."""
    prediction, score, *_ = first.outputs
    return _Ends(
        # Passed on as they are: the first section reshapes them.
        [
            tensor._replace(name=name, dims=tensor.dims or (1,))
            for name, tensor in zip(names, first.inputs, strict=True)
        ],
        [
            prediction._replace(name="prediction"),
            _Tensor("exit", "TYPE_INT32", (1,)),
            score._replace(name="score", dims=(1,)),
        ],
    )


def _write_config(folder: pathlib.Path, backend: str, ends: _Ends, *more: str) -> None:
    def listed(field: str, tensors: Sequence[_Tensor]) -> str:
        items = ",\n".join(f"  {tensor}" for tensor in tensors)
        return f"{field} [\n{items}\n]"

    lines = [
        f'name: "{folder.name}"',
        f'backend: "{backend}"',
        f"max_batch_size: {_MAX_BATCH_SIZE}",
        listed("input", ends.inputs),
        listed("output", ends.outputs),
        "dynamic_batching { }",
        *more,
    ]
    text = "\n".join(lines) + "\n"
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")


def _parameter(key: str, value: object) -> str:
    """Return a parameter of a model whose value is JSON."""
    text = json.dumps(json.dumps(value, allow_nan=False))
    return f'parameters {{\n  key: "{key}"\n  value {{ string_value: {text} }}\n}}'
