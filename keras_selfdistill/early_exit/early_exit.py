"""`EarlyExit`: samples leave a wrapper at the first exit that is sure of them."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from absl import logging

from keras_selfdistill import criteria
from keras_selfdistill.early_exit.cascade import Cascade
from keras_selfdistill.early_exit.export.scored_section import ScoredSection
from keras_selfdistill.early_exit.export.writers import export_sections
from keras_selfdistill.early_exit.file import read_early_exit, write_early_exit
from keras_selfdistill.early_exit.scoring import Scorer
from keras_selfdistill.early_exit.section_models import cut_sections
from keras_selfdistill.early_exit.thresholds.choice import (
    Choice,
    ThresholdGoal,
    choose,
    points_of,
)
from keras_selfdistill.early_exit.thresholds.frontier import (
    ExitShares,
    Frontier,
    exit_shares,
)
from keras_selfdistill.early_exit.thresholds.search import Outcomes
from keras_selfdistill.files.archive import RefusedFileError
from keras_selfdistill.graph.nodes import producer
from keras_selfdistill.training.distiller import SelfDistiller


@dataclasses.dataclass(frozen=True)
class EarlyExitResult:
    """What `EarlyExit.predict` returns, samples in the order given.

    Args:
        predictions: In the base's own form, shape `(samples, classes)`, float32.
        exits: Name of the exit that answered, shape `(samples,)`.
        scores: The criterion's score of the answer, shape `(samples,)`.
        macs_ratio: Multiply-adds spent, heads included, as a share of what the base
            alone would have spent. Above 1 where all went to the end; NaN where the
            cost of a layer is not known.
    """

    predictions: np.ndarray
    exits: np.ndarray
    scores: np.ndarray
    macs_ratio: float


class EarlyExit:
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
        graph = model._graph
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
        self._outcomes: Outcomes | None = None
        self._thresholds: tuple[float, ...] | None = None
        self.calibration: Choice | None = None
        if thresholds is not None:
            self.thresholds = thresholds

    @property
    def model(self) -> SelfDistiller:
        """The wrapper."""
        return self._model

    @property
    def exit_names(self) -> list[str]:
        """Names of what can answer, shallow to deep; the last is the last resort."""
        return [*self._model.exit_names[:-1], self._scorer.last_resort]

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

    @property
    def thresholds(self) -> Any:
        """Thresholds of all exits but the last, by name; `None` before calibration.

        Set them with one number, a list, or a dict by name. What `calibration` says
        holds no longer then.
        """
        if self._thresholds is None:
            return None
        return dict(zip(self.exit_names, self._thresholds, strict=False))

    @thresholds.setter
    def thresholds(self, thresholds: Any) -> None:
        self._thresholds = _checked_thresholds(thresholds, self.exit_names[:-1])
        self.calibration = None

    def calibrate(
        self,
        x: Any = None,
        y: Any = None,
        *,
        max_accuracy_drop: float | None = None,
        target_accuracy: float | None = None,
        macs_budget: float | None = None,
        guarantee: float | None = None,
        per_exit: bool = False,
        batch_size: int = 32,
        seed: int = 0,
    ) -> "EarlyExit":
        """Choose the thresholds on validation data, by one pass over it.

        What is searched: all that one threshold shared by all exits can do, exactly.
        With `per_exit`, also thresholds of each exit's own: from the shared ones on,
        each is set in turn to the best of all its values while the others stay. The
        goal is then never missed where shared thresholds reach it, nor the result
        worse; the best of all combinations it is not always.

        With a guarantee, the samples are split in halves. One is searched; on the
        other, with `max_accuracy_drop`, ever lower thresholds are tested until one
        fails (fixed-sequence testing), and with the other goals the drop is bounded.
        The bound holds for any distribution, if validation data and later samples come
        from the same one independently.

        Args:
            x: Samples, in any form that `predict` takes. Left out, the outcomes of the
                last call are used again.
            y: Labels: classes, or one-hot rows. Data sets give (inputs, labels).
            max_accuracy_drop: The cheapest thresholds whose accuracy is at most so much
                below that of the final exit, 0.01 for one point of a hundred.
            target_accuracy: The cheapest that are so accurate.
            macs_budget: The most accurate that spend at most this share of the base's
                multiply-adds.
            guarantee: Confidence, such as 0.95, of a bound on the accuracy drop.
            per_exit: Whether each exit gets a threshold of its own.
            batch_size: Samples a section takes at once.
            seed: Of the split, where there is a guarantee.

        Returns:
            This object; `calibration` says what was found.

        Raises:
            ValueError: Not one goal is given, no thresholds reach it, or it depends on
                costs that are not known; the data does not fit; or there are fewer than
                12 samples and no guarantee is asked for.
        """
        wish = ThresholdGoal(
            max_accuracy_drop=max_accuracy_drop,
            target_accuracy=target_accuracy,
            macs_budget=macs_budget,
            guarantee=guarantee,
            per_exit=per_exit,
            seed=seed,
        )
        if wish.needs_costs:
            asked = "per_exit=True" if per_exit else f"macs_budget={macs_budget}"
            self._check_costs(asked)
        if x is not None:
            self._outcomes = self._cascade.observe(x, y, batch_size)
        outcomes = self._calibrated("Pass x and y.")
        last_is_base = self._scorer.last_resort == "final"
        choice = choose(outcomes, wish, last_is_base=last_is_base)
        self.thresholds = choice.thresholds
        self.calibration = choice
        return self

    def frontier(self, *, per_exit: bool = False) -> Frontier:
        """Return all thresholds that no others beat, on the calibration data.

        Args:
            per_exit: Whether each exit has a threshold of its own; `calibrate` says
                what is then searched. Shared thresholds are searched exactly.

        Raises:
            ValueError: There was no calibration, or costs are not known.
        """
        self._check_costs("frontier()")
        outcomes = self._calibrated("Call calibrate(x, y, ...) first.")
        points = points_of(outcomes, per_exit=per_exit)
        return Frontier(
            exit_names=tuple(self.exit_names[:-1]),
            thresholds=points.thresholds,
            accuracy=points.accuracy,
            macs_ratio=points.cost,
            base_accuracy=float(outcomes.reference.mean()),
        )

    def exit_shares(self, points: int = 201) -> ExitShares:
        """Return where the calibration data leaves, by a threshold that exits share.

        Args:
            points: Number of thresholds, evenly from the smallest score to the largest.

        Raises:
            ValueError: There was no calibration.
        """
        outcomes = self._calibrated("Call calibrate(x, y, ...) first.")
        return exit_shares(outcomes, self.exit_names, self._thresholds, points)

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
        if self._thresholds is None:
            raise ValueError(
                "There are no thresholds yet. Received: a call of predict. Call "
                "calibrate(x, y, max_accuracy_drop=0.01) first, or pass thresholds="
                "0.9 to EarlyExit."
            )
        left = self._cascade.leave(x, self._thresholds, batch_size)
        return EarlyExitResult(
            predictions=left.predictions,
            exits=np.array(self.exit_names)[left.numbers],
            scores=left.scores,
            macs_ratio=float(self._cascade.costs[left.numbers].sum())
            / max(1, len(left.numbers)),
        )

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
            ValueError: There are no thresholds yet, the criterion is a function of
                your own, the format contradicts the path's suffix, the backend in use
                cannot write it, or the base has a fixed batch size.
            FileExistsError: At the path is something else.
        """
        if self._thresholds is None:
            raise ValueError(
                "There are no thresholds yet. Received: a call of export. Call "
                "calibrate(x, y, max_accuracy_drop=0.01) first."
            )
        graph = self._model._graph
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

    def _unknown_costs(self):
        return (
            "The multiply-adds of some layers are not known, so neither is what an "
            f"exit costs: {', '.join(self._cascade.unknown)}. Teach them with "
            "keras_selfdistill.register_macs before making EarlyExit, or "
            "choose an exit by its latency: keras_selfdistill.pick_exit(model, "
            "max_latency_ms=..., sample=x[:1])."
        )

    def _check_costs(self, asked):
        if self._cascade.unknown:
            raise ValueError(
                f"{self._unknown_costs()} Received: {asked}, which needs costs. "
                "Expected: max_accuracy_drop= or target_accuracy=, with thresholds "
                "that all exits share."
            )

    def _calibrated(self, hint) -> Outcomes:
        if self._outcomes is None:
            raise ValueError(
                f"There is no calibration data. Received: no x. {hint} Outcomes are "
                "not saved to files."
            )
        return self._outcomes


def _checked_thresholds(thresholds, names):
    """Return one number for each exit but the last."""
    if isinstance(thresholds, Mapping):
        if set(thresholds) != set(names):
            raise ValueError(
                "Thresholds must be given for every exit but the last. Received: "
                f"{sorted(map(str, thresholds))}. Expected: {names}."
            )
        thresholds = [thresholds[name] for name in names]
    values = np.atleast_1d(np.asarray(thresholds, "float64"))
    values = np.repeat(values, len(names)) if values.shape == (1,) else values
    if values.shape != (len(names),) or np.isnan(values).any():
        raise ValueError(
            "`thresholds` does not fit the exits. Received: "
            f"thresholds={thresholds!r}. Expected: one number, or one for each of "
            f"{names}."
        )
    return tuple(values.tolist())
