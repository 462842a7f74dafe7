"""Run a folder of exported sections, with early exit for each sample.

This file is copied into every such folder. It needs NumPy and the runtime of the
folder, onnxruntime or openvino, but not Keras. As a command it classifies the samples
of an .npy file:

    python section_runner.py FOLDER INPUTS.npy
"""

import hashlib
import json
import os
import pathlib
import stat
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

FORMAT, VERSION = "keras_selfdistill.sections", 1
LONGEST_MANIFEST = 1 << 20  # Bytes.


class SectionRunner:
    """An early-exit network, loaded from a folder.

    Args:
        folder: Path of the folder of `manifest.json` and the files of the sections.

    Raises:
        ValueError: The manifest is not valid, or a file was changed.
    """

    def __init__(self, folder: str | os.PathLike):
        folder = pathlib.Path(folder)
        manifest = read_manifest(folder)
        self.exits, self.thresholds = manifest["exits"], manifest["thresholds"]
        load = {"onnx": load_onnx, "openvino": load_openvino}[manifest["runtime"]]
        self._sections = [load(folder / each["model"]) for each in manifest["sections"]]

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the predictions, exit names and scores of a batch.

        Args:
            *inputs: One array of shape `(batch, …)` for each input of the network.

        Returns:
            Arrays of shapes `(batch, classes)`, `(batch,)` and `(batch,)`.
        """
        tensors = [np.asarray(each) for each in inputs]
        if not len(tensors[0]):  # Runtimes need samples, also to tell the shapes.
            sample = [np.zeros((1, *each.shape[1:]), each.dtype) for each in tensors]
            return tuple(each[:0] for each in self(*sample))
        rows = np.arange(len(tensors[0]))
        parts = []
        for i, section in enumerate(self._sections):
            if not len(rows):
                break
            prediction, score, *tensors = section(tensors)
            last = i == len(self._sections) - 1
            exits = np.ones(len(rows), bool) if last else score >= self.thresholds[i]
            names = np.full(exits.sum(), self.exits[i], object)
            parts.append((rows[exits], prediction[exits], names, score[exits]))
            rows, tensors = rows[~exits], [each[~exits] for each in tensors]
        found = [np.concatenate(each) for each in zip(*parts, strict=True)]
        order = np.argsort(found[0])
        return tuple(each[order] for each in found[1:])


def read_manifest(folder: str | os.PathLike) -> dict:
    """Return the validated manifest of a folder, which may be untrusted.

    Args:
        folder: Path of the folder.

    Raises:
        ValueError: The manifest is not valid, names a file that is not in the folder,
            or a file was changed.
    """
    folder = pathlib.Path(folder)
    path = folder / "manifest.json"
    if not is_plain_file(path) or path.stat().st_size > LONGEST_MANIFEST:
        raise ValueError(f"{path} is missing, a link, or much too long.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    for field, fits in SCHEMA.items():
        if not isinstance(manifest, dict) or not fits(manifest.get(field)):
            raise ValueError(f"{path} is no manifest of {FORMAT}: {field!r} is wrong.")
    exits, sections = len(manifest["exits"]), len(manifest["sections"])
    if not exits == sections == len(manifest["thresholds"]) + 1:
        raise ValueError(f"{path} has {exits} exits and {sections} sections.")
    for part in manifest["sections"]:
        check_files(folder, part)
    return manifest


def check_files(folder: pathlib.Path, part: dict) -> None:
    """Refuse files of a section outside of the folder, or with another digest.

    Args:
        folder: Path of the folder.
        part: Entry of a section in the manifest.

    Raises:
        ValueError: A file is refused.
    """
    for name, digest in part["files"].items():
        path = folder / name
        if pathlib.PurePath(name).name != name or not is_plain_file(path):
            raise ValueError(f"The manifest names {name!r}, no file of its folder.")
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            raise ValueError(f"{path} is not the file that was exported.")
    if part["model"] not in part["files"]:
        raise ValueError(f"The manifest has no digest of {part['model']!r}.")


def is_plain_file(path: pathlib.Path) -> bool:
    """Return whether a path is a regular file, not a folder, link or device."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):  # Too long a name, or one with a zero byte.
        return False


def is_part(value: object) -> bool:
    """Return whether a value is an entry of a section: its model and file digests."""
    return (
        isinstance(value, dict)
        and set(value) == {"model", "files"}
        and isinstance(value["model"], str)
        and isinstance(value["files"], dict)
        and all(isinstance(each, str) for each in value["files"].values())
    )


def list_of(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    """Return a check that a value is a list whose items pass another check."""
    return lambda value: isinstance(value, list) and all(map(fits, value))


def is_text(value: object) -> bool:
    """Return whether a value is a string."""
    return isinstance(value, str)


def is_threshold(value: Any) -> bool:
    """Return whether a value is a number within the range of float32."""
    return type(value) in (int, float) and abs(value) <= 3.4e38


SCHEMA = {
    "format": lambda value: value == FORMAT,
    "version": lambda value: type(value) is int and value == VERSION,
    "runtime": lambda value: is_text(value) and value in ("onnx", "openvino"),
    "exits": list_of(is_text),
    "thresholds": list_of(is_threshold),
    "sections": list_of(is_part),
}


def load_onnx(path: pathlib.Path) -> Callable[[list], list]:
    """Return a function from inputs to outputs of a section, run by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda tensors: session.run(None, dict(zip(names, tensors, strict=True)))


def load_openvino(path: pathlib.Path) -> Callable[[list], list]:
    """Return a function from inputs to outputs of a section, run by OpenVINO."""
    import openvino

    # Some processors would otherwise compute in bfloat16.
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(path, "CPU", options)
    # Converted sections may drop unused inputs; the names of the others, input_0,
    # input_1, ..., give their positions.
    places = [int(each.any_name.rpartition("_")[2]) for each in model.inputs]
    return lambda tensors: [
        found.copy()
        for found in model([tensors[i] for i in places], share_outputs=False).values()
    ]


if __name__ == "__main__":
    predictions, exit_names, _ = SectionRunner(sys.argv[1])(np.load(sys.argv[2]))
    for prediction, exit_name in zip(predictions, exit_names, strict=True):
        print(f"class {prediction.argmax()} at {exit_name}")
