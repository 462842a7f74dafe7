"""Artifacts of early exit: files that stop early without this library.

Two kinds: one file whose graph decides by control flow (`tf_saved_model`, `litert`),
or a folder of one file for each section and a small runner (`onnx`, `openvino`).
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_selfdistill import section_runner
from keras_selfdistill.config import did_you_mean
from keras_selfdistill.exported_section import ScoredSection

# Runtimes compute in float32, where a larger threshold would overflow.
_LARGEST_THRESHOLD = 3e38


def export_sections(
    path: str | os.PathLike,
    sections: Sequence[ScoredSection],
    *,
    inputs: Sequence[Any],
    exits: Sequence[str],
    thresholds: Sequence[float],
    format: str,
) -> None:
    """Write an artifact of an early-exit network, whole or not at all.

    Args:
        path: Of the file (`litert`) or the folder; replaced if it exists.
        sections: The network's, shallow to deep.
        inputs: The base's symbolic inputs that the first section takes, in its order.
        exits: Names of what can answer, shallow to deep.
        thresholds: One for each exit but the last.
        format: `"tf_saved_model"`, `"litert"`, `"onnx"` or `"openvino"`.

    Raises:
        ValueError: The format is unknown, or the backend is not TensorFlow.
        ImportError: A package that writes the format is missing.
    """
    if format not in _WRITERS:
        raise ValueError(
            f"Unknown format. Received: format={format!r}. Expected one of "
            f"{', '.join(map(repr, _WRITERS))}."
            f"{did_you_mean(str(format), list(_WRITERS))}"
        )
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"Keras on {keras.backend.backend()} cannot write an early-exit artifact; "
            "on TensorFlow it can. Save this EarlyExit, load it under "
            "KERAS_BACKEND=tensorflow, and export it there. (exit_model(...) and "
            "final_model() export by Keras' own export() on other backends, too.)"
        )
    limits = np.clip(thresholds, -_LARGEST_THRESHOLD, _LARGEST_THRESHOLD).tolist()
    with _replaced_when_whole(pathlib.Path(path)) as temporary:
        _WRITERS[format](temporary, sections, inputs, list(exits), limits)


def _write_saved_model(path, sections, inputs, exits, limits):
    import tensorflow as tf

    module = tf.Module()
    module.serve = _deciding_function(sections, inputs, limits)
    module.exit_names = tf.function(
        lambda: {"exit_names": tf.constant(exits)}, input_signature=[]
    )
    signatures = {"serving_default": module.serve, "exit_names": module.exit_names}
    tf.saved_model.save(module, str(path), signatures=signatures)


def _write_litert(path, sections, inputs, exits, limits):
    import tensorflow as tf

    module = tf.Module()  # Makes the converter keep names of inputs and outputs.
    module.serve = _deciding_function(sections, inputs, limits)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.serve.get_concrete_function()], module
    )
    path.write_bytes(converter.convert())


def _deciding_function(sections, inputs, limits):
    """Return a TensorFlow function of one sample that stops where it is sure.

    Weights are constants in the branch that reads them. As variables or captured
    tensors they would reach it as arguments, which LiteRT can neither fold into
    convolutions nor hand to its fast kernels.
    """
    import tensorflow as tf

    values = [
        [
            (variable, keras.ops.convert_to_numpy(variable))
            for variable in each.variables
        ]
        for each in sections
    ]

    def run(i, tensors):
        constants = [(variable, tf.constant(value)) for variable, value in values[i]]
        with keras.StatelessScope(state_mapping=constants):
            prediction, score, *alive = sections[i](tensors)
        answer = {"prediction": prediction, "exit": tf.constant([i]), "score": score}
        if i == len(limits):
            return answer
        return tf.cond(score[0] >= limits[i], lambda: answer, lambda: run(i + 1, alive))

    names = ["input"] if len(inputs) == 1 else [tensor.name for tensor in inputs]
    signature = [
        tf.TensorSpec((1, *tensor.shape[1:]), tensor.dtype, name=name)
        for name, tensor in zip(names, inputs, strict=True)
    ]
    return tf.function(
        lambda *tensors: run(0, list(tensors)),
        input_signature=signature,
        autograph=False,
    )


def _folder_writer(runtime: str, suffix: str) -> Callable[..., None]:
    def write(path, sections, inputs, exits, limits):
        path.mkdir()
        parts = []
        for i, section in enumerate(sections, start=1):
            before = set(path.iterdir())
            model = path / f"section_{i}{suffix}"
            section.export(
                str(model),
                format=runtime,
                input_signature=[section.input_specs],
                verbose=False,
            )
            made = sorted(set(path.iterdir()) - before)
            files = {each.name: _digest(each) for each in made}
            parts.append({"model": model.name, "files": files})
        manifest = {
            "format": section_runner.FORMAT,
            "version": section_runner.VERSION,
            "runtime": runtime,
            "exits": exits,
            "thresholds": limits,
            "sections": parts,
        }
        text = json.dumps(manifest, indent=2, allow_nan=False) + "\n"
        (path / "manifest.json").write_text(text, encoding="utf-8")
        section_runner.read_manifest(path)
        shutil.copy(section_runner.__file__, path / "section_runner.py")

    return write


_WRITERS: dict[str, Callable[..., None]] = {
    "tf_saved_model": _write_saved_model,
    "litert": _write_litert,
    "onnx": _folder_writer("onnx", ".onnx"),
    "openvino": _folder_writer("openvino", ".xml"),
}


def _digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def _replaced_when_whole(path):
    """Give a place beside a path, and move what was written there onto it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export_") as folder:
        whole = pathlib.Path(folder) / path.name
        yield whole
        if path.is_dir():
            os.replace(path, pathlib.Path(folder) / "before")
        os.replace(whole, path)
