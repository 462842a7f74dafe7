"""`EarlyExit`: inference in which each sample exits as early as its score allows."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import keras

from keras_selfdistill import criteria
from keras_selfdistill.early_exit import file
from keras_selfdistill.early_exit.export.exported import ExportedExits
from keras_selfdistill.early_exit.result import EarlyExitResult, print_logs, result_logs
from keras_selfdistill.early_exit.scoring import Scorer
from keras_selfdistill.early_exit.section_models import check_wrapper
from keras_selfdistill.early_exit.thresholds.choice import Choice
from keras_selfdistill.evaluation.data_adapter import Targets
from keras_selfdistill.files.archive import RefusedFileError
from keras_selfdistill.graph.nodes import producer
from keras_selfdistill.training.distiller import SelfDistiller
from keras_selfdistill.utils.type_aliases import Data, Labels, PathLike, Tensor


class EarlyExit(ExportedExits):
    """Predict each sample at the first exit whose confidence score is high enough.

    The wrapper is cut into sections at its taps. After each section, samples whose
    score reaches the threshold exit, and only the others are passed to the next
    section. Weights are shared with the wrapper, not copied. `predict` may be called
    from several threads; `submit` batches the samples of several calls.

    Args:
        model: A `SelfDistiller`.
        criterion: Confidence score: `"confidence"` (largest probability), `"margin"`,
            `"entropy"`, `"patience"` (number of consecutive exits that agree), a
            `Criterion`, or a function from probabilities of shape
            `(samples, classes)` to scores of shape `(samples,)`, higher if surer.
        scores_from: Output that is scored: `"exit"` for each exit's own output,
            `"running_mean"` for the mean of the logits of all exits so far.
        last_resort: Prediction for samples that reach no threshold: `"final"` or
            `"ensemble"`.
        thresholds: One number for all exits, or one for each exit but the last, as a
            list or a dict by name. A sample exits where its score is at least the
            threshold. By default `calibrate` chooses them.

    Raises:
        TypeError: `model` is not a `SelfDistiller`, or an argument has the wrong type.
        ValueError: An argument is unknown or out of range, the task is not multiclass
            with one prediction per sample, or an exit reads the whole base.

    Example:
        >>> import numpy as np
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
        check_wrapper(model)
        graph = model.exit_graph
        end = producer(graph.ensemble).operation.activation
        scorer = Scorer(
            criterion=criteria.get(criterion),
            scores_from=scores_from,
            last_resort=last_resort,
            softmax=end is keras.activations.softmax,
            exits=len(graph.exits),
        )
        super().__init__(model, scorer, thresholds)

    @property
    def model(self) -> SelfDistiller:
        """The wrapper."""
        return self._model

    @property
    def macs_ratios(self) -> dict[str, float]:
        """Multiply-adds of a sample as a fraction of the base's, by its exit.

        NaN if the base has none, or if unknown; then use `register_macs`.
        """
        costs = map(float, self._cascade.costs)
        return dict(zip(self.exit_names, costs, strict=True))

    @property
    def compile_count(self) -> int:
        """Number of compilations of sections; 0 on PyTorch, which runs eagerly."""
        return self._cascade.compile_count

    def predict(self, x: Data, batch_size: int = 32) -> EarlyExitResult:
        """Predict each sample at the first exit whose score reaches its threshold.

        Args:
            x: Array; tuple or dict of arrays for several inputs; a `tf.data.Dataset`,
                PyTorch `DataLoader`, `keras.utils.PyDataset` or generator of batches
                of inputs or of (inputs, labels). Labels are ignored.
            batch_size: Number of samples a section processes at once, independent of
                the batch size of `x`. A base with a fixed batch size uses that one,
                with padding.

        Returns:
            Predictions, exits and scores of all samples.

        Raises:
            ValueError: There are no thresholds yet, or the data does not fit the base.
            TypeError: `x` is of an unknown type.
        """
        result, _ = self._predict(x, None, None, batch_size)
        return result

    def evaluate(
        self,
        x: Data,
        y: Labels = None,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        sample_weight: Tensor | None = None,
        *,
        return_dict: bool = False,
    ) -> list[float] | dict[str, float]:
        """Return the accuracy and the cost of `predict`, and the samples per exit.

        The arguments are those of `keras.Model.evaluate`, without `steps` and
        `callbacks`.

        Args:
            x: Samples, as `predict` takes them; datasets give (inputs, labels) or
                (inputs, labels, sample weights).
            y: Class indices of shape `(samples,)`, or one-hot labels of shape
                `(samples, classes)`. Omit them for a dataset of (inputs, labels).
            batch_size: Number of samples a section processes at once, by default 32.
            verbose: 0 for no output; else one line, which is logged after
                `keras.utils.disable_interactive_logging()`.
            sample_weight: Weights of the samples in the accuracy, shape `(samples,)`,
                with arrays only. Costs and numbers of samples are not weighted.
            return_dict: Whether to return a dict instead of a list.

        Returns:
            `accuracy`, `macs_ratio` (multiply-adds as a fraction of the base's, NaN
            where `macs_ratios` is), for each of `exit_names` the number of samples
            that exit there, such as `exit_1_samples`, and, if `latencies_ms` are
            known, `latency_ms` (their mean, not the time of this call), in this order.

        Raises:
            ValueError: There are no thresholds, samples or labels, weights do not
                match, or the data does not fit the base.
            TypeError: `x` is of an unknown type.
        """
        batch_size = 32 if batch_size is None else batch_size
        result, batches = self._predict(x, y, sample_weight, batch_size)
        logs = result_logs(result, batches, self.exit_names)
        if verbose:
            print_logs(logs)
        return logs if return_dict else list(logs.values())

    def _predict(
        self, x: Data, y: Labels, sample_weight: Tensor | None, batch_size: int
    ) -> tuple[EarlyExitResult, list[Targets]]:
        """Return the result, and the targets of the data, batch by batch."""
        setting = self._setting("predict or evaluate")
        exited, targets = setting.cascade.predict(
            x, y, sample_weight, thresholds=setting.thresholds, batch_size=batch_size
        )
        return setting.result(exited), targets

    def warm_up(self, batch_size: int = 32) -> "EarlyExit":
        """Compile the sections for all batch sizes that `predict` may use.

        Args:
            batch_size: The `batch_size` of later calls of `predict`.

        Returns:
            This object.
        """
        self._cascade.warm_up(batch_size)
        return self

    def save(self, path: PathLike) -> None:
        """Save the model, criterion, thresholds, temperatures and latencies to a file.

        The file is written atomically. It contains data and no code: a custom
        criterion is saved by its registered name.

        Args:
            path: Path of the file, such as `"model.earlyexit"`. An earlier file of
                `save` is replaced, and so is an empty file.

        Raises:
            ValueError: The criterion is not registered with Keras.
            FileExistsError: Something else exists at the path.
            OSError: The file cannot be written.
        """
        with self._lock:
            settings = {
                "criterion": criteria.to_config(self._scorer.criterion),
                "scores_from": self._scorer.scores_from,
                "last_resort": self._scorer.last_resort,
                "thresholds": None
                if self._thresholds is None
                else list(self._thresholds),
                "temperatures": self._scorer.temperatures,
                "latencies_ms": self.latencies_ms,
                "calibration": self.calibration
                and dataclasses.asdict(self.calibration),
            }
        file.write_early_exit(path, self._model, settings)

    def __reduce__(self) -> tuple[Callable, tuple[Callable, bytes]]:
        """Pickle and deepcopy the file of `save`: no thread, requests or outcomes."""
        return file.from_bytes, (type(self).load, file.as_bytes(self.save))

    @classmethod
    def load(cls, path: PathLike) -> "EarlyExit":
        """Load a file that `save` wrote. The file may be untrusted.

        Args:
            path: Path of the file.

        Returns:
            An `EarlyExit` with the saved model, criterion and thresholds.

        Raises:
            RefusedFileError: The file was changed, truncated, or not written by
                `save`, or its criterion is not registered. A `ValueError`.
            OSError: The file cannot be opened, is not a regular file, or the temporary
                folder has no space for a copy.
        """
        model, settings = file.read_early_exit(path)
        try:
            loaded = cls(
                model,
                criteria.from_config(settings["criterion"]),
                scores_from=settings["scores_from"],
                last_resort=settings["last_resort"],
                thresholds=settings["thresholds"],
            )
            loaded.temperatures = settings["temperatures"]
            loaded._learn_latencies(None, settings["latencies_ms"])
        except (ValueError, TypeError) as error:
            raise RefusedFileError(path, str(error)) from error
        found = settings["calibration"]
        if found is not None:
            found = {**found, "thresholds": tuple(found["thresholds"])}
            loaded.calibration = Choice(**found)
        return loaded
