"""The external teacher: another model whose logits every exit learns from."""

from collections.abc import Sequence

import keras

from keras_selfdistill.exits.named_taps import has_no_taps
from keras_selfdistill.graph.ends.base_end import find_logits
from keras_selfdistill.graph.flatten import flatten
from keras_selfdistill.graph.nodes import input_structure, unrecorded
from keras_selfdistill.graph.task import Task
from keras_selfdistill.recipes.base import Recipe
from keras_selfdistill.utils.type_aliases import Shape, TapsLike


def teacher_network(teacher: keras.Model, base: keras.Model, task: Task) -> keras.Model:
    """Return a model of the logits of a teacher, and freeze the teacher.

    For regression, the model returns the outputs of the teacher.

    Args:
        teacher: A functional or Sequential model of the base's task.
        base: The student; the teacher must have its input and output shapes.
        task: Task of the base.

    Raises:
        TypeError: The teacher is not a functional model.
        ValueError: The teacher is a wrapper, does not fit the base, or shares weights
            with it.

    Example:
        >>> import keras_selfdistill as ksd
        >>> options = {"classes": 10, "width_multiplier": 0.125}
        >>> teacher = ksd.networks.resnet34(**options)
        >>> task = Task("multiclass", 10, "softmax")
        >>> base = ksd.networks.resnet18(**options)
        >>> network = teacher_network(teacher, base, task)
        >>> network.output_shape, teacher.trainable
        ((None, 10), False)
    """
    if isinstance(getattr(teacher, "output", None), dict):
        raise ValueError(
            f"The teacher must have one output. Received: {teacher.name!r} with a dict "
            "of outputs. Expected: for a wrapper, its final_model() or "
            "ensemble_model()."
        )
    if not isinstance(teacher, (keras.Function, keras.Sequential)):
        raise TypeError(
            "The teacher must be a functional or Sequential model. "
            f"Received: {teacher!r} of type {type(teacher).__name__}."
        )
    shapes = [[tuple(each.shape) for each in model.inputs] for model in (teacher, base)]
    if not _takes(*shapes):
        raise ValueError(
            "The teacher must take the base's inputs. Received: a teacher with inputs "
            f"{shapes[0]}. Expected: {shapes[1]}."
        )
    flat = flatten(teacher).model
    by_logits = task.compares == "logits"
    with unrecorded(flat):
        logits = find_logits(flat, task.name) if by_logits else flat.outputs[0]
    if tuple(logits.shape[1:]) != tuple(base.outputs[0].shape[1:]):
        raise ValueError(
            "The teacher must have the classes of the base. Received: a teacher with "
            f"{logits.shape[-1]} classes, shape {tuple(logits.shape)}. Expected: "
            f"{base.outputs[0].shape[-1]}, shape {tuple(base.outputs[0].shape)}."
        )
    own = {id(variable) for variable in base.variables}
    if any(id(variable) in own for variable in teacher.variables):
        raise ValueError(
            f"The teacher must not share weights with the base, which it would freeze. "
            f"Received: teacher {teacher.name!r}. Pass a copy: copy = "
            "keras.models.clone_model(model); copy.set_weights(model.get_weights())."
        )
    teacher.trainable = False
    network = keras.Model(input_structure(flat), logits, name=f"{teacher.name}_logits")
    network.trainable = False
    return network


def check_taught(taps: TapsLike, recipe: Recipe, teacher: keras.Model | None) -> None:
    """Refuse a wrapper without exits in which nothing teaches.

    Args:
        taps: The taps as the user gave them.
        recipe: The recipe.
        teacher: The external teacher, or `None`.

    Raises:
        ValueError: There are no taps, no teacher and no terms of the recipe's own.
    """
    if not has_no_taps(taps) or teacher is not None or recipe.extra_term_names:
        return
    raise ValueError(
        f"Without exits, nothing would teach. Received: taps={taps!r} with "
        f"{type(recipe).__name__}, by which exits learn from each other. Expected: at "
        "least one tap: a number of exits such as 3, or a list of layer names; or "
        "teacher=, or a recipe with terms of its own (Recipe.extra_terms). For labels "
        "alone, fit the base."
    )


def _takes(shapes: Sequence[Shape], inputs: Sequence[Shape]) -> bool:
    """Return whether inputs fit the shapes of a model, which may have open sizes."""
    return [len(shape) for shape in shapes] == [len(shape) for shape in inputs] and all(
        size in (None, other)
        for shape, given in zip(shapes, inputs, strict=True)
        for size, other in zip(shape, given, strict=True)
    )
