"""The part of an `EarlyExit` that writes artifacts."""

from collections.abc import Mapping

from absl import logging

from keras_selfdistill.early_exit.export.int8.report import QuantizedExport
from keras_selfdistill.early_exit.export.int8.writing import (
    check_quantize,
    check_unused,
    export_int8,
)
from keras_selfdistill.early_exit.export.scored_section import scored_sections
from keras_selfdistill.early_exit.export.writers import export_sections
from keras_selfdistill.early_exit.serving.served import ServedExits
from keras_selfdistill.utils.type_aliases import Data, PathLike


class ExportedExits(ServedExits):
    """The part of an `EarlyExit` that writes artifacts."""

    def export(
        self,
        path: PathLike,
        format: str | None = None,
        *,
        quantize: str | None = None,
        representative_data: Data = None,
        recalibrate: Mapping[str, object] | None = None,
    ) -> QuantizedExport | None:
        """Export an early-exit artifact that needs neither Keras nor this library.

        `"tf_saved_model"` and `"litert"`: one artifact whose graph runs a section only
        for samples that have not exited. Its input is `input` (several inputs have the
        names of the base's), its outputs are `prediction`, `exit` (index from 0) and
        `score`. A SavedModel takes any number of samples, which exit individually;
        `litert` takes one sample per call and refuses more.
        `"onnx"` and `"openvino"`: a folder with one model for each section, a manifest,
        and `section_runner.py`, which runs batches with NumPy and the runtime only.
        `"triton"`: a model repository for Triton, of the sections as ONNX models and of
        a model that calls them.

        With `quantize="int8"`, weights (per channel) and tensors of `"litert"` and
        `"onnx"` are int8, and logits are read as float32 to score them; a warning names
        operators that have no int8 form. The float inputs of `litert` are int8, too:
        `round(x / scale) + zero_point` with the numbers of its input, as LiteRT's
        interpreter tells them; integer inputs and all outputs stay. The thresholds
        stay what they are, although scores differ a little; a guarantee is that of the
        float network. With `recalibrate`, thresholds are chosen on the outputs of the
        quantised network, and a drop or its bound is that against the float base. They
        are those of the artifact alone: `thresholds` stays. A bound does not hold for
        samples that are also in `representative_data`, or that temperatures were fitted
        on.

        Artifacts compute scores in float32, `predict` in float64: a sample whose score
        equals a threshold up to rounding may exit at another exit. Layers that draw
        random numbers in inference, as for Monte-Carlo dropout, draw the same numbers
        in every call of an artifact.

        Args:
            path: Path of the folder, or of the `litert` file. It replaces only an
                earlier artifact of the same format, exactly as it was written, or an
                empty folder or file. It is written atomically: on Linux, old and new
                are exchanged in one step. Where the system or the file system cannot
                exchange folders, the old one is moved away first; if the process is
                killed at that moment, it lies in a folder `.keras_selfdistill_…` beside
                the path, and the next export or `save` there puts it back.
            format: One of the formats above. By default `"litert"` for a path that
                ends in `.tflite`, and `"tf_saved_model"` for others.
            quantize: `"int8"`, or `None` for float32.
            representative_data: Some hundred samples like those of deployment, as
                `predict` takes them, kept in memory; int8 needs them for the ranges of
                its numbers.
            recalibrate: For int8: arguments of `calibrate` as a dict, such as
                `{"x": x_val, "y": y_val, "max_accuracy_drop": 0.01}`; a goal but the
                latency, and `guarantee`, `per_exit` and `seed` if wanted.

        Returns:
            For int8, what the artifact contains: operators, weights and memory by
            section, to print. `None` otherwise.

        Raises:
            ValueError: There are no thresholds yet and no `recalibrate`, a custom
                criterion supports only NumPy arrays (see `criteria.array_namespace`),
                the format does not match the suffix of the path, the backend cannot
                write it, or the base has a fixed batch size. For int8: data or
                arguments are missing or invalid, the network cannot be quantised, or
                sizes of inputs are open (`litert`).
            TypeError: Data or `recalibrate` are of an unknown type.
            ImportError: A package that writes the format is missing.
            FileExistsError: Something else exists at the path, or an earlier artifact
                in which files were added, changed or removed.
        """
        with self._lock:
            choice, cascade, names = self.calibration, self._cascade, self.exit_names
            if quantize is None or recalibrate is None:
                limits = self._limits("export")
            else:  # They are chosen for the artifact.
                limits = (0.0,) * (len(names) - 1)
        given = {"representative_data": representative_data, "recalibrate": recalibrate}
        if quantize is None:
            check_unused(given)
            sections = scored_sections(self._model.exit_graph, cascade.scorer)
            export_sections(
                path, sections, exits=names, thresholds=limits, format=format
            )
            return None
        format = check_quantize(path, format, quantize)
        if choice is not None and choice.guarantee is not None and recalibrate is None:
            logging.warning(
                "The bound of the accuracy drop is that of the float network, not of "
                "the int8 artifact. Pass recalibrate={'x': …, 'y': …, "
                "'max_accuracy_drop': …, 'guarantee': %s} to export for one of it.",
                choice.guarantee,
            )
        return export_int8(
            path,
            format,
            self._model.exit_graph,
            cascade,
            thresholds=dict(zip(names, (*limits, None), strict=True)),
            representative_data=representative_data,
            recalibrate=recalibrate,
        )
