"""Exported artifacts: files that run early exit without this library.

There are three kinds: one file with control flow in its graph (`tf_saved_model`,
`litert`), a folder of one file per section and a small runner (`onnx`, `openvino`), or
a model repository of a server (`triton`).
"""

import contextlib
import importlib.util
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import keras
import numpy as np

from keras_selfdistill.early_exit.export import section_runner
from keras_selfdistill.early_exit.export.deciding import (
    batched_function,
    single_function,
)
from keras_selfdistill.early_exit.export.earlier_export import (
    attach_list,
    check_earlier_export,
    write_list,
)
from keras_selfdistill.early_exit.export.scored_section import ScoredSection
from keras_selfdistill.early_exit.export.triton_repository import write_repository
from keras_selfdistill.files.atomic import replacing
from keras_selfdistill.files.digest import sha256_of_file
from keras_selfdistill.utils.config import did_you_mean
from keras_selfdistill.utils.type_aliases import PathLike

# The format that a suffix implies, if any, and what is expected otherwise.
_SUFFIXES = {".tflite": "litert", ".onnx": None, ".xml": None}
_SUFFIXES |= {".keras": None, ".h5": None, ".earlyexit": None}
_EXPECTED = {
    ".tflite": "format='litert' for such a file, or a path without that suffix.",
    ".onnx": "a folder of sections, without suffix, and format='onnx'.",
    ".xml": "a folder of sections, without suffix, and format='openvino'.",
    ".keras": "save(path), which writes what EarlyExit.load reads.",
    ".h5": "save(path), which writes what EarlyExit.load reads.",
    ".earlyexit": "save(path), which writes what EarlyExit.load reads.",
}
# Runtimes compute in float32, in which a larger threshold would overflow.
_LARGEST_THRESHOLD = 3e38


def export_sections(
    path: PathLike,
    sections: Sequence[ScoredSection],
    *,
    exits: Sequence[str],
    thresholds: Sequence[float],
    format: str | None,
    write: Callable[[pathlib.Path], None] | None = None,
) -> None:
    """Write an artifact of an early-exit network, atomically.

    Args:
        path: Path of the file (`litert`) or the folder; replaces only an earlier,
            unchanged artifact of the same format.
        sections: Sections of the network, shallow to deep.
        exits: Names of the exits, shallow to deep.
        thresholds: Thresholds of all exits but the last.
        format: `"tf_saved_model"`, `"litert"`, `"onnx"`, `"openvino"`, `"triton"`, or
            `None` for the format implied by the suffix of the path.
        write: Writes to a path in place of the format's own writer.

    Raises:
        ValueError: The format is unknown or contradicts the suffix, the backend is not
            TensorFlow, the base has a fixed batch size, or the criterion does not run
            on tensors.
        FileExistsError: At the path is something else.
        ImportError: A package that writes the format is missing.
    """
    format = format_of(path, format)
    check_backend()
    inputs = sections[0].section.inputs
    fixed = {tensor.name: tensor.shape for tensor in inputs if tensor.shape[0]}
    if fixed:
        raise ValueError(
            "A base with a fixed batch size cannot be exported, because some samples "
            f"of a batch exit early. Received: inputs {fixed}. Expected: None as the "
            "batch size. Build the base with keras.Input(shape=...), and copy the "
            "weights."
        )
    for section in sections:
        section.check_criterion()
    limits = in_float32(thresholds)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_folders_of(pathlib.Path(path)))
        new = stack.enter_context(replacing(path, check_earlier_export(format)))
        if write is not None:
            write(new)
            return
        _WRITERS[format](new, _Artifact(sections, list(exits), limits))


