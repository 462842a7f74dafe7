"""How a wrapper trains: compile, fit, the loss of a batch, the logs."""

import contextlib
import inspect
import types
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_selfdistill.files.config_check import check_config
from keras_selfdistill.losses.label_loss import check_task
from keras_selfdistill.training import train_step as backend_step
from keras_selfdistill.training.data_checks import check_training_data
from keras_selfdistill.training.logs import Logs
from keras_selfdistill.training.nonfinite import FiniteCheck, StopWithoutProgress
from keras_selfdistill.training.objective import Objective
from keras_selfdistill.training.progress_bar import with_progress_bar
from keras_selfdistill.training.section_gradients import (
    mean_magnitudes,
    section_weights,
)
from keras_selfdistill.utils.config import for_any_backend
from keras_selfdistill.utils.keras_internals import (
    loss_of_hook,
)

# Of `keras.Model.fit`, behind those that the wrapper's own names.
_FURTHER_ARGUMENTS = tuple(inspect.signature(keras.Model.fit).parameters)[7:]


class Step(NamedTuple):
    """What one batch gave, for the update and the logs."""

    loss: Any  # Scalar: the sum of the terms and of the base's own losses.
    terms: dict[str, Any]  # Scalar of each term, weighted.
    outputs: dict[str, Any]  # Every exit's output and the ensemble's.
    labels: Any
    sample_weight: Any


