"""`compile`, `fit` and `predict` of a wrapper."""

import inspect
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_selfdistill.backend.processes import is_process_group
from keras_selfdistill.losses.label_loss import check_task, warn_of_logits
from keras_selfdistill.training import train_step as backend_step
from keras_selfdistill.training.batch_loss import BatchLoss
from keras_selfdistill.training.data_checks import check_training_data
from keras_selfdistill.training.extra_terms import RecipeEpochs, check_log_names
from keras_selfdistill.training.gradients.equilibrium import GradientEquilibrium
from keras_selfdistill.training.gradients.section_gradients import section_weights
from keras_selfdistill.training.logs.logged_model import LoggedModel
from keras_selfdistill.training.logs.logs import ExitLogs
from keras_selfdistill.training.logs.progress_bar import with_progress_bar
from keras_selfdistill.training.nonfinite import StopWithoutProgress
from keras_selfdistill.training.objective import Objective
from keras_selfdistill.utils.type_aliases import (
    CallbacksLike,
    ConfigDict,
    Data,
    Labels,
    LossLike,
    MetricsLike,
    Tensor,
)

if TYPE_CHECKING:
    import torch

# Of `keras.Model.fit`, behind those that the wrapper's own names.
_FURTHER_ARGUMENTS = tuple(inspect.signature(keras.Model.fit).parameters)[7:]