def check_backend() -> None:
    """Refuse to write artifacts on another backend than TensorFlow.

    Raises:
        ValueError: The backend is another one.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "Early-exit artifacts are written by the TensorFlow backend only. "
            f"Received: backend {keras.backend.backend()}. Save this EarlyExit, load "
            "it with KERAS_BACKEND=tensorflow, and export it there. (Models returned "
            "by exit_model(...) and final_model() can be exported on any backend.)"
        )


def in_float32(thresholds: Sequence[float]) -> list[float]:
    """Return thresholds as artifacts have them: infinity as a finite number."""
    return np.clip(thresholds, -_LARGEST_THRESHOLD, _LARGEST_THRESHOLD).tolist()


class _Artifact(NamedTuple):
    """What every writer writes: sections, names of exits, thresholds but the last."""

    sections: Sequence[ScoredSection]
    exits: list[str]
    limits: list[float]


def format_of(path: PathLike, format: str | None = None) -> str:
    """Return the format of an artifact.

    Args:
        path: Path of the file or folder.
        format: Format requested by the user, or `None`.

    Raises:
        ValueError: The format is unknown, or does not match the suffix of the path.

    Example:
        >>> format_of("model.tflite"), format_of("saved_model")
        ('litert', 'tf_saved_model')
    """
    if format is not None and format not in _WRITERS:
        raise ValueError(
            f"Unknown format. Received: format={format!r}. Expected one of "
            f"{', '.join(map(repr, _WRITERS))}."
            f"{did_you_mean(str(format), list(_WRITERS))}"
        )
    suffix = pathlib.PurePath(path).suffix.lower()
    named = _SUFFIXES.get(suffix)
    if suffix in _SUFFIXES and (named is None or format not in (None, named)):
        raise ValueError(
            "The suffix of the path does not match the format. Received: "
            f"path={str(path)!r}, format={format!r}. Expected: {_EXPECTED[suffix]}"
        )
    return format or named or "tf_saved_model"


@contextlib.contextmanager
def _folders_of(path: pathlib.Path) -> Iterator[None]:
    """Create the parent folders of a path; remove them again after an error."""
    missing = [each for each in path.parents if not each.exists()]
    for each in reversed(missing):
        each.mkdir()
    try:
        yield
    except BaseException:
        for each in missing:
            with contextlib.suppress(OSError):  # Somebody else uses it meanwhile.
                each.rmdir()
        raise


_Writer: TypeAlias = Callable[[pathlib.Path, _Artifact], None]


def _write_saved_model(path: pathlib.Path, artifact: _Artifact) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.serve = batched_function(artifact.sections, artifact.limits)
    module.exit_names = tf.function(
        lambda: {"exit_names": tf.constant(artifact.exits)}, input_signature=[]
    )
    signatures = {"serving_default": module.serve, "exit_names": module.exit_names}
    tf.saved_model.save(module, str(path), signatures=signatures)
    write_list(path, "tf_saved_model")


def _write_litert(path: pathlib.Path, artifact: _Artifact) -> None:
    import tensorflow as tf

    module = tf.Module()  # With it the converter keeps names of inputs and outputs.
    module.serve = single_function(artifact.sections, artifact.limits)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.serve.get_concrete_function()], module
    )
    attach_list(converter.convert(), path)


def _folder_writer(runtime: str, suffix: str) -> _Writer:
    def write(path: pathlib.Path, artifact: _Artifact) -> None:
        path.mkdir()
        models = [
            write_section(path, i, section, runtime, suffix)
            for i, section in enumerate(artifact.sections, start=1)
        ]
        finish_folder(path, runtime, models, artifact.exits, artifact.limits)

    return write


def write_section(
    path: pathlib.Path, number: int, section: ScoredSection, runtime: str, suffix: str
) -> pathlib.Path:
    """Write a section into a folder, and return the path of its model.

    Args:
        path: Path of the folder.
        number: Number of the section, from 1.
        section: The section.
        runtime: Keras' name of the format.
        suffix: Suffix of the model. Other files of the section have the same stem.
    """
    model = path / f"section_{number}{suffix}"
    section.write(model, runtime)
    return model


def finish_folder(
    path: pathlib.Path,
    runtime: str,
    models: Sequence[pathlib.Path],
    exits: Sequence[str],
    limits: Sequence[float],
) -> None:
    """Write manifest, runner and list of files into a folder of sections.

    Args:
        path: Path of the folder.
        runtime: Runtime of the models.
        models: Models of the sections, shallow to deep.
        exits: Names of the exits.
        limits: Thresholds of all exits but the last.
    """
    parts = []
    for model in models:
        made = sorted(path.glob(f"{model.stem}.*"))
        files = {each.name: sha256_of_file(each) for each in made}
        parts.append({"model": model.name, "files": files})
    manifest = {
        "format": section_runner.FORMAT,
        "version": section_runner.VERSION,
        "runtime": runtime,
        "exits": list(exits),
        "thresholds": list(limits),
        "sections": parts,
    }
    text = json.dumps(manifest, indent=2, allow_nan=False) + "\n"
    (path / "manifest.json").write_text(text, encoding="utf-8")
    section_runner.read_manifest(path)
    # tf2onnx only logs operations that it cannot convert: check the files.
    if runtime == "onnx" and importlib.util.find_spec("onnxruntime"):
        section_runner.SectionRunner(path)
    shutil.copy(section_runner.__file__, path / "section_runner.py")
    write_list(path, runtime)


def _write_triton(path: pathlib.Path, artifact: _Artifact) -> None:
    sections, exits, limits = artifact
    write_repository(path, sections, exits=exits, thresholds=limits)
    write_list(path, "triton")


_WRITERS: dict[str, _Writer] = {
    "tf_saved_model": _write_saved_model,
    "litert": _write_litert,
    "onnx": _folder_writer("onnx", ".onnx"),
    "openvino": _folder_writer("openvino", ".xml"),
    "triton": _write_triton,
}
