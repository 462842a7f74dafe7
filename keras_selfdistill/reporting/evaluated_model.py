"""The exits of a wrapper, or a plain model, as one model that a report evaluates."""

import dataclasses

import keras
import numpy as np

from keras_selfdistill.backend.compiled import CompiledModel
from keras_selfdistill.backend.tensors import to_numpy
from keras_selfdistill.graph.ends.base_end import find_base_end
from keras_selfdistill.graph.flatten import flatten
from keras_selfdistill.graph.nodes import check_functional, producer, unrecorded
from keras_selfdistill.graph.task import Task
from keras_selfdistill.losses.label_loss import as_loss, check_task
from keras_selfdistill.training.distiller import SelfDistiller
from keras_selfdistill.utils.keras_internals import mask_of
from keras_selfdistill.utils.type_aliases import SymbolicTensor

ENSEMBLE = "ensemble"


@dataclasses.dataclass(frozen=True)
class EvaluatedModel:
    """A wrapper or a plain model, with the logits of its exits.

    Args:
        model: The wrapper or plain model.
        base: Functional model whose inputs the data has to fit.
        task: Task of the model.
        logits: Mapping of exit names, shallow to deep, then the ensemble, to symbolic
            logits; to symbolic outputs for regression.
        models: Mapping of the names of exits that can be cut off, and of the ensemble,
            to their deployable models.
    """

    model: keras.Model
    base: keras.Model
    task: Task
    logits: dict[str, SymbolicTensor]
    models: dict[str, keras.Model]


class CompiledLogits:
    """The logits of all exits, compiled for one batch size.

    Args:
        model: Model to evaluate.
    """

    def __init__(self, model: EvaluatedModel) -> None:
        inputs = list(model.base.inputs)
        self._names = list(model.logits)  # The call returns them sorted by name.
        self._call = CompiledModel(keras.Model(inputs, model.logits))
        self._batch_size = 0

    def __call__(self, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Return the logits of each exit by name.

        Args:
            arrays: One array for each input of the base.
        """
        samples = len(arrays[0])
        self._batch_size = max(self._batch_size, samples)
        missing = self._batch_size - samples
        if missing:  # A smaller last batch is padded, to avoid a recompilation.
            arrays = [
                np.concatenate([x, np.repeat(x[-1:], missing, 0)]) for x in arrays
            ]
        logits = self._call(arrays)
        return {name: to_numpy(logits[name])[:samples] for name in self._names}


def evaluated_model(model: keras.Model, task: str | None = None) -> EvaluatedModel:
    """Return the `EvaluatedModel` of a wrapper or a plain model.

    Args:
        model: A `SelfDistiller`, or a functional or Sequential model with one output.
        task: Task of a plain model whose last layer does not imply one.

    Raises:
        TypeError: The model is not functional.
        ValueError: The last layer of a plain model implies no task, or another one than
            the loss that it was compiled with; `task` is not that of the wrapper; or
            the output has a mask.
    """
    if not isinstance(model, SelfDistiller):
        check_functional(model)
        _check_masks(model)
        return _plain(model, task)
    graph = model.exit_graph
    _check_masks(graph.base)
    if task not in (None, model.task):
        raise ValueError(
            f"`task` must be that of the wrapper. Received: task={task!r}. Expected: "
            f"None or {model.task!r}."
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


def _plain(model: keras.Model, task: str | None) -> EvaluatedModel:
    flat = flatten(model).model  # The last layer may be in a nested model.
    with unrecorded(flat):
        end = find_base_end(flat, task)
    if task is None:
        _check_loss(model, end.task)
    logits = end.output if end.task.name == "regression" else end.logits
    stripped = keras.Model(model.inputs, model.outputs[0], name=model.name)
    return EvaluatedModel(
        model, model, end.task, {"final": logits}, {"final": stripped}
    )


def _check_loss(model: keras.Model, task: Task) -> None:
    """Refuse a compiled loss that contradicts what a linear end is assumed to be."""
    loss = model.loss if model.compiled else None
    reduces = getattr(loss, "reduction", "mean") not in (None, "none")
    if reduces and (isinstance(loss, str) or callable(loss)):
        check_task(as_loss(loss, task), task)


def _check_masks(model: keras.Model) -> None:
    output = model.outputs[0]
    masked = mask_of(output) is not None
    if masked and len(output.shape) > 2:
        raise ValueError(
            "A report does not support masked outputs. Received: model "
            f"{model.name!r} with a prediction at each position, some of them masked. "
            "Use model.evaluate(), which ignores masked positions."
        )
