"""`SelfDistiller`: a base with exits that trains all of them at once by `fit`."""

import contextlib
import inspect
import threading
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_selfdistill import heads, recipes
from keras_selfdistill import train_step as backend_step
from keras_selfdistill.config import PACKAGE, did_you_mean, for_any_backend
from keras_selfdistill.exits import attach_exits
from keras_selfdistill.keras_internals import (
    is_cloned_by,
    loss_of_hook,
    writes_legacy_format,
)
from keras_selfdistill.label_loss import check_task
from keras_selfdistill.logs import Logs
from keras_selfdistill.nonfinite import StopWithoutProgress, Verdict
from keras_selfdistill.objective import Objective
from keras_selfdistill.pair_losses import pair_losses
from keras_selfdistill.placement import Tap
from keras_selfdistill.quantized import quantizations, quantize
from keras_selfdistill.recipe import Scalar
from keras_selfdistill.safe_config import check_config
from keras_selfdistill.section_gradients import mean_magnitudes, section_weights
from keras_selfdistill.teacher import teacher_network
from keras_selfdistill.top import with_classifier
from keras_selfdistill.training_data import check_training_data


class Step(NamedTuple):
    """What one batch gave, for the update and the logs."""

    loss: Any  # Scalar: the sum of the terms and of the base's own losses.
    terms: dict[str, Any]  # Scalar of each term, weighted.
    outputs: dict[str, Any]  # Every exit's output and the ensemble's.
    labels: Any
    sample_weight: Any


