"""The samples of which an int8 export chooses ranges and thresholds."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_selfdistill.early_exit.cascade import Cascade
from keras_selfdistill.early_exit.thresholds.choice import Choice, choose
from keras_selfdistill.early_exit.thresholds.goal import ThresholdGoal
from keras_selfdistill.early_exit.thresholds.outcomes import Outcomes
from keras_selfdistill.evaluation.data_adapter import (
    DataAdapter,
    best_classes,
    class_indices,
)
from keras_selfdistill.utils.config import did_you_mean
from keras_selfdistill.utils.type_aliases import Data, Labels

_GOALS = ("max_accuracy_drop", "target_accuracy", "macs_budget")
_OPTIONS = (*_GOALS, "guarantee", "per_exit", "seed")
_BATCH = 32
# Predictions and scores of one exit; those of every exit, by arrays of the inputs.
Scored: TypeAlias = tuple[np.ndarray, np.ndarray]
RunAll: TypeAlias = Callable[[Sequence[np.ndarray]], list[Scored]]


def representative_samples(base: keras.Model, data: Data) -> list[np.ndarray]:
    """Return representative samples, one array for each input of a base.

    Args:
        base: Functional or Sequential model.
        data: Samples, as `predict` takes them; labels are ignored.

    Raises:
        ValueError: There are none, they do not fit the base, or one is not finite.
        TypeError: They are of an unknown type.
    """
    if data is None:
        raise ValueError(
            "int8 needs samples from which the ranges of all tensors are measured. "
            "Received: quantize='int8' without representative_data. Expected: some "
            "hundred samples like those of deployment, such as x_train[:300], "
            "preprocessed as for training."
        )
    batches = [arrays for arrays, _ in DataAdapter(base).batches(data)]
    inputs = [np.concatenate(each) for each in zip(*batches, strict=True)]
    if not inputs or not len(inputs[0]):
        raise ValueError(
            "`representative_data` is empty. Received: no samples. Expected: some "
            "hundred samples like those of deployment."
        )
    for tensor, values in zip(base.inputs, inputs, strict=True):
        wrong = int((~np.isfinite(values)).sum())
        if wrong:
            raise ValueError(
                "`representative_data` must be finite, because the ranges of int8 "
                f"follow from it. Received: {wrong} NaN or infinite numbers in input "
                f"{tensor.name!r}. Expected: none."
            )
    return inputs


@dataclasses.dataclass(frozen=True)
class Recalibration:
    """Samples and a goal, by which thresholds are chosen on quantised outputs.

    Args:
        inputs: Samples, one array for each input of the base.
        goal: Goal of the calibration.
        labels: Class indices of the samples.
        cascade: Runs the float network.
    """

    inputs: list[np.ndarray]
    goal: ThresholdGoal
    labels: np.ndarray
    cascade: Cascade

    def choose(self, run: RunAll) -> Choice:
        """Return thresholds for the outputs of a quantised network.

        The accuracy drop is that against the float base, so that a bound also holds for
        what quantisation costs.

        Args:
            run: Returns predictions and scores of every exit.

        Raises:
            ValueError: No thresholds reach the goal.
        """
        outputs, _ = self.cascade.outputs(tuple(self.inputs), self.labels, _BATCH)
        reference = best_classes(outputs[-1]) == self.labels
        found = run(self.inputs)
        correct = [best_classes(prediction) == self.labels for prediction, _ in found]
        outcomes = Outcomes(
            scores=np.stack([score for _, score in found[:-1]], axis=1).astype(float),
            correct=np.stack(correct, axis=1).astype("int8"),
            reference=reference.astype("int8"),
            costs=self.cascade.costs,
        )
        # The quantised last exit is not the base, either.
        return choose(outcomes, self.goal, last_is_base=False)


def recalibration(
    base: keras.Model, cascade: Cascade, arguments: Mapping[str, object]
) -> Recalibration:
    """Return what thresholds are chosen on, checked.

    Args:
        base: Base of the wrapper.
        cascade: Runs the float network.
        arguments: Arguments of `EarlyExit.calibrate`: `x`, `y`, a goal and options.

    Raises:
        TypeError: It is not a mapping.
        ValueError: An argument is unknown, missing or invalid.
    """
    if not isinstance(arguments, Mapping):
        raise TypeError(
            "`recalibrate` are arguments of calibrate. Received: "
            f"recalibrate={arguments!r:.80}. Expected: a dict such as {{'x': x_val, "
            "'y': y_val, 'max_accuracy_drop': 0.01}."
        )
    options: dict[str, Any] = dict(arguments)
    x, y = options.pop("x", None), options.pop("y", None)
    unknown = [name for name in options if name not in _OPTIONS]
    if unknown or x is None:
        raise ValueError(
            "`recalibrate` are arguments of calibrate. Received: "
            f"{', '.join(map(str, arguments)) or 'none'}. Expected: x, y, one of "
            f"{', '.join(_GOALS)}, and, if wanted, {', '.join(_OPTIONS[3:])}."
            f"{did_you_mean(str(unknown[0]), _OPTIONS) if unknown else ''}"
        )
    goal = ThresholdGoal(**options)
    if goal.needs_costs:
        cascade.check_costs("per_exit=True" if goal.per_exit else "macs_budget")
    inputs, labels = _arrays(base, cascade, x, y)
    return Recalibration(inputs, goal, labels, cascade)


def _arrays(
    base: keras.Model, cascade: Cascade, x: Data, y: Labels
) -> tuple[list[np.ndarray], np.ndarray]:
    batches = list(DataAdapter(base).batches(x, y))
    labels = class_indices([targets.labels for _, targets in batches], cascade.classes)
    arrays = [arrays for arrays, _ in batches]
    return [np.concatenate(each) for each in zip(*arrays, strict=True)], labels
