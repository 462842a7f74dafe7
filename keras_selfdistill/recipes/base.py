"""The base class of recipes: frozen fields, the teacher, and each exit's weights."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import keras

from keras_selfdistill.graph.task import TASKS
from keras_selfdistill.losses.hint import HintLoss
from keras_selfdistill.losses.soft_target import SoftTargetLoss
from keras_selfdistill.recipes.fields import check_temperature, check_weight, refuse
from keras_selfdistill.utils.config import Config, did_you_mean
from keras_selfdistill.utils.schedules import (
    PerExit,
    Scalar,
    at_step,
    by_exit,
    has_schedule,
)
from keras_selfdistill.utils.type_aliases import (
    ExitTensors,
    Labels,
    Tensor,
    TensorStructure,
)

TEACHERS = ("deepest", "ensemble", "dense", "next")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TermWeights:
    """Weights of one exit's loss terms: numbers, or tensors where one is scheduled.

    Args:
        label: Weight of the label loss.
        soft_target: Weight of the soft-target loss to each teacher's logits.
        hint: Weight of the hint loss to each teacher's feature.

    Example:
        >>> TermWeights(label=1.0)
        TermWeights(label=1.0, soft_target=0.0, hint=0.0)
    """

    label: float | Tensor
    soft_target: float | Tensor = 0.0
    hint: float | Tensor = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Config):
    """Base class of recipes; subclass it as a frozen dataclass.

    Every number may also be a `keras.optimizers.schedules.LearningRateSchedule`. It is
    evaluated on the wrapper's own count of training steps, which is saved with it. A
    weight of several exits may be one for each: a list, shallow to deep, or a dict by
    name.

    Attributes:
        head: Name of the head of all exits, unless the user passes another.
        soft_target_loss: Class of the loss on logits, called with `(temperature,
            reduction=…)`.
        hint_loss: Class of the loss on features, called with `(reduction=…)`.
        extra_term_names: Names of the terms of `extra_terms`, as they are logged.
        reads_labels: Whether every term of `extra_terms` compares with the labels.
            Positions whose label the label loss ignores (`ignore_class`) are then left
            out of the terms, and their labels are passed as class 0.
        tasks: Names of the tasks that `extra_terms` can compute, by default all.
        logits_per_class: Number of logits that an exit but the final one has for each
            class, in bases that predict one class for each sample. Their logsumexp is
            the logit of the class.

    Args:
        teacher: Teacher of an exit: `"deepest"`, the final exit; `"next"`, the next
            deeper exit; `"dense"`, every deeper exit, each with an equal share of the
            weight; `"ensemble"`, the detached mean of all exits' logits (which has no
            feature: the hint loss uses the final exit's).
        detach_teacher: Whether the soft targets' gradient stops at the teacher.
        external_weight: Weight of the soft-target loss to the external teacher, which
            a wrapper with `teacher=` adds to every exit, the final one included.
        temperature: Positive temperature of the soft targets, T.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field is out of its range or not finite.
    """

    head: ClassVar[str] = "bottleneck"
    soft_target_loss: ClassVar[type] = SoftTargetLoss
    hint_loss: ClassVar[type] = HintLoss
    extra_term_names: ClassVar[tuple[str, ...]] = ()
    reads_labels: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = TASKS
    logits_per_class: ClassVar[int] = 1

    teacher: str = "deepest"
    detach_teacher: bool = True
    external_weight: PerExit = 1.0
    temperature: Scalar = 1.0

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.teacher not in TEACHERS:
            refuse(
                self,
                "teacher",
                f"one of {TEACHERS}.{did_you_mean(str(self.teacher), TEACHERS)} "
                "Another model is passed as SelfDistiller(..., teacher=model)",
            )
        if not isinstance(self.detach_teacher, bool):
            refuse(self, "detach_teacher", "True or False")
        check_weight(self, "external_weight", per_exit=True)
        check_temperature(self)

    def weights(self, exit_names: Sequence[str]) -> dict[str, TermWeights]:
        """Return the weights of every exit, given their names, shallow to deep."""
        raise NotImplementedError(
            f"{type(self).__name__} must define weights(exit_names)."
        )

    def per_exit(self, field: str, names: Sequence[str]) -> dict[str, float | Tensor]:
        """Return the value of a field for each exit, for `weights`.

        Args:
            field: Name of a field: one number or schedule for all exits, or one for
                each, as a list or dict.
            names: Names of the exits that have one, shallow to deep.

        Raises:
            ValueError: The field has more or fewer values, or other names, than exits.

        Example:
            >>> from keras_selfdistill.recipes import BYOT
            >>> BYOT(alpha=[0.2, 0.4]).per_exit("alpha", ["exit_1", "exit_2"])
            {'exit_1': 0.2, 'exit_2': 0.4}
        """
        return by_exit(getattr(self, field), names, f"{type(self).__name__}.{field}")

    def teachers_of(self, name: str, exit_names: Sequence[str]) -> list[str]:
        """Return the names of an exit's teachers, `ensemble` for the mean of all.

        Args:
            name: Name of the exit.
            exit_names: Names of all exits, shallow to deep.
        """
        if self.teacher == "ensemble":
            return ["ensemble"]
        deeper = list(exit_names[list(exit_names).index(name) + 1 :])
        chosen = {"deepest": slice(-1, None), "next": slice(1), "dense": slice(None)}
        return deeper[chosen[self.teacher]]

    def adapted_exits(self, exit_names: Sequence[str]) -> list[str]:
        """Return the exits whose feature a trainable dense layer adapts for the hint.

        None by default. The layer is used in training only; no deployed model has it.
        """
        del exit_names
        return []

    def make_state(self, base: keras.Model) -> keras.Layer | None:
        """Return what `extra_terms` remember from step to step; nothing by default.

        Called once, when a wrapper is made. The wrapper freezes the layer, saves its
        variables, and has it as `recipe_state`; a `keras.Model` is its `teacher`. What
        `extra_terms` assigns to it is assigned in evaluation too, unless only `if
        training`. On several devices, a variable that they sum must be a sum that its
        dtype represents: float32 counts exactly to 2²⁴ only.

        Args:
            base: The base, whose weights the state must not share. A network with its
                weights: `copy = keras.models.clone_model(base)`,
                `copy.set_weights(base.get_weights())`.
        """
        del base
        return None

    def on_epoch_begin(
        self, epoch: int, state: keras.Layer | None, base: keras.Model
    ) -> None:
        """Change the state at the beginning of an epoch of `fit`.

        Fields of `self` are as they were passed: a schedule is not evaluated here, as
        it is in `extra_terms`. Loops over `train_on_batch` do not call this.

        Args:
            epoch: Number of the epoch, as `fit` counts them.
            state: The layer that `make_state` returned.
            base: The base with its weights after the previous epoch.
        """

    def views(
        self, inputs: TensorStructure, *, training: bool
    ) -> Sequence[TensorStructure]:
        """Return the views of a batch that run through the network, by default one.

        In training and in evaluation, all views of a batch are one larger batch, also
        to batch normalisation. The first view counts as the batch: it gives all losses
        and metrics but `extra_terms` and losses of the base's own layers, which see
        every view. A step costs as many times as much.

        Args:
            inputs: Inputs of the batch. The views have the same shapes and structure.
            training: Whether the batch is trained.
        """
        return [inputs]

    def extra_terms(
        self,
        labels: Labels,
        exits: Mapping[str, ExitTensors],
        state: keras.Layer | None,
        *,
        inputs: TensorStructure,
        training: bool,
    ) -> Mapping[str, Tensor]:
        """Return further loss terms by name, one value for each sample.

        They are reduced and scaled by sample weights as the label loss is, summed to
        the loss, and logged. Fields of `self` have the values of their schedules at
        the step. Teachers must be detached: `keras.ops.stop_gradient(…)`. Terms with
        a value for each position leave out the positions that the base masks, such as
        padding, as the label loss does.

        Args:
            labels: Labels of the batch, as passed to `fit`, but for `reads_labels`.
            exits: Mapping of exit names to their `output` and `logits`, shape `(batch,
                classes)`, and their `feature`, shape `(batch, width)`; with several
                `logits_per_class` also `joint`, shape `(batch, classes, number)`. With
                several `views` these are tensors of shape `(batch, views, …)`.
            state: The layer that `make_state` returned. Its variables may be assigned,
                also in evaluation unless only `if training`; a training step that is
                not finite is not kept.
            inputs: Inputs of the batch.
            training: Whether the batch is trained. Terms that evaluation leaves out
                are not logged there.

        Returns:
            Mapping of some of `extra_term_names` to tensors of shape `(batch,)`, or
            `(batch, *positions)`.

        Example:
            Shallow exits keep the distances between the samples of a batch, as
            *Relational Knowledge Distillation* (arXiv 1904.05068) does:

            >>> from keras import ops
            >>> from keras_selfdistill.recipes import BYOT
            >>> def distances(feature):
            ...     gaps = ops.expand_dims(feature, 0) - ops.expand_dims(feature, 1)
            ...     found = ops.sqrt(ops.sum(gaps**2, axis=-1) + 1e-12)
            ...     return found / ops.mean(found)
            >>> class Relational(BYOT):
            ...     extra_term_names = ("relation_loss",)
            ...     def extra_terms(self, labels, exits, state, *, inputs, training):
            ...         final = ops.stop_gradient(distances(exits["final"]["feature"]))
            ...         gap = ops.abs(distances(exits["exit_1"]["feature"]) - final)
            ...         return {"relation_loss": 0.1 * ops.mean(gap, axis=-1)}
            >>> Relational().extra_term_names
            ('relation_loss',)
        """
        del labels, exits, state, inputs, training
        return {}

    def at(self, step: int | Tensor) -> "Recipe":
        """Return the recipe with the value of every schedule at a step.

        Args:
            step: Number of training steps so far: integer or scalar tensor.

        Example:
            >>> import keras
            >>> import keras_selfdistill as ksd
            >>> rising = keras.optimizers.schedules.PolynomialDecay(0.0, 10, 0.5)
            >>> recipe = ksd.recipes.BYOT(alpha=rising)
            >>> print(float(recipe.at(5).alpha))
            0.25
        """
        values = {
            field.name: at_step(getattr(self, field.name), step)
            for field in dataclasses.fields(self)
            if has_schedule(getattr(self, field.name))
        }
        if not values:
            return self
        # Not dataclasses.replace: values at a step are tensors, which checks refuse.
        recipe = copy.copy(self)
        for name, value in values.items():
            object.__setattr__(recipe, name, value)
        return recipe
