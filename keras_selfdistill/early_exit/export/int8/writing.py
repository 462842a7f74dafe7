"""Write an int8 artifact: network, thresholds, report."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from keras_selfdistill.early_exit.cascade import Cascade
from keras_selfdistill.early_exit.export.earlier_export import attach_list
from keras_selfdistill.early_exit.export.int8.litert import LiteRTNetwork
from keras_selfdistill.early_exit.export.int8.onnx_sections import (
    quantize_section,
    run_all,
)
from keras_selfdistill.early_exit.export.int8.report import (
    QuantizedExport,
    warn_of_floats,
)
from keras_selfdistill.early_exit.export.int8.samples import (
    Recalibration,
    RunAll,
    recalibration,
    representative_samples,
)
from keras_selfdistill.early_exit.export.scored_section import (
    ScoredSection,
    scored_sections,
)
from keras_selfdistill.early_exit.export.writers import (
    check_backend,
    export_sections,
    finish_folder,
    format_of,
    in_float32,
    write_section,
)
from keras_selfdistill.early_exit.scoring import Scorer
from keras_selfdistill.early_exit.thresholds.choice import Choice
from keras_selfdistill.exits.attach import ExitGraph
from keras_selfdistill.utils.optional_packages import optional_module
from keras_selfdistill.utils.type_aliases import Data, PathLike

# Modules that write each format.
_MODULES = {
    "litert": ("ai_edge_litert.schema_py_generated", "flatbuffers"),
    "onnx": ("onnx", "onnxruntime.quantization"),
}


def check_quantize(path: PathLike, format: str | None, quantize: object) -> str:
    """Return the format of an int8 artifact.

    Args:
        path: Path of the artifact.
        format: Format requested by the user, or `None`.
        quantize: Value of the argument of this name.

    Raises:
        ValueError: It is not `"int8"`, or the format has no int8 artifact.
    """
    if quantize != "int8":
        raise ValueError(
            f"Unknown quantisation. Received: quantize={quantize!r}. Expected: 'int8', "
            "or None for float32."
        )
    format = format_of(path, format)
    if format not in _MODULES:
        raise ValueError(
            "This format has no int8 artifact. Received: quantize='int8' with "
            f"format={format!r}. Expected: format='litert' (a path that ends in "
            ".tflite) or format='onnx'."
        )
    return format


def check_unused(arguments: Mapping[str, object]) -> None:
    """Refuse arguments of an int8 export in an export of float32.

    Args:
        arguments: Values of the arguments, by name.

    Raises:
        ValueError: One is not `None`.
    """
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise ValueError(
            f"Only int8 needs {' and '.join(given)}. Received: {', '.join(given)} "
            "without quantize. Expected: quantize='int8' with them."
        )


class _Network(NamedTuple):
    """What is written: sections that return logits, samples, and thresholds.

    Args:
        sections: Sections of the network, shallow to deep.
        scorer: Computes predictions and scores from logits.
        classes: Number of classes.
        samples: Representative samples, one array for each input of the first section.
        used: Positions of these inputs among those of the base.
        thresholds: Thresholds by exit.
        plan: How thresholds are chosen on the quantised outputs, if they are.
    """

    sections: list[ScoredSection]
    scorer: Scorer
    classes: int
    samples: list[np.ndarray]
    used: list[int]
    thresholds: dict[str, float | None]
    plan: Recalibration | None

    def chosen(self, run: RunAll) -> tuple[dict[str, float | None], Choice | None]:
        """Return the thresholds of the artifact, chosen on its outputs if wanted."""
        if self.plan is None:
            return self.thresholds, None
        choice = self.plan.choose(lambda inputs: run([inputs[i] for i in self.used]))
        limits = dict(zip(self.thresholds, (*choice.thresholds, None), strict=True))
        return limits, choice


def export_int8(
    path: PathLike,
    format: str,
    graph: ExitGraph,
    cascade: Cascade,
    *,
    thresholds: Mapping[str, float | None],
    representative_data: Data,
    recalibrate: Mapping[str, object] | None,
) -> QuantizedExport:
    """Write an int8 artifact, atomically, and return what it contains.

    Args:
        path: Path of the file or folder.
        format: `"litert"` or `"onnx"`.
        graph: Network of a wrapper.
        cascade: Runs the float network.
        thresholds: Thresholds by exit, shallow to deep; `None` at the last.
        representative_data: Samples from which the ranges of tensors are measured.
        recalibrate: Arguments of `calibrate`, or `None`.

    Raises:
        ValueError: Data or arguments are missing or invalid, or an operator has no int8
            form.
        TypeError: Data or arguments are of an unknown type.
        ImportError: A package that writes the format is missing.
    """
    for module in _MODULES[format]:
        optional_module(module, f"{format} in int8", "export")
    check_backend()
    _check_sizes(graph, format)
    samples = representative_samples(graph.base, representative_data)
    plan = None
    if recalibrate is not None:
        plan = recalibration(graph.base, cascade, recalibrate)
    scorer = cascade.scorer
    # Scores of int8 probabilities would be coarse: those of logits are not.
    temperatures = scorer.temperatures or (1.0,) * scorer.exits
    scorer = dataclasses.replace(scorer, temperatures=temperatures)
    sections = scored_sections(graph, scorer)
    places = {id(tensor): i for i, tensor in enumerate(graph.base.inputs)}
    used = [places[id(tensor)] for tensor in sections[0].section.inputs]
    network = _Network(
        sections=sections,
        scorer=scorer,
        classes=cascade.classes,
        samples=[samples[i] for i in used],
        used=used,
        thresholds=dict(thresholds),
        plan=plan,
    )
    reports = []
    write = {"litert": _write_litert, "onnx": _write_onnx}[format]
    limits = [each for each in thresholds.values() if each is not None]
    export_sections(
        path,
        sections,
        exits=list(thresholds),
        thresholds=limits,
        format=format,
        write=lambda new: reports.append(write(new, network)),
    )
    return reports[0]


def _check_sizes(graph: ExitGraph, format: str) -> None:
    """Refuse inputs of open sizes in LiteRT, whose memory would be unknown."""
    shapes = {each.name: tuple(each.shape) for each in graph.base.inputs}
    opened = {name: shape for name, shape in shapes.items() if None in shape[1:]}
    if format == "litert" and opened:
        raise ValueError(
            "An int8 LiteRT file needs inputs of known sizes, from which its memory "
            f"follows. Received: inputs {opened}. Expected: None as the batch size "
            "alone. Build the base with keras.Input(shape=...), and copy the weights."
        )


def _write_litert(path: pathlib.Path, network: _Network) -> QuantizedExport:
    model = LiteRTNetwork(
        network.sections, network.scorer, network.classes, network.samples
    )
    thresholds, choice = network.chosen(model.run_all)
    content, sizes = model.file(_limits(thresholds))
    attach_list(content, path)
    return QuantizedExport(
        thresholds, sizes, path.stat().st_size, choice, model.float_operators
    )


def _write_onnx(path: pathlib.Path, network: _Network) -> QuantizedExport:
    path.mkdir()
    sizes, models, samples = [], [], network.samples
    floats: set[str] = set()
    behind = [len(each.section.inputs) for each in network.sections[1:]]
    for i, (section, alive) in enumerate(
        zip(network.sections, [*behind, 0], strict=True), start=1
    ):
        model = write_section(path, i, section, "onnx", ".onnx")
        samples, size, kept = quantize_section(model, samples, alive)
        floats |= kept
        sizes.append(size)
        models.append(model)
    thresholds, choice = network.chosen(functools.partial(run_all, models))
    finish_folder(path, "onnx", models, list(thresholds), _limits(thresholds))
    file_bytes = sum(each.stat().st_size for each in models)
    warn_of_floats(sorted(floats))
    return QuantizedExport(
        thresholds, tuple(sizes), file_bytes, choice, tuple(sorted(floats))
    )


def _limits(thresholds: Mapping[str, float | None]) -> list[float]:
    return in_float32([each for each in thresholds.values() if each is not None])