class Trainer(keras.Model):
    """The training half of a `SelfDistiller`, which constructs and deploys itself.

    It reads what the constructor keeps: the graph of the exits, the recipe, the
    external teacher, the step counter and the scale of distillation.
    """

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

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        run_eagerly=False,
        steps_per_execution=1,
        jit_compile="auto",
        auto_scale_loss=True,
        log_gradients=False,
    ):
        """Configure training, with the arguments that the base would be given.

        Args:
            optimizer: As in `keras.Model.compile`.
            loss: One loss, which serves every exit: name, function or `Loss` object.
                Of a base that ends in softmax or sigmoid, Keras' crossentropies are
                computed from the logits, so that nothing is clipped.
            loss_weights: Not accepted: the recipe weighs the exits.
            metrics: Names, functions or objects, given once; every exit and the
                ensemble gets a copy.
            weighted_metrics: Likewise, with sample and class weights.
            run_eagerly: As in `keras.Model.compile`.
            steps_per_execution: As in `keras.Model.compile`.
            jit_compile: As in `keras.Model.compile`.
            auto_scale_loss: As in `keras.Model.compile`.
            log_gradients: Whether training also logs `section_1_gradient`, …: the mean
                magnitude of the gradient in each section, |∂loss/∂w| averaged over the
                section's trainable weights and over steps. A section is the part of
                the base between two taps; heads are in none.

        Raises:
            TypeError: `loss` is missing or several, or the metrics are a mapping.
            ValueError: `loss` is unknown, or for another task than the end was
                taken for, or `loss_weights` is given.
        """
        if loss_weights is not None:
            raise ValueError(
                "The recipe weighs the exits' losses. Received: "
                f"loss_weights={loss_weights!r}. Expected: none. Set the weights in "
                "the recipe, e.g. recipe=recipes.BYOT(alpha=0.3)."
            )
        objective = self._objective_of(loss)
        sections = section_weights(self._graph) if log_gradients else {}
        logs = Logs(
            self.exit_names,
            objective.terms,
            metrics,
            weighted_metrics,
            gradients=[f"{section}_gradient" for section in sections],
        )
        super().compile(
            optimizer=optimizer,
            metrics=logs.metrics,
            weighted_metrics=logs.weighted_metrics,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            auto_scale_loss=auto_scale_loss,
        )
        self._objective = objective
        self._logs = logs
        self._sections = types.MappingProxyType(sections)  # Not to be tracked.
        self._compile_arguments = types.SimpleNamespace(
            loss=loss,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            jit_compile=jit_compile,  # "auto" means another thing on another backend.
            log_gradients=log_gradients,
        )

    def _objective_of(self, loss):
        """Return the objective with a loss that fits the task."""
        objective = Objective(
            self._recipe,
            self.exit_names,
            loss,
            task=self._graph.task,
            external_teacher=self._teacher is not None,
            pair_losses=self._given.pair_losses,
        )
        if self._given.task is None:
            check_task(objective.label_loss, self._graph.task)
        return objective

    train_step = backend_step.train_step
    test_step = backend_step.test_step

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        *args,
        **kwargs,
    ):
        """Train, with the arguments of `keras.Model.fit`.

        A step with NaN or infinity in its loss, its gradients or its batch statistics
        changes nothing: no weight, no moving statistic, no state of the optimizer but
        its loss scale. The log `nonfinite_steps` counts such steps of an epoch, and
        losses that are not finite are left out of the logged means.

        Raises:
            FloatingPointError: 100 steps in a row were skipped, or no loss of an epoch
                was finite.
            TypeError: An array holds no numbers.
            ValueError: There are no data, or an array is of another shape or length
                than the base, the loss or the other arrays ask for, or holds NaN,
                infinity, or labels that are no classes of the base.
        """
        if self.compiled:
            given = {**dict(zip(_FURTHER_ARGUMENTS, args, strict=False)), **kwargs}
            check_training_data(
                x,
                y,
                given.get("sample_weight"),
                base=self.base,
                task=self._graph.task,
                label_loss=self._objective.label_loss,
                class_weight=given.get("class_weight"),
            )
        stop = StopWithoutProgress()
        # First, so that no other one saves or reports such an epoch.
        if isinstance(callbacks, keras.callbacks.CallbackList):
            others = callbacks.callbacks
            others[:] = [c for c in others if not isinstance(c, StopWithoutProgress)]
            stop.set_model(self)
            others.insert(0, stop)
        else:
            callbacks = [stop, *with_progress_bar(callbacks, verbose)]
        scale = self.distillation_scale
        try:
            return super().fit(
                x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs
            )
        finally:
            self.distillation_scale = scale

    def evaluate(self, x=None, y=None, batch_size=None, verbose="auto", **kwargs):
        """Evaluate, with the arguments of `keras.Model.evaluate`."""
        callbacks = with_progress_bar(kwargs.pop("callbacks", None), verbose)
        with self._evaluating():
            return super().evaluate(
                x, y, batch_size, verbose, callbacks=callbacks, **kwargs
            )

    def predict(self, *args, **kwargs):
        """Predict, with the arguments of `keras.Model.predict`.

        Calls from several threads take turns: on JAX, Keras takes the weights out of a
        model while it predicts. `EarlyExit.predict` runs at the same time.
        """
        with self._turn:
            return super().predict(*args, **kwargs)

    def test_on_batch(self, *args, **kwargs):
        """Evaluate a batch, with the arguments of `keras.Model.test_on_batch`."""
        with self._evaluating():
            return super().test_on_batch(*args, **kwargs)

    def _evaluating(self):
        # Uncompiled, Keras raises.
        return self._logs.of_evaluation() if self.compiled else contextlib.nullcontext()

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Return the total loss of a batch; override it to train something else.

        What it returns is what `fit` trains and logs as `loss`. The loss terms that are
        logged beside it are those of the one call of this method; of none or several,
        none are.

        Args:
            x: Inputs of the batch.
            y: Labels of the batch.
            y_pred: Output of every exit by name, as the model returned it. The loss
                compares features, too, which come from the same forward pass; without
                one, the exits run on `x`.
            sample_weight: `None` or shape `(batch,)`.
            training: Whether the model trains.

        Raises:
            ValueError: `y_pred` was changed, as features cannot be changed with it.

        Example:
            Train the final exit to be sure, beside the recipe:

            >>> import keras_selfdistill as ksd
            >>> class Sure(ksd.SelfDistiller):
            ...     def compute_loss(self, x, y, y_pred, sample_weight, training=True):
            ...         loss = super().compute_loss(
            ...             x, y, y_pred, sample_weight, training)
            ...         return loss - 0.1 * ops.mean(ops.max(y_pred["final"], axis=-1))
        """
        batch = self._batch.now
        if batch is None:
            batch = self._forward(x, training)
            loss, _ = self._recipe_loss(batch, y, sample_weight)
            if training:
                self._step.assign_add(1)
            return loss
        if y_pred is not None and not all(
            y_pred.get(name) is output for name, output in batch.outputs.items()
        ):
            raise ValueError(
                "compute_loss must be given the outputs as the model returned them. "
                "Received: a changed `y_pred`, which features and logits of the recipe "
                "would not follow. Expected: y_pred itself; add a term of what you "
                "made of it to what super().compute_loss returns."
            )
        loss, terms = self._recipe_loss(batch, y, sample_weight)
        batch.terms.append(terms)
        return loss

    def _run_exits(self, x, y, sample_weight, *, training) -> Step:
        """Run all exits once on a batch and compute the loss, on any backend."""
        # Before the exits run: batch normalisation would already have learned.
        self._objective.check_labels(y, self.base.outputs[0], sample_weight)
        batch = self._forward(x, training)
        self._batch.now = batch
        try:
            loss = loss_of_hook(
                self, x, y, dict(batch.outputs), sample_weight, training=training
            )
        finally:
            self._batch.now = None
        if loss is None or len(loss.shape):
            raise ValueError(
                f"{type(self).__name__}.compute_loss must return a scalar. Received: "
                f"{None if loss is None else f'shape {tuple(loss.shape)}'}. Take the "
                "mean over the batch."
            )
        if training:
            self._step.assign_add(1)
        terms = batch.terms[0] if len(batch.terms) == 1 else {}
        outputs = {**batch.outputs, "ensemble": batch.ensemble}
        return Step(loss, terms, outputs, y, sample_weight)

    def _forward(self, x, training):
        """Run everything that a batch's loss is computed from."""
        found = self._graph.training_network(x, training=training)
        exits = found["exits"]
        external_logits = None
        if self._teacher is not None:
            external_logits = self._teacher(x, training=False)
        return types.SimpleNamespace(
            exits=exits,
            outputs={name: exits[name]["output"] for name in self.exit_names},
            ensemble=found["ensemble"],
            external_logits=external_logits,
            terms=[],  # One mapping for each call of `compute_loss`.
        )

    def _recipe_loss(self, batch, y, sample_weight):
        """Return the total loss of a batch that was run, and its terms."""
        terms = self._objective(
            y,
            batch.exits,
            sample_weight,
            step=self._step.value,
            distillation_scale=self._distillation_scale.value,
            external_logits=batch.external_logits,
        )
        if "distillation_loss" in terms:
            # A mean over the batch of one replica, as the base's own losses are sums.
            terms["distillation_loss"] = self._aggregate_additional_loss(
                terms["distillation_loss"]
            )
        # Keras scales the base's own losses for the number of replicas here.
        own_losses = [self._aggregate_additional_loss(loss) for loss in self.losses]
        return sum([*terms.values(), *own_losses]), terms

    def _gradient_magnitudes(self, gradients) -> dict[str, Any]:
        """Return what is to be logged of the gradients of the scaled loss."""
        if not self._sections:
            return {}
        scale = self.optimizer.scale_loss(ops.ones(()))
        return mean_magnitudes(
            self._sections, self.trainable_variables, gradients, scale
        )

    def _update_logs(
        self,
        step: Step,
        verdict: FiniteCheck | None = None,
        magnitudes: dict[str, Any] | None = None,
        *,
        replicas: int = 1,
    ) -> dict[str, Any]:
        """Add a batch to the metrics and return the logs.

        Args:
            step: What the batch gave, its losses divided by `replicas`.
            verdict: Of a training step; what is not finite is left out of the means.
            magnitudes: Of the gradients.
            replicas: Devices that train together, each of which adds to the metrics.
        """
        counted = True if verdict is None else verdict.forward
        batch_size = ops.shape(step.labels)[0]
        losses = {"loss": step.loss, **step.terms}
        self._logs.show(step.terms)
        for name, loss in losses.items():
            mean = self._logs.losses[name]
            mean.add(loss * replicas, counted=counted, weight=batch_size)
        if verdict is not None:
            skipped = ops.logical_not(verdict.finite)
            self._logs.nonfinite_steps.update_state(
                ops.cast(skipped, "float32") / replicas
            )
            for name, magnitude in (magnitudes or {}).items():
                self._logs.gradients[name].add(magnitude, counted=verdict.finite)
        return self.compute_metrics(
            None, step.labels, step.outputs, sample_weight=step.sample_weight
        )

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Add a batch to the metrics of every exit and return the logs.

        Args:
            x: Not read.
            y: Labels of the batch.
            y_pred: Output of every exit and, under `ensemble`, of the ensemble.
            sample_weight: `None` or shape `(batch,)`.
        """
        if "ensemble" not in y_pred:
            # Keras builds the metrics with symbolic outputs of `call`, before the first
            # step: the time to refuse labels, while no weight has moved.
            self._objective.check_labels(y, self.base.outputs[0], sample_weight)
            self._objective.label_loss(y, y_pred["final"], sample_weight)
            y_pred = {**y_pred, "ensemble": y_pred["final"]}
        outputs = self._logs.ordered(y_pred)
        labels = dict.fromkeys(outputs, y)
        return super().compute_metrics(x, labels, outputs, sample_weight)

    def get_metrics_result(self) -> dict[str, Any]:
        """Return the logs: the loss and its terms, and the metrics of every exit."""
        return self._logs.named(super().get_metrics_result())

    @property
    def losses(self) -> list[Any]:
        """The base's and the exits' own losses, not those of the external teacher."""
        found = super().losses
        if self._teacher is None:
            return found
        others = {id(loss) for loss in self._teacher.losses}
        return [loss for loss in found if id(loss) not in others]

    @property
    def metrics(self) -> list[keras.Metric]:
        """The loss, its terms, and the metrics of every exit and the ensemble."""
        if not self.compiled:
            return super().metrics
        _, *others = super().metrics  # Without Keras' own mean of the loss.
        return self._logs.trackers(others)

    def get_compile_config(self) -> dict[str, Any]:
        """Return the arguments of `compile`, serialised."""
        if not self.compiled:
            return {}
        arguments = keras.saving.serialize_keras_object(vars(self._compile_arguments))
        return for_any_backend({**super().get_compile_config(), **arguments})

    def compile_from_config(self, config):
        """Compile with what `get_compile_config` returned and build the optimizer."""
        check_config(config, code=True)
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)
