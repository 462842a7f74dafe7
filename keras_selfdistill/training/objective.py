"""The training objective: the losses of all exits, weighted by a recipe."""

import functools
from collections.abc import Iterator, Mapping, Sequence

import keras
from keras import ops

from keras_selfdistill.graph.task import Task
from keras_selfdistill.losses.keras_distillation import PairLoss
from keras_selfdistill.losses.label_loss import as_loss, on_logits
from keras_selfdistill.losses.labels import all_exist, check_axis_of_units, check_form
from keras_selfdistill.losses.regression import OutputDistance
from keras_selfdistill.losses.sample_weights import (
    copy_weights,
    weights_at_positions,
)
from keras_selfdistill.losses.soft_target import BinarySoftTargetLoss
from keras_selfdistill.recipes.base import Recipe, TermWeights
from keras_selfdistill.recipes.fields import is_used
from keras_selfdistill.utils.type_aliases import (
    ExitTensors,
    Labels,
    LossLike,
    SymbolicTensor,
    Tensor,
)


class Objective:
    """Weighted sum of each exit's label and distillation losses.

    Args:
        recipe: Recipe with the weights of the terms and the teachers of each exit.
        exit_names: Names of the exits, shallow to deep.
        label_loss: The `loss` argument of `compile`.
        task: Task of the exits.
        external_teacher: Whether there is an external teacher.
        pair_losses: Additional losses between each exit and its teachers.

    Attributes:
        terms: Names of the loss terms.

    Raises:
        ValueError: `label_loss` is unknown or does not reduce to a scalar.
        TypeError: `label_loss` is not a single loss.

    Example:
        >>> from keras_selfdistill import recipes
        >>> loss = "sparse_categorical_crossentropy"
        >>> task = Task("multiclass", 10, "softmax")
        >>> Objective(recipes.BYOT(), ["exit_1", "final"], loss, task=task).terms
        ('label_loss', 'soft_target_loss', 'hint_loss')
    """

    def __init__(
        self,
        recipe: Recipe,
        exit_names: Sequence[str],
        label_loss: LossLike,
        *,
        task: Task,
        external_teacher: bool = False,
        pair_losses: Sequence[PairLoss] = (),
    ):
        self.recipe = recipe
        self.task = task
        self.exit_names = list(exit_names)
        self.label_loss = as_loss(label_loss, task)
        self._loss_of_logits = on_logits(self.label_loss, task)
        self.pair_losses = list(pair_losses)
        weights = _first_weights(recipe, self.exit_names)
        self._taught = taught_exits(recipe, self.exit_names)
        taught = [weights[name] for name in self._taught]
        used = {
            "label_loss": True,
            "soft_target_loss": any(is_used(each.soft_target) for each in taught),
            "hint_loss": any(is_used(each.hint) for each in taught),
            "external_loss": external_teacher,
            "distillation_loss": bool(self.pair_losses),
        }
        self.terms = tuple(term for term, is_used in used.items() if is_used)

    def check_labels(
        self,
        labels: Labels,
        output: Tensor | SymbolicTensor,
        sample_weight: Tensor | None = None,
    ) -> None:
        """Refuse labels that do not fit the base or the label loss.

        Args:
            labels: Labels of a batch.
            output: Output of the base, eager or symbolic.
            sample_weight: Sample weights, eager or symbolic, or `None`.

        Raises:
            ValueError: `labels` is missing, a collection, or has another shape or form
                than the loss takes.
        """
        self.task.check_labels(labels)
        # With an unknown rank, the loss checks the shape.
        if getattr(labels.shape, "rank", 0) is None:
            return
        check_axis_of_units(labels, output, sample_weight)
        if self.task.name == "multiclass":
            check_form(self.label_loss, labels, output)

    def __call__(
        self,
        labels: Labels,
        exits: Mapping[str, ExitTensors],
        sample_weight: Tensor | None,
        *,
        step: Tensor | int = 0,
        distillation_scale: Tensor | float = 1.0,
        external_logits: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the value of each term, summed over exits with their weights.

        Args:
            labels: Labels as the label loss takes them, e.g. of shape `(batch,)`.
            exits: Mapping of exit names to their `output` and `logits`, shape
                `(batch, classes)`, their `feature`, shape `(batch, width)`, and their
                `hint`, which is the feature or the output of its adapter.
            sample_weight: Sample weights of shape `(batch,)`, or with the positions of
                the labels, or `None`. They scale every term but the pair losses, which
                Keras returns as means over the batch.
            step: Number of training steps so far, for schedules.
            distillation_scale: Factor on every term but the label loss.
            external_logits: Logits of the external teacher, shape `(batch, classes)`;
                its output for regression.

        Returns:
            Mapping of the names in `terms` to scalars. The label loss is NaN if a label
            is not a class of the base.
        """
        losses = self._weighted_losses(
            step, labels, exits, sample_weight, external_logits
        )
        values: dict[str, list[Tensor]] = {term: [] for term in self.terms}
        for term, loss in losses:
            values[term].append(
                loss if term == "label_loss" else _times(distillation_scale, loss)
            )
        terms = {term: _sum(each) for term, each in values.items()}
        # JAX and GPUs compute a loss without an error for labels that are no classes.
        exist = all_exist(labels, exits[self.exit_names[-1]]["output"], self.label_loss)
        label_loss = ops.where(exist, terms["label_loss"], float("nan"))
        return terms | {"label_loss": label_loss}

    def _weighted_losses(
        self,
        step: Tensor | int,
        labels: Labels,
        exits: Mapping[str, ExitTensors],
        sample_weight: Tensor | None,
        external_logits: Tensor | None,
    ) -> Iterator[tuple[str, Tensor]]:
        recipe = self.recipe.at(step)
        # Reduced as the label loss is: the batch size must not change their ratio.
        reduction = self.label_loss.reduction
        compares = self.task.compares
        soft_target_loss = _soft_target_loss(self.task, recipe, reduction)
        hint_loss = recipe.hint_loss(reduction=reduction)
        external = recipe.per_exit("external_weight", self.exit_names)
        pairs = [(each, each.weights(self._taught, step)) for each in self.pair_losses]
        for name, weights in recipe.weights(self.exit_names).items():
            student = exits[name]
            if is_used(weights.label):
                loss = self._label_loss(labels, student, copy_weights(sample_weight))
                yield "label_loss", _times(weights.label, loss)
            teachers = recipe.teachers_of(name, self.exit_names)
            for teacher in (self._teacher_targets(each, exits) for each in teachers):
                if is_used(weights.soft_target):
                    loss = soft_target_loss(
                        teacher[compares],
                        student[compares],
                        copy_weights(sample_weight),
                    )
                    share = _times(weights.soft_target, loss) / len(teachers)
                    yield "soft_target_loss", share
                if is_used(weights.hint):
                    weight = weights_at_positions(sample_weight, student["hint"])
                    loss = hint_loss(
                        teacher["feature"], student["hint"], copy_weights(weight)
                    )
                    share = _times(weights.hint, loss) / len(teachers)
                    yield "hint_loss", share
                for pair_loss, of_exits in pairs:
                    loss = pair_loss(teacher, student, labels)
                    yield "distillation_loss", of_exits[name] * loss / len(teachers)
            if external_logits is not None:
                loss = soft_target_loss(
                    external_logits, student[compares], copy_weights(sample_weight)
                )
                yield "external_loss", _times(external[name], loss)

    def _label_loss(
        self, labels: Labels, student: ExitTensors, sample_weight: Tensor | None
    ) -> Tensor:
        """Return the label loss of an exit, from its logits if possible."""
        if self._loss_of_logits is None:
            return self.label_loss(labels, student["output"], sample_weight)
        return self._loss_of_logits(labels, student["logits"], sample_weight)

    def _teacher_targets(
        self, teacher: str, exits: Mapping[str, ExitTensors]
    ) -> dict[str, Tensor]:
        """Return the logits, output and feature of a teacher, detached if required."""
        if teacher == "ensemble":
            found = {
                key: functools.reduce(ops.add, [each[key] for each in exits.values()])
                / len(exits)  # Not sum(): the base's logits may be in float16.
                for key in ("logits", "output")
            }
            feature = exits[self.exit_names[-1]]["feature"]
        else:
            found = {key: exits[teacher][key] for key in ("logits", "output")}
            feature = exits[teacher]["feature"]
        if self.recipe.detach_teacher or teacher == "ensemble":
            found = {key: ops.stop_gradient(value) for key, value in found.items()}
        return {**found, "feature": ops.stop_gradient(feature)}


def _times(weight: Tensor | float, loss: Tensor) -> Tensor:
    """Return a loss times a weight, in the dtype of the loss."""
    return ops.cast(weight, loss.dtype) * loss


def _sum(losses: Sequence[Tensor]) -> Tensor:
    return functools.reduce(ops.add, losses) if losses else ops.zeros(())


def _soft_target_loss(task: Task, recipe: Recipe, reduction: str) -> keras.losses.Loss:
    """Return the loss between the predictions of a teacher and of a student.

    This is the recipe's loss for multiclass tasks, the binary divergence of each label
    for binary and multilabel tasks, and a squared distance without temperature for
    regression.
    """
    if task.name == "multiclass":
        return recipe.soft_target_loss(recipe.temperature, reduction=reduction)
    if task.name == "regression":
        return OutputDistance(reduction=reduction)
    return BinarySoftTargetLoss(recipe.temperature, reduction=reduction)


def check_weights(
    recipe: Recipe, exit_names: Sequence[str], pair_losses: Sequence[PairLoss]
) -> None:
    """Refuse weights of exits that do not fit the exits.

    Args:
        recipe: The recipe.
        exit_names: Names of the exits, shallow to deep.
        pair_losses: Additional losses between each exit and its teachers.

    Raises:
        ValueError: There are more or fewer weights, or other names, than exits.
    """
    _first_weights(recipe, exit_names)
    for pair_loss in pair_losses:
        pair_loss.weights(taught_exits(recipe, exit_names))


def _first_weights(recipe: Recipe, exit_names: Sequence[str]) -> dict[str, TermWeights]:
    """Return the first weights of every exit, after a check that they fit the exits."""
    recipe = recipe.at(0)
    recipe.per_exit("external_weight", exit_names)
    weights = recipe.weights(exit_names)
    if set(weights) != set(exit_names):
        raise ValueError(
            f"{type(recipe).__name__}.weights must name every exit once. Received: "
            f"weights of {sorted(weights)}. Expected: weights of {list(exit_names)}, "
            "with TermWeights(label=0.0) for an exit without losses."
        )
    return weights


def taught_exits(recipe: Recipe, exit_names: Sequence[str]) -> list[str]:
    """Return the exits that have a teacher among the exits.

    Args:
        recipe: The recipe.
        exit_names: Names of the exits, shallow to deep.

    Example:
        >>> from keras_selfdistill.recipes import BYOT
        >>> taught_exits(BYOT(), ["exit_1", "final"])
        ['exit_1']
    """
    return [name for name in exit_names if recipe.teachers_of(name, exit_names)]
