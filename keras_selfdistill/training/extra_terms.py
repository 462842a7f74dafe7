"""Further loss terms of a recipe, and the state that they read."""

from collections.abc import Iterable, Mapping

import keras
from keras import ops

from keras_selfdistill.losses.labels import without_ignored
from keras_selfdistill.losses.sample_weights import copy_weights, weights_at_positions
from keras_selfdistill.recipes.base import Recipe
from keras_selfdistill.utils.keras_internals import mask_of, set_mask
from keras_selfdistill.utils.type_aliases import (
    ExitTensors,
    Labels,
    Logs,
    Tensor,
    TensorStructure,
)

_TERMS = (
    "loss",
    "label_loss",
    "soft_target_loss",
    "hint_loss",
    "external_loss",
    "distillation_loss",
)


class PrecomputedLoss(keras.losses.Loss):
    """Reduces values that are losses already, as Keras reduces every loss."""

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the values."""
        return y_pred


class RecipeEpochs(keras.callbacks.Callback):
    """Tells the recipe of a wrapper that an epoch of `fit` begins."""

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Let the recipe change its state."""
        model = self.model
        model.recipe.on_epoch_begin(epoch, model.recipe_state, model.base)


def make_state(
    recipe: Recipe, base: keras.Model, task: str = "multiclass"
) -> keras.Layer | None:
    """Return the frozen state of a recipe, or `None`.

    Args:
        recipe: Recipe that may have extra terms.
        base: The base.
        task: Name of the base's task.

    Raises:
        TypeError: The names of the terms are not a tuple of strings, or the state is
            not a layer.
        ValueError: A name is taken; the recipe is for other tasks; the state has no
            variables yet, or shares some with the base.
    """
    kind, names = type(recipe).__name__, recipe.extra_term_names
    if not isinstance(names, tuple) or not all(isinstance(n, str) for n in names):
        raise TypeError(
            f"{kind}.extra_term_names must be a tuple of names. Received: {names!r}. "
            "Expected, e.g., ('past_loss',)."
        )
    if len(set(names)) < len(names) or set(names) & {*_TERMS}:
        raise ValueError(
            f"{kind}.extra_term_names must be different names that no other term has. "
            f"Received: {names!r}. Taken: {_TERMS}."
        )
    if task not in recipe.tasks:
        raise ValueError(
            f"{kind} is for bases of other tasks. Received: {base.name!r} of task "
            f"{task!r}. Expected: {' or '.join(map(repr, recipe.tasks))}."
        )
    state = recipe.make_state(base)
    if state is None:
        return None
    if not isinstance(state, keras.Layer):
        raise TypeError(
            f"{kind}.make_state must return a keras.Layer, such as a keras.Model, or "
            f"None. Received: {state!r} of type {type(state).__name__}."
        )
    if not state.built:
        raise ValueError(
            f"The layer of {kind}.make_state must have its variables. Received: the "
            f"unbuilt layer {state.name!r}. Build it: layer.build(shape)."
        )
    own = {id(variable) for variable in base.variables}
    if any(id(variable) in own for variable in state.variables):
        raise ValueError(
            f"The state of {kind} must not share weights with the base, which it would "
            f"freeze. Received: {state.name!r}. Return a copy: copy = "
            "keras.models.clone_model(base); copy.set_weights(base.get_weights())."
        )
    state.trainable = False
    return state


def check_log_names(recipe: Recipe, taken: Iterable[str]) -> None:
    """Refuse terms that would be logged under the name of something else.

    Args:
        recipe: Recipe that may have extra terms.
        taken: Names of all other logs but loss terms.

    Raises:
        ValueError: A term of the recipe has the name of another log.
    """
    found = [
        name
        for name in recipe.extra_term_names
        if name in {*taken, "learning_rate"} or name.startswith("val_")
    ]
    if found:
        raise ValueError(
            f"{type(recipe).__name__}.extra_term_names must not be names of other "
            f"logs, nor begin with 'val_'. Received: {found}. Rename the terms, e.g. "
            f"{found[0].removeprefix('val_') + '_loss'!r}, or the metrics of compile()."
        )


