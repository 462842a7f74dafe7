"""From a head's feature to the tensors of an exit, and to those of the ensemble."""

import dataclasses
from collections.abc import Callable, Mapping

import keras
from keras import layers, ops

from keras_selfdistill.graph.ends.base_end import BaseEnd
from keras_selfdistill.graph.nodes import producer
from keras_selfdistill.graph.shells import masked_as
from keras_selfdistill.graph.task import Task
from keras_selfdistill.heads.base import Head
from keras_selfdistill.heads.pieces import resize_positions
from keras_selfdistill.recipes.base import Recipe
from keras_selfdistill.utils.number_checks import is_positive_integer
from keras_selfdistill.utils.type_aliases import SymbolicTensor, Tensor


@dataclasses.dataclass(frozen=True)
class Exit:
    """Symbolic tensors of one exit.

    Args:
        output: Output after the base's activation, shape `(batch, classes)`.
        logits: Logits, shape `(batch, classes)`; for all but the final exit at least
            float32.
        feature: Feature, shape `(batch, width)`.
        hint: Tensor that the hint loss compares with the teacher's feature: the
            feature, or the output of its adapter.
        joint: Logits of each class and what the recipe predicts with it, shape
            `(batch, classes, recipe.logits_per_class)`, if there are several.
    """

    output: SymbolicTensor
    logits: SymbolicTensor
    feature: SymbolicTensor
    hint: SymbolicTensor
    joint: SymbolicTensor | None = None

    def tensors(self) -> dict[str, SymbolicTensor]:
        """Return the tensors that there are, by name."""
        return {name: each for name, each in vars(self).items() if each is not None}


def check_task(recipe: Recipe, base: keras.Model, task: Task) -> None:
    """Refuse a base whose units are not classes where a class has several logits.

    Args:
        recipe: The recipe.
        base: The base, for the error message.
        task: Task of the base.

    Raises:
        ValueError: The recipe has several logits per class, but a sample not one class;
            or their number is not positive.
    """
    if not is_positive_integer(recipe.logits_per_class):
        raise ValueError(
            f"{type(recipe).__name__}.logits_per_class must be a positive integer. "
            f"Received: {recipe.logits_per_class!r}. Expected, e.g., 4."
        )
    if recipe.logits_per_class == 1:
        return
    if task.name != "multiclass" or task.positions:
        raise ValueError(
            f"{type(recipe).__name__} is for bases that predict one class for each "
            f"sample. Received: {base.name!r} of task {task.name!r} with output shape "
            f"{tuple(base.outputs[0].shape)}. Expected: 'multiclass' with output shape "
            "(batch, classes)."
        )


def exits_of(
    features: Mapping[str, SymbolicTensor], end: BaseEnd, head: Head, recipe: Recipe
) -> dict[str, Exit]:
    """Return the exits by name, shallow to deep; the last one is `final`.

    Args:
        features: Features of the exits at the taps, by name.
        end: The end of the base.
        head: Head that made the features, for error messages.
        recipe: Recipe that says which features are adapted for the hint, and how many
            logits an exit has for each class.

    Raises:
        ValueError: A feature does not have the shape of the base's own.
    """
    adapted = recipe.adapted_exits([*features, "final"])
    exits = {
        name: _make_exit(name, feature, end, head, recipe, adapt=name in adapted)
        for name, feature in features.items()
    }
    exits["final"] = Exit(end.output, end.logits, end.feature, end.feature)
    return exits


def _make_exit(
    name: str,
    feature: SymbolicTensor,
    end: BaseEnd,
    head: Head,
    recipe: Recipe,
    adapt: bool,
) -> Exit:
    width = end.feature.shape[-1]
    if tuple(feature.shape) != tuple(end.feature.shape):
        raise ValueError(
            f"A head must return a feature of the base's shape. Received: {head!r} "
            f"returned shape {tuple(feature.shape)} for {name!r}. Expected: "
            f"{tuple(end.feature.shape)}."
        )
    dtype = _full_precision(end.output)
    joint = None
    if recipe.logits_per_class == 1:
        dense = layers.Dense(end.task.units, name=f"{name}_logits", dtype=dtype)
        logits = dense(feature)
    else:
        joint = _joint_logits(name, feature, end, recipe, dtype)
        logits = _marginal_logits(joint, f"{name}_logits")
    logits = resize_positions(logits, end.task.positions, f"{name}_resized")
    logits = masked_as(logits, end.output, f"{name}_unmasked")
    output = layers.Activation(end.activation, name=name, dtype=dtype)(logits)
    hint = feature
    if adapt:
        hint = layers.Dense(width, name=f"{name}_adapter", dtype=dtype)(feature)
    return Exit(output, logits, feature, hint, joint)


def _joint_logits(
    name: str, feature: SymbolicTensor, end: BaseEnd, recipe: Recipe, dtype: str
) -> SymbolicTensor:
    """Return several logits for each class, shape `(batch, classes, several)`."""
    shape = (end.task.units, recipe.logits_per_class)
    joint = layers.Dense(shape[0] * shape[1], name=f"{name}_joint_logits", dtype=dtype)(
        feature
    )
    return layers.Reshape(shape, name=f"{name}_by_class", dtype=dtype)(joint)


def _marginal_logits(joint: SymbolicTensor, name: str) -> SymbolicTensor:
    """Return the logits of classes: their softmax is the marginal of the joint one."""
    logits = ops.logsumexp(joint, axis=-1)
    # Operations accept no name when called, and an automatic one may be taken.
    producer(logits).operation.name = name
    return logits


def ensemble_output(
    exits: Mapping[str, Exit], activation: Callable[[Tensor], Tensor]
) -> SymbolicTensor:
    """Return the output of the ensemble: the activation of the mean of all logits.

    Args:
        exits: The exits by name.
        activation: The base's activation from logits to outputs.
    """
    dtype = _full_precision(exits["final"].output)
    logits = layers.Average(name="ensemble_logits", dtype=dtype)(
        [each.logits for each in exits.values()]
    )
    return layers.Activation(activation, name="ensemble", dtype=dtype)(logits)


def _full_precision(output: SymbolicTensor) -> str:
    """Return the dtype of logits and outputs: at least float32."""
    return "float64" if output.dtype == "float64" else "float32"
