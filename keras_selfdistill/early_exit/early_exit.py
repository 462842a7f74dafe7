"""`EarlyExit`: samples leave a wrapper at the first exit that is sure of them."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from absl import logging

from keras_selfdistill import criteria
from keras_selfdistill.early_exit.calibration import Calibration
from keras_selfdistill.early_exit.cascade import Cascade
from keras_selfdistill.early_exit.export.scored_section import ScoredSection
from keras_selfdistill.early_exit.export.writers import export_sections
from keras_selfdistill.early_exit.file import read_early_exit, write_early_exit
from keras_selfdistill.early_exit.result import EarlyExitResult
from keras_selfdistill.early_exit.scoring import Scorer
from keras_selfdistill.early_exit.section_models import cut_sections
from keras_selfdistill.early_exit.thresholds.choice import Choice
from keras_selfdistill.evaluation.data_adapter import best_classes, class_indices
from keras_selfdistill.files.archive import RefusedFileError
from keras_selfdistill.graph.nodes import producer
from keras_selfdistill.training.distiller import SelfDistiller


class EarlyExit(Calibration):
    """Answer each sample at the first exit that is sure enough.

    The wrapper is cut into sections at its taps; after each, the samples that are done
    leave, and the rest is gathered and goes on. Weights are shared: what the wrapper
    learns later shows here. `predict` may be called from several threads.

    Args:
        model: A `SelfDistiller`.
        criterion: How sure an answer is: `"confidence"` (largest probability),
            `"margin"`, `"entropy"`, `"patience"` (exits in a row that agree), a
            `Criterion`, or a function from probabilities `(samples, classes)` to
            scores `(samples,)`, higher is surer.
        scores_from: `"exit"`: each exit's own output. `"running_mean"`: the mean of
            the logits of all exits so far.
        last_resort: `"final"` or `"ensemble"`: answers where no exit was sure.
        thresholds: One number for all exits, or one for each exit but the last, as a
            list or by name. A sample leaves where its score is at least the threshold.
            Left out, `calibrate` chooses them.

    Raises:
        TypeError: `model` is no `SelfDistiller`, or an argument of the wrong type.
        ValueError: An argument is unknown or out of range, or an exit reads the whole
            base.

    Example:
        >>> base = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="a"),
        ...     keras.layers.Dense(4), keras.layers.Dense(3, "softmax")])
        >>> model = SelfDistiller(base, taps=["a"], recipe="byot", head="linear")
        >>> fast = EarlyExit(model, thresholds=0.0)
        >>> fast.predict(np.ones((2, 8))).exits.tolist()
        ['exit_1', 'exit_1']
    """

    def __init__(
        self,
        model: SelfDistiller,
        criterion: str | criteria.Criterion | Callable = "confidence",
        *,
        scores_from: str = "exit",
        last_resort: str = "final",
        thresholds: float | Sequence[float] | Mapping[str, float] | None = None,
    ):
        if not isinstance(model, SelfDistiller):
            raise TypeError(
                "Early exit needs a model with exits. Received: "
                f"{type(model).__name__}. Expected: a SelfDistiller."
            )
        graph = model.exit_graph
        if graph.task.name != "multiclass" or graph.task.positions:
            raise ValueError(
                "Early exit needs a model that answers with one class for each sample. "
                f"Received: {model.name!r} of task {graph.task.name!r} with outputs of "
                f"shape {tuple(graph.base.outputs[0].shape)}. Deploy exit_model(...) "
                "or final_model() instead."
            )
        end = producer(graph.ensemble).operation.activation
        self._model = model
        self._scorer = Scorer(
            criterion=criteria.get(criterion),
            scores_from=scores_from,
            last_resort=last_resort,
            softmax=end is keras.activations.softmax,
            exits=len(graph.exits),
        )
        self._cascade = Cascade(graph, self._scorer)
        if self._cascade.unknown:
            logging.warning("%s", self._unknown_costs())
        super().__init__(thresholds)

    @property
    def model(self) -> SelfDistiller:
        """The wrapper."""
        return self._model

    @property
    def macs_ratios(self) -> dict[str, float]:
        """Share of the base's multiply-adds that a sample costs, by its exit.

        NaN where it is not known; `register_macs` makes it known.
        """
        costs = map(float, self._cascade.costs)
        return dict(zip(self.exit_names, costs, strict=True))

    @property
    def compile_count(self) -> int:
        """How many times a section was compiled; PyTorch runs without."""
        return self._cascade.compile_count

    def predict(self, x: Any, batch_size: int = 32) -> EarlyExitResult:
        """Answer each sample at the first exit whose score reaches its threshold.

        Args:
            x: Array; tuple or dict of arrays for several inputs; a `tf.data.Dataset`,
                PyTorch `DataLoader`, `keras.utils.PyDataset` or generator of batches,
                of inputs or of (inputs, labels), labels ignored.
            batch_size: Samples a section takes at once, whatever the size of batches
                that `x` comes in. A base of a fixed batch size takes that many; what
                is missing is filled up.

        Raises:
            ValueError: There are no thresholds yet, or the data does not fit.
            TypeError: `x` is of no kind that is known.
        """
        result, _ = self._predict(x, None, batch_size)
        return result

    def evaluate(
        self,
        x: Any,
        y: Any = None,
        batch_size: int = 32,
        verbose: str | int = "auto",
        *,
        return_dict: bool = False,
    ) -> list[float] | dict[str, float]:
        """Return how accurate `predict` is, what it costs, and where samples exit.

        Args:
            x: As `predict` takes it; data sets yield (inputs, labels).
            y: Labels, with arrays alone: class indices, or one-hot.
            batch_size: Samples a section takes at once.
            verbose: 0 prints nothing.
            return_dict: Whether the values come by their names.

        Returns:
            `accuracy`, `macs_ratio` (multiply-adds as a share of the base's), and for
            each of `exit_names` the number of samples that exit there, such as
            `exit_1_samples`: in this order as a list, or as a dict.

        Raises:
            ValueError: There are no thresholds, no samples or no labels, or the data
                does not fit.
            TypeError: `x` is of no kind that is known.
        """
        result, batches = self._predict(x, y, batch_size)
        if not len(result.exits):
            raise ValueError("There are no samples to evaluate. Received: none.")
        labels = class_indices(batches, result.predictions.shape[-1])
        logs = {
            "accuracy": float(np.mean(best_classes(result.predictions) == labels)),
            "macs_ratio": result.macs_ratio,
        }
        for name in self.exit_names:
            logs[f"{name}_samples"] = float(np.sum(result.exits == name))
        if verbose:
            print(" - ".join(f"{name}: {value:.4g}" for name, value in logs.items()))
        return logs if return_dict else list(logs.values())

    def _predict(self, x, y, batch_size):
        """Return the result, and the labels of the data, batch by batch."""
        if self._thresholds is None:
            raise ValueError(
                "There are no thresholds yet. Received: a call of predict or evaluate. "
                "Call calibrate(x, y, max_accuracy_drop=0.01) first, or pass "
                "thresholds=0.9 to EarlyExit."
            )
        exited, labels = self._cascade.leave(x, y, self._thresholds, batch_size)
        result = EarlyExitResult(
            predictions=exited.predictions,
            exits=np.array(self.exit_names)[exited.numbers],
            scores=exited.scores,
            macs_ratio=float(self._cascade.costs[exited.numbers].sum())
            / max(1, len(exited.numbers)),
        )
        return result, labels

    def warm_up(self, batch_size: int = 32) -> "EarlyExit":
        """Compile all that `predict` with this batch size can need.

        Returns:
            This object.
        """
        self._cascade.warm_up(batch_size)
        return self

    def save(self, path: str | os.PathLike) -> None:
        """Write the model, the criterion and the thresholds to one file.

        The file appears whole or not at all. It holds data, no code: a criterion of
        your own is saved by its registered name.

        Args:
            path: Path of the file, such as `"model.earlyexit"`; replaced if it exists.

        Raises:
            ValueError: The criterion is not registered with Keras.
            OSError: It cannot be written, or a folder, a link or the like is there.
        """
        settings = {
            "criterion": criteria.to_config(self._scorer.criterion),
            "scores_from": self._scorer.scores_from,
            "last_resort": self._scorer.last_resort,
            "thresholds": None if self._thresholds is None else list(self._thresholds),
            "calibration": self.calibration and dataclasses.asdict(self.calibration),
        }
        write_early_exit(path, self._model, settings)

    def export(self, path: str | os.PathLike, format: str | None = None) -> None:
        """Write files that stop early without Keras or this library.

        `"tf_saved_model"` and `"litert"`: one artifact whose graph runs a section only
        for samples of which the exits before were not sure. Its input is `input`
        (several have the base's names), its outputs are `prediction`, `exit` (number
        from 0) and `score`. A SavedModel takes any number of samples, each of which
        leaves by itself; `litert` takes one sample a call, and more are an error.
        `"onnx"` and `"openvino"`: a folder of one model for each section, a manifest,
        and `section_runner.py`, which runs them on batches with NumPy and the runtime
        alone.

        Scores are computed in float32, here in float64: a sample whose score equals a
        threshold but for rounding may leave at another exit. Layers that draw numbers
        in inference, as for Monte-Carlo dropout, draw the same ones in every call.

        Args:
            path: Path of the folder, or of the `litert` file. It comes there complete
                or not at all; what is there is replaced only if it is an earlier
                artifact of the same format, or an empty folder.
            format: One of those above. Left out, it is `"litert"` for a path that ends
                in `.tflite`, and else `"tf_saved_model"`.

        Raises:
            ValueError: There are no thresholds yet, the criterion is your own and runs
                on NumPy arrays alone (see `criteria.array_namespace`), the format
                contradicts the path's suffix, the backend in use cannot write it, or
                the base has a fixed batch size.
            FileExistsError: At the path is something else.
        """
        if self._thresholds is None:
            raise ValueError(
                "There are no thresholds yet. Received: a call of export. Call "
                "calibrate(x, y, max_accuracy_drop=0.01) first."
            )
        graph = self._model.exit_graph
        sections = cut_sections(graph, [self._scorer.reads])
        export_sections(
            path,
            [
                ScoredSection(section, self._scorer, number, graph.task.units)
                for number, section in enumerate(sections)
            ],
            inputs=sections[0].inputs,
            exits=self.exit_names,
            thresholds=self._thresholds,
            format=format,
        )

    @classmethod
    def load(cls, path: str | os.PathLike) -> "EarlyExit":
        """Read what `save` wrote.

        Args:
            path: Of the file.

        Raises:
            RefusedFileError: The file was changed, truncated, or written by something
                else, or it names a criterion that is not registered here. It is a
                `ValueError`.
            OSError: The file cannot be opened, is no regular file, or the temporary
                folder has no room for a copy.
        """
        model, settings = read_early_exit(path)
        try:
            fast = cls(
                model,
                criteria.from_config(settings["criterion"]),
                scores_from=settings["scores_from"],
                last_resort=settings["last_resort"],
                thresholds=settings["thresholds"],
            )
        except (ValueError, TypeError) as error:
            raise RefusedFileError(path, str(error)) from error
        found = settings["calibration"]
        if found is not None:
            found = {**found, "thresholds": tuple(found["thresholds"])}
            fast.calibration = Choice(**found)
        return fast
