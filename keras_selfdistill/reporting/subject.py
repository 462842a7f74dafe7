"""What a report looks at: a wrapper or a plain model, as one network of its answers."""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_selfdistill.backend.compiled import CompiledModel
from keras_selfdistill.backend.tensors import to_numpy
from keras_selfdistill.graph.ends.base_end import find_base_end
from keras_selfdistill.graph.flatten import flatten
from keras_selfdistill.graph.nodes import check_functional, producer, unrecorded
from keras_selfdistill.graph.task import Task
from keras_selfdistill.training.distiller import SelfDistiller

ENSEMBLE = "ensemble"


@dataclasses.dataclass(frozen=True)
class EvaluatedModel:
    """A wrapper or a plain model.

    Args:
        model: What was given.
        base: The functional model that says how inputs are given.
        task: What it answers.
        logits: Symbolic logits by exit, those of the ensemble last; of a regression,
            outputs.
        models: The model to deploy, of each exit that can be cut off.
    """

    model: Any
    base: Any
    task: Task
    logits: dict[str, Any]
    models: dict[str, keras.Model]


class CompiledLogits:
    """All exits' logits, compiled for one number of rows.

    Args:
        subject: The subject.
    """

    def __init__(self, subject: EvaluatedModel):
        inputs = list(subject.base.inputs)
        self._names = list(subject.logits)  # The call sorts them.
        self._call = CompiledModel(keras.Model(inputs, subject.logits))
        self._rows = 0

    def __call__(self, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Return the logits of each exit.

        Args:
            arrays: One for each of the base's inputs.
        """
        rows = len(arrays[0])
        self._rows = max(self._rows, rows)
        if rows < self._rows:  # A last batch is filled up, so that nothing recompiles.
            missing = self._rows - rows
            arrays = [
                np.concatenate([x, np.repeat(x[-1:], missing, 0)]) for x in arrays
            ]
        logits = self._call(arrays)
        return {name: to_numpy(logits[name])[:rows] for name in self._names}


def evaluated_model(model: Any, task: str | None = None) -> EvaluatedModel:
    """Return what a report looks at.

    Args:
        model: A `SelfDistiller`, or a functional or Sequential model of one output.
        task: Of a plain model, where its end does not say.

    Raises:
        TypeError: The model has no graph.
        ValueError: Its end does not say what it answers, or the task is given for a
            wrapper, which knows; or positions are masked.
    """
    if not isinstance(model, SelfDistiller):
        check_functional(model)
        _check_masks(model)
        return _plain(model, task)
    graph = model._graph
    _check_masks(graph.base)
    if task not in (None, model.task):
        raise ValueError(
            f"A wrapper knows its task. Received: task={task!r}. Expected: none, or "
            f"{model.task!r}."
        )
    key = "output" if graph.task.name == "regression" else "logits"
    logits = {name: getattr(each, key) for name, each in graph.exits.items()}
    logits[ENSEMBLE] = graph.ensemble
    if key == "logits":
        logits[ENSEMBLE] = producer(graph.ensemble).input_tensors[0]
    names = model.exit_names if model.has_early_exits else ["final"]
    models = {name: model.exit_model(name) for name in names}
    models[ENSEMBLE] = model.ensemble_model()
    return EvaluatedModel(model, graph.base, graph.task, logits, models)


def _plain(model, task):
    flat = flatten(model).model  # As for a wrapper: the end may be in a model within.
    with unrecorded(flat):
        end = find_base_end(flat, task)
    logits = end.output if end.task.name == "regression" else end.logits
    stripped = keras.Model(model.inputs, model.outputs[0], name=model.name)
    return EvaluatedModel(
        model, model, end.task, {"final": logits}, {"final": stripped}
    )


def _check_masks(model):
    output = model.outputs[0]
    masked = getattr(output, "_keras_mask", None) is not None
    if masked and len(output.shape) > 2:
        raise ValueError(
            "A report cannot tell padding from answers. Received: model "
            f"{model.name!r}, which answers at each position and masks some of them. "
            "Use `evaluate`, which leaves masked positions out."
        )