def extra_terms(
    recipe: Recipe,
    labels: Labels,
    exits: Mapping[str, ExitTensors],
    state: keras.Layer | None,
    *,
    output: Tensor,
    inputs: TensorStructure,
    training: bool,
    sample_weight: Tensor | None,
    label_loss: keras.losses.Loss,
) -> dict[str, Tensor]:
    """Return the recipe's extra terms, reduced to scalars.

    Args:
        recipe: Recipe at the step.
        labels: Labels of the batch.
        exits: Mapping of exit names to their tensors, of all views.
        state: State of the recipe.
        output: Output of the base, whose shape and mask the labels fit.
        inputs: Inputs of the batch.
        training: Whether the batch is trained.
        sample_weight: Sample weights, or `None`.
        label_loss: The label loss, whose reduction, mask and ignored class they share.

    Raises:
        ValueError: A term has an unknown name, or no value for each sample.

    Example:
        >>> import numpy as np
        >>> from keras_selfdistill.recipes import DeepSupervision
        >>> class Constant(DeepSupervision):
        ...     extra_term_names = ("constant_loss",)
        ...     def extra_terms(self, labels, exits, state, *, inputs, training):
        ...         return {"constant_loss": ops.ones((2,))}
        >>> found = extra_terms(
        ...     Constant(), np.zeros(2), {}, None, output=np.ones((2, 1)),
        ...     inputs=np.zeros((2, 1)), training=True,
        ...     sample_weight=np.array([0.0, 3.0]),
        ...     label_loss=keras.losses.SparseCategoricalCrossentropy())
        >>> float(found["constant_loss"])
        1.5
    """
    mask = mask_of(output)
    if recipe.reads_labels:
        labels, valid = without_ignored(label_loss, labels, output)
        mask = _both(mask, valid)
    found = recipe.extra_terms(labels, exits, state, inputs=inputs, training=training)
    _check(recipe, found, labels, output)
    loss = PrecomputedLoss(reduction=label_loss.reduction)
    terms = {}
    for name, values in found.items():
        values = _masked(values, mask)
        weights = copy_weights(_weights_of(values, sample_weight))
        terms[name] = loss(values, values, weights)
    return terms


def _both(mask: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return what two masks leave; `None` leaves everything."""
    if mask is None or other is None:
        return other if mask is None else mask
    return ops.logical_and(mask, other)


def _masked(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return values with the mask, which every Keras loss applies, if it fits them."""
    if mask is None or len(mask.shape) != len(values.shape):
        return values
    sizes = zip(mask.shape, values.shape, strict=True)
    if any(None not in pair and pair[0] != pair[1] for pair in sizes):
        return values
    values = ops.copy(values)  # The recipe may have returned one tensor twice.
    set_mask(values, mask)
    return values


def _check(
    recipe: Recipe, found: Mapping[str, Tensor], labels: Labels, output: Tensor
) -> None:
    """Refuse terms that would not be logged, or not be scaled by sample weights."""
    kind = type(recipe).__name__
    if not isinstance(found, Mapping) or not set(found) <= {*recipe.extra_term_names}:
        raise ValueError(
            f"{kind}.extra_terms must return a mapping of names in extra_term_names. "
            f"Received: {list(found) if isinstance(found, Mapping) else found!r}. "
            f"Expected: some of {list(recipe.extra_term_names)}."
        )
    samples = labels.shape[0]
    for name, values in found.items():
        shape = tuple(values.shape)
        fits = shape and (None in (samples, shape[0]) or samples == shape[0])
        # Terms of each view would pass for terms of each position.
        if not fits or len(shape) >= len(output.shape):
            raise ValueError(
                f"{kind}.extra_terms must return one value for each sample, so that "
                f"sample weights scale it. Received: {name!r} of shape {shape}. "
                f"Expected: shape ({samples},)."
            )


def _weights_of(values: Tensor, sample_weight: Tensor | None) -> Tensor | None:
    """Return sample weights for values that may have fewer positions."""
    if sample_weight is None or len(values.shape) > 1:
        return weights_at_positions(sample_weight, ops.expand_dims(values, -1))
    positions = tuple(range(1, len(sample_weight.shape)))
    return ops.mean(sample_weight, axis=positions) if positions else sample_weight