class Trainer(BatchLoss, LoggedModel):
    """The training half of a `SelfDistiller`, which constructs and deploys itself.

    It reads what the constructor keeps: the graph of the exits, the recipe, the
    external teacher, the step counter and the scale of distillation.
    """

    _process_group: "torch.distributed.ProcessGroup | None" = None

    @property
    def recipe_state(self) -> keras.Layer | None:
        """What the recipe's extra terms remember: `Recipe.make_state` made it."""
        return self._recipe_state

    @property
    def teacher(self) -> keras.Model | None:
        """The network whose predictions teach the exits, if any but the exits does.

        The model passed as `teacher=`; without one, the network that the recipe
        remembers, such as the base as it was an epoch ago. `None` if exits only learn
        from each other, as `recipe.teacher` says.

        Example:
            >>> import keras_selfdistill as ksd
            >>> options = {"classes": 10, "width_multiplier": 0.125}
            >>> other = ksd.networks.resnet34(**options)
            >>> base = ksd.networks.resnet18(**options)
            >>> ksd.SelfDistiller(base, taps=1, teacher=other).teacher is other
            True
        """
        if self._given.teacher is not None:
            return self._given.teacher
        state = self._recipe_state
        return state if isinstance(state, keras.Model) else None

    @property
    def distillation_scale(self) -> float:
        """Factor on every loss term but the label loss, 1 unless set.

        For callbacks: `fit` leaves it as it found it, and a loaded wrapper has 1.
        """
        # The sum is a tensor: NumPy cannot read a variable that devices mirror.
        return float(ops.convert_to_numpy(self._distillation_scale.value + 0.0))

    @distillation_scale.setter
    def distillation_scale(self, value: float) -> None:
        self._distillation_scale.assign(value)

    @property
    def process_group(self) -> "torch.distributed.ProcessGroup | None":
        """The PyTorch processes that train this wrapper together, `None` unless set.

        All of them skip a step that is not finite in one of them. For callbacks that
        average gradients over `torch.distributed`; all processes must train as many
        steps. A loaded wrapper has `None`.

        Raises:
            TypeError: It is set to something else, or on another backend.

        Example:
            >>> import keras_selfdistill as ksd
            >>> base = ksd.networks.resnet18(classes=10, width_multiplier=0.125)
            >>> model = ksd.SelfDistiller(base, taps=1)
            >>> model.process_group is None  # Or torch.distributed.group.WORLD.
            True
        """
        return self._process_group

    @process_group.setter
    def process_group(self, group: "torch.distributed.ProcessGroup | None") -> None:
        if group is not None and not is_process_group(group):
            raise TypeError(
                f"`process_group` is for PyTorch. Received: {group!r} on the backend "
                f"{keras.backend.backend()}. Expected: None, or on torch a "
                "torch.distributed.ProcessGroup."
            )
        self._process_group = group

    def compile(
        self,
        optimizer: str | ConfigDict | keras.optimizers.Optimizer = "rmsprop",
        loss: LossLike = None,
        loss_weights: None = None,
        metrics: MetricsLike = None,
        weighted_metrics: MetricsLike = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: bool | str = "auto",
        auto_scale_loss: bool = True,
        log_gradients: bool = False,
    ) -> None:
        """Configure training, with the arguments of `keras.Model.compile`.

        Args:
            optimizer: Optimizer, as in `keras.Model.compile`.
            loss: Name, function or object of one loss, which applies to every exit.
                If the base ends in softmax or sigmoid, Keras' crossentropies are
                computed from its logits, without clipping.
            loss_weights: Not supported: the recipe weights the exits.
            metrics: Names, functions or objects of metrics, of which every exit and
                the ensemble gets a copy.
            weighted_metrics: Metrics that use sample and class weights.
            run_eagerly: Whether to run eagerly, as in `keras.Model.compile`.
            steps_per_execution: Number of steps per call, as in `keras.Model.compile`.
            jit_compile: Whether to compile with XLA, as in `keras.Model.compile`.
            auto_scale_loss: Whether to scale the loss, as in `keras.Model.compile`.
            log_gradients: Whether training also logs `section_1_gradient`, …: the mean
                of |∂loss/∂w| over the trainable weights of each section and over
                steps, after `gradient_equilibrium`. A section is the part of the base
                between two taps, without heads.

        Raises:
            TypeError: `loss` is not a single loss, or `metrics` is a mapping.
            ValueError: `loss` is unknown or does not fit the task of the base,
                `loss_weights` is given, or a term of the recipe has the name of
                another log.
        """
        if loss_weights is not None:
            raise ValueError(
                "The recipe weights the exits' losses: recipe=recipes.BYOT(alpha=0.3). "
                f"Received: loss_weights={loss_weights!r}. Expected: None."
            )
        objective = self._objective_of(loss)
        sections = section_weights(self.exit_graph) if log_gradients else {}
        logs = ExitLogs(
            self.exit_names,
            [*objective.terms, *self._recipe.extra_term_names],
            metrics,
            weighted_metrics,
            gradients=[f"{section}_gradient" for section in sections],
        )
        check_log_names(self._recipe, logs.names)
        super().compile(
            optimizer=optimizer,
            metrics=logs.metrics,
            weighted_metrics=logs.weighted_metrics,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            auto_scale_loss=auto_scale_loss,
        )
        self._objective, self._logs = objective, logs
        self._loss_takes_training = _takes(self.compute_loss, "training")
        self._sections = types.MappingProxyType(sections)  # Not to be tracked.
        balanced = self._given.gradient_equilibrium
        self._equilibrium = GradientEquilibrium(self.exit_graph) if balanced else None
        self._compile_arguments = types.SimpleNamespace(
            loss=loss,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            jit_compile=jit_compile,  # "auto" means another thing on another backend.
            log_gradients=log_gradients,
        )

    def _objective_of(self, loss: LossLike) -> Objective:
        """Return the objective with a loss that fits the task."""
        objective = Objective(
            self._recipe,
            self.exit_names,
            loss,
            task=self.exit_graph.task,
            external_teacher=self._teacher is not None,
            pair_losses=self._given.pair_losses,
        )
        warn_of_logits(objective.label_loss, self.exit_graph.task)
        if self._given.task is None:
            check_task(objective.label_loss, self.exit_graph.task)
        return objective

    train_step = backend_step.train_step
    test_step = backend_step.test_step

    def fit(
        self,
        x: Data = None,
        y: Labels = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: CallbacksLike = None,
        *args: Any,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Train, with the arguments of `keras.Model.fit`.

        A step with NaN or infinity in its loss, gradients or batch statistics is
        skipped: no weight, moving statistic or optimizer state changes but the loss
        scale. The log `nonfinite_steps` counts the skipped steps of an epoch, and
        losses that are not finite are left out of the logged means.

        Raises:
            FloatingPointError: 100 consecutive steps were skipped, or no loss of an
                epoch was finite.
            TypeError: An array is not numeric.
            ValueError: There is no data; an array does not fit the base, the loss or
                the other arrays in shape or length, or has NaN or infinity; or labels
                are not classes of the base.
        """
        if self.compiled:
            given = {**dict(zip(_FURTHER_ARGUMENTS, args, strict=False)), **kwargs}
            check_training_data(
                x,
                y,
                given.get("sample_weight"),
                base=self.base,
                task=self.exit_graph.task,
                label_loss=self._objective.label_loss,
                class_weight=given.get("class_weight"),
            )
            validation = given.get("validation_data")
            if isinstance(validation, (tuple, list)) and len(validation) > 1:
                self._check_labels(validation[1])
        own: list[keras.callbacks.Callback] = [StopWithoutProgress(), RecipeEpochs()]
        # First, so that no other one saves or reports an epoch that stops training.
        if isinstance(callbacks, keras.callbacks.CallbackList):
            others = callbacks.callbacks
            others[:] = [c for c in others if not isinstance(c, tuple(map(type, own)))]
            for callback in own:
                callback.set_model(self)
            others[:0] = own
        else:
            callbacks = [*own, *with_progress_bar(callbacks, verbose)]
        scale, group = self.distillation_scale, self.process_group
        try:
            return super().fit(
                x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs
            )
        finally:
            # Also where a callback that set them was interrupted.
            self.distillation_scale, self.process_group = scale, group

    def predict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Predict, with the arguments of `keras.Model.predict`.

        Calls from several threads run one after another, because on JAX Keras removes
        the weights from a model while it predicts. Calls of `EarlyExit.predict` run
        concurrently.
        """
        with self._turn:
            return super().predict(*args, **kwargs)


def _takes(method: Callable[..., Any], argument: str) -> bool:
    """Return whether a method has an argument of a name.

    Overrides written for older versions of Keras do not take `training`.
    """
    return argument in inspect.signature(method).parameters