@keras.saving.register_keras_serializable(package=PACKAGE)
class SelfDistiller(keras.Model):
    """Wrap a classifier so that its exits learn from the labels and from its end.

    Every tapped layer grows an exit head; `fit` trains all exits with one forward
    pass per batch. Called on a batch, the wrapper returns a dict of every exit's
    output in the base's own form. The base's layers and weights are shared, not
    copied: what is trained here is trained there.

    Logs: `loss`, its weighted parts (`label_loss`, `soft_target_loss`, `hint_loss`,
    `external_loss`, `distillation_loss`, as far as there are any), the metrics of the
    final exit under their own names, and those of the others and of the ensemble (mean
    of all logits) as `exit_1_accuracy`, …, `ensemble_accuracy`. `loss` is the sum of
    its parts and of the base's own losses, such as weight regularisation.

    Args:
        model: The base: a functional or Sequential classifier with one output of
            shape `(batch, classes)`, softmax or logits. Models may be nested in it.
        taps: Layer names from shallow to deep, or a number of exits, which are then
            placed at the ends of blocks at nearly equal shares of the multiply-adds;
            `"auto"` chooses their number, too. `suggest_taps` shows the choice.
            A layer of a nested model is named `"backbone/stage/layer"`, the second
            call of a layer that is called several times `"layer@2"`.
        recipe: `"byot"`, `"separable_byot"`, `"attention_byot"`, `"teskd"`,
            `"deep_supervision"`, or a `Recipe`.
        head: `"bottleneck"`, `"separable"`, `"attention"`, `"top_down"`, `"linear"`,
            or a `Head`; by default the recipe's own. Its bottlenecks are narrowed where
            they would add more than 15 % to the base's multiply-adds (see
            `heads.Bottleneck`); other heads are not.
        teacher: Another classifier, of the same inputs and classes, whose logits every
            exit learns from with the recipe's `external_weight`. It is frozen, called
            in inference mode, and saved with the wrapper.
        distillation_losses: Losses of `keras.distillation`, applied between each exit
            and its teacher: features by a `FeatureDistillation`, else logits. Keras
            takes their mean over the batch, so sample weights do not reach them.
        distillation_loss_weights: Their weights, numbers or schedules, all 1 by
            default.
        freeze: `"base"` to train the exits of a trained base alone; batch
            normalisation of a frozen base stays in inference mode. To go on with all
            weights: `model.base.trainable = True`, then compile and fit again.
        classes: For a `model` that ends in features, such as one of
            `keras.applications` with `include_top=False`: the number of classes. The
            base is then this model with global average pooling and a softmax layer.
        task: `"multiclass"`, `"multilabel"`, `"binary"` or `"regression"`, where the
            base's end does not say: softmax tells classes apart, a sigmoid says yes or
            no to each label, several linear units are logits of classes, a single one
            is a number. A loss that says otherwise of a linear end is refused.
        name: Name of the wrapper.

    Raises:
        TypeError: An argument is of the wrong type; subclassed models cannot be tapped.
        ValueError: The base does not classify, a tap is wrong, or a name is unknown.
            The base is left as it was.

    Example:
        >>> base = keras.Sequential([
        ...     keras.Input((8, 8, 1)),
        ...     keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="a"),
        ...     keras.layers.Conv2D(8, 3, strides=2, activation="relu", name="b"),
        ...     keras.layers.GlobalAveragePooling2D(),
        ...     keras.layers.Dense(3, activation="softmax"),
        ... ])
        >>> model = SelfDistiller(base, taps=["a"], recipe="byot")
        >>> model.exit_names
        ['exit_1', 'final']
        >>> model.compile("sgd", loss="sparse_categorical_crossentropy")
        >>> {name: output.shape for name, output in model.output.items()}
        {'exit_1': (None, 3), 'final': (None, 3)}
    """

    def __init__(
        self,
        model: Any,
        taps: int | str | Sequence[str | Tap],
        recipe: str | recipes.Recipe,
        *,
        head: str | heads.Head | None = None,
        teacher: keras.Model | None = None,
        distillation_losses: Sequence[Any] | None = None,
        distillation_loss_weights: Sequence[Scalar] | None = None,
        freeze: str | None = None,
        classes: int | None = None,
        task: str | None = None,
        name: str | None = None,
    ):
        recipe = recipes.get(recipe)
        if freeze not in (None, "base"):
            raise ValueError(
                f"Unknown `freeze`. Received: freeze={freeze!r}. Expected: 'base' or "
                "None."
            )
        pairs = pair_losses(distillation_losses, distillation_loss_weights)
        head = None if head is None else heads.get(head)
        if classes is not None:
            model = with_classifier(model, classes)
        graph = attach_exits(model, taps, head, recipe, task)
        super().__init__(
            inputs=graph.inputs,
            outputs=graph.outputs,
            name=name or f"self_distilled_{model.name}",
        )
        # Kept in plain objects, whose layers and metrics Keras does not track twice.
        self._graph = graph
        self._turn = threading.RLock()
        self._batch = types.SimpleNamespace(now=None)  # The one that `fit` is at.
        self._recipe = recipe
        self._head = graph.head
        self._given = types.SimpleNamespace(
            teacher=teacher, pair_losses=pairs, task=task
        )
        # Tracked: what training alone reads, which is no part of the outputs' graph.
        self._adapters = graph.adapters()
        self._teacher = None
        if teacher is not None:
            self._teacher = teacher_network(teacher, model, graph.task)
        self._step = _counter("step", 0, "int32")
        self._distillation_scale = _counter("distillation_scale", 1.0, "float32")
        if freeze:
            model.trainable = False
        # Loss scaling follows the base, also where the global policy is another.
        self.dtype_policy = graph.dtype_policy

    @property
    def trainable(self) -> bool:
        """Whether anything is trained; the external teacher never is."""
        return super().trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.Model.trainable.fset(self, value)
        if self._teacher is not None:
            self._teacher.trainable = False

    @property
    def exit_names(self) -> list[str]:
        """Names of the exits, shallow to deep."""
        return list(self._graph.exits)

    @property
    def taps(self) -> list[str]:
        """Names of the tapped layers, shallow to deep."""
        return list(self._graph.taps)

    @property
    def recipe(self) -> recipes.Recipe:
        """The recipe that weighs the exits' losses."""
        return self._recipe

    @property
    def head(self) -> heads.Head:
        """The head that made the exits' features."""
        return self._head

    @property
    def task(self) -> str:
        """What the base answers, such as `"multiclass"`."""
        return self._graph.task.name

    @property
    def base(self) -> keras.Model:
        """The model that was wrapped."""
        return self._graph.base

    @property
    def has_early_exits(self) -> bool:
        """Whether exits can be cut off: not where their heads read the whole base."""
        return not self._head.reads_whole_base

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

    def final_model(self) -> keras.Model:
        """Return the base, stripped of its exits: same layers, weights and cost.

        Example:
            `model.final_model().save("classifier.keras")`
        """
        base = self._graph.base
        return keras.Model(self._graph.inputs, base.outputs[0], name=base.name)

    def exit_model(self, name: str) -> keras.Model:
        """Return a functional model that holds what one exit needs, and no other layer.

        Args:
            name: One of `exit_names`.

        Raises:
            ValueError: No exit has this name, or the exits cannot be cut off.
        """
        if name == "final":
            return self.final_model()
        if name not in self._graph.exits:
            raise ValueError(
                f"No exit has this name. Received: {name!r}. Expected one of "
                f"{self.exit_names}.{did_you_mean(str(name), self.exit_names)}"
            )
        if not self.has_early_exits:
            raise ValueError(
                f"No exit of this wrapper can be cut off: its head, {self._head!r}, "
                f"reads the whole base, so a model of {name!r} would cost more than "
                "the base. Deploy final_model(), which its exits helped to train, or "
                "ensemble_model()."
            )
        output = self._graph.exits[name].output
        return self._graph.model(output, name=f"{self._graph.base.name}_{name}")

    def ensemble_model(self) -> keras.Model:
        """Return a functional model of the mean of all exits' logits.

        Its output is in the base's own form: the softmax of that mean if the base ends
        in softmax. To load a saved one, `import keras_selfdistill` first: it may hold
        a layer of ours, which recovers the base's logits.
        """
        name = f"{self._graph.base.name}_ensemble"
        return self._graph.model(self._graph.ensemble, name=name)

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
            check_training_data(
                x,
                y,
                kwargs.get("sample_weight"),
                base=self.base,
                task=self._graph.task,
                label_loss=self._objective.label_loss,
            )
        stop = StopWithoutProgress()
        # First, so that no other one saves or reports such an epoch.
        if isinstance(callbacks, keras.callbacks.CallbackList):
            others = callbacks.callbacks
            others[:] = [c for c in others if not isinstance(c, StopWithoutProgress)]
            stop.set_model(self)
            others.insert(0, stop)
        else:
            callbacks = [stop, *(keras.tree.flatten(callbacks) if callbacks else [])]
        scale = self.distillation_scale
        try:
            return super().fit(
                x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs
            )
        finally:
            self.distillation_scale = scale

    def evaluate(self, *args, **kwargs):
        """Evaluate, with the arguments of `keras.Model.evaluate`."""
        with self._evaluating():
            return super().evaluate(*args, **kwargs)

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

            >>> class Sure(SelfDistiller):
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
        self._objective.check_labels(y, self.base.outputs[0])
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

    def _run_through_graph(self, inputs, operation_fn=lambda each: each, call_fn=None):
        """Refuse to be cloned as a plain model; called by Keras."""
        if is_cloned_by(operation_fn):
            raise TypeError(
                "keras.models.clone_model makes a plain model without recipe, heads "
                f"and training of a wrapper. Received: {type(self).__name__} "
                f"{self.name!r}. Expected: copy.deepcopy(model), a wrapper with the "
                "same weights, or type(model).from_config(model.get_config()), one "
                "with new weights."
            )
        return super()._run_through_graph(inputs, operation_fn, call_fn)

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
        verdict: Verdict | None = None,
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
            self._objective.check_labels(y, y_pred["final"])
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

    def save(self, filepath, overwrite=True, zipped=None, **kwargs):
        """Save the wrapper to a `.keras` file, as `keras.Model.save` does.

        Raises:
            ValueError: The name is that of a legacy `.h5` file, which could not be
                loaded. What is at the path stays as it is.
        """
        if str(filepath).endswith((".h5", ".hdf5")):
            raise _legacy_format_error(f"filepath={str(filepath)!r}")
        super().save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal wrapper.

        Raises:
            ValueError: It is asked for by Keras to write a legacy `.h5` file.
        """
        if writes_legacy_format():
            raise _legacy_format_error("a call of keras.saving.save_model with one")
        base, teacher = map(
            keras.saving.serialize_keras_object, (self._graph.base, self._given.teacher)
        )
        for config in filter(None, (base, teacher)):
            config.pop("compile_config", None)  # The wrapper has its own optimizer.
        return {
            "model": base,
            "taps": self.taps,
            "recipe": keras.saving.serialize_keras_object(self._recipe),
            "head": keras.saving.serialize_keras_object(self._head),
            "teacher": teacher,
            "distillation_losses": [
                keras.saving.serialize_keras_object(pair.loss)
                for pair in self._given.pair_losses
            ],
            "distillation_loss_weights": [
                keras.saving.serialize_keras_object(pair.weight)
                for pair in self._given.pair_losses
            ],
            "task": self._given.task,
            "name": self.name,
            "frozen": [
                layer.name for layer in self._added_layers if not layer.trainable
            ],
            "quantized": quantizations(self._added_layers),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Make a wrapper from what `get_config` returned.

        Raises:
            ValueError: A field is missing or unknown, or names what no model is made
                of (`safe_config` says what that is).
        """
        # An empty scope would hide the one around it.
        scope = keras.saving.custom_object_scope
        with scope(custom_objects) if custom_objects else contextlib.nullcontext():
            check_config(config, code=True)
        own = {"frozen", "quantized"}  # No arguments, but what was done to the layers.
        needed = {*_SERIALIZED, "taps", *own}
        known = {*inspect.signature(cls.__init__).parameters, *own} - {"self"}
        if not needed <= config.keys() <= known:
            raise ValueError(
                "The wrapper's config has other fields than this version writes. "
                f"Received: {list(config)}. Expected: {sorted(needed)} and at most "
                f"{sorted(known - needed)}."
            )
        config = dict(config)
        frozen, quantized = set(config.pop("frozen")), config.pop("quantized")
        for key in _SERIALIZED:
            config[key] = keras.saving.deserialize_keras_object(
                config[key], custom_objects
            )
        model = cls(**config)
        for layer in model._added_layers:
            layer.trainable = layer.name not in frozen
        quantize(model, model._added_layers, quantized)
        return model

    @property
    def _added_layers(self):
        """The layers of the exits, which the base's config does not describe."""
        own = {id(layer) for layer in self._graph.flat.model.layers}
        return [
            layer for layer in [*self.layers, *self._adapters] if id(layer) not in own
        ]

    def load_own_variables(self, store):
        """Load the count of steps; the scale of distillation is that of no training."""
        super().load_own_variables(store)
        self.distillation_scale = 1.0

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


# Fields of the config that hold configs of Keras objects.
_SERIALIZED = (
    "model",
    "recipe",
    "head",
    "teacher",
    "distillation_losses",
    "distillation_loss_weights",
)


def _legacy_format_error(received):
    return ValueError(
        "A wrapper cannot be saved to a legacy HDF5 file: nothing could load it. "
        f"Received: {received}. Expected: a path that ends in '.keras'; or "
        "save_weights with one that ends in '.weights.h5', for the weights alone."
    )


def _counter(name, value, dtype):
    return keras.Variable(
        keras.initializers.Constant(value),
        shape=(),
        dtype=dtype,
        trainable=False,
        aggregation="only_first_replica",
        name=name,
    )
