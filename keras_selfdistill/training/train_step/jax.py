"""Training and test step on JAX, as pure functions of the state."""

from typing import TypeAlias

import jax
import keras

from keras_selfdistill.backend.finite import all_finite
from keras_selfdistill.training.batch_loss import Step
from keras_selfdistill.training.nonfinite import DeferredUpdates, FiniteCheck
from keras_selfdistill.utils.type_aliases import Logs, Tensor, TensorStructure

State: TypeAlias = tuple[list[Tensor], ...]
"""Values of the variables, kind by kind, as Keras passes them to a step on JAX."""


def train_step(
    self: keras.Model, state: State, data: TensorStructure
) -> tuple[Logs, State]:
    """Return the logs of one batch and the state after one update."""
    trainable, non_trainable, optimizer_variables, metrics_variables = state
    scaling = list(zip(self.optimizer.variables, optimizer_variables, strict=True))

    def scaled_loss(
        trainable: list[Tensor],
    ) -> tuple[Tensor, tuple[Step, list[Tensor | None]]]:
        step, updates = _forward(self, trainable, non_trainable, data, training=True)
        with keras.StatelessScope(state_mapping=scaling):
            loss = self.optimizer.scale_loss(step.loss)
        return loss, (step, updates)

    gradients, (step, updates) = jax.grad(scaled_loss, has_aux=True)(trainable)
    check = FiniteCheck(
        forward=all_finite([step.loss, *(new for new in updates if new is not None)]),
        gradients=all_finite(gradients),
    )
    gradients = self._in_equilibrium(gradients)
    with keras.StatelessScope(state_mapping=scaling):
        magnitudes = self._gradient_magnitudes(gradients)
    updated = self.optimizer.stateless_apply(optimizer_variables, gradients, trainable)
    # Not `jax.lax.cond`, with which a GPU waits: XLA reads the condition on the host.
    trainable, optimizer_variables = _choose(
        check.applies(self.optimizer), updated, (trainable, optimizer_variables)
    )
    non_trainable = [
        value if new is None else _choose(check.finite, new, value)
        for new, value in zip(updates, non_trainable, strict=True)
    ]
    logs, metrics_variables = _logs(self, metrics_variables, step, check, magnitudes)
    return logs, (trainable, non_trainable, optimizer_variables, metrics_variables)


def test_step(
    self: keras.Model, state: State, data: TensorStructure
) -> tuple[Logs, State]:
    """Return the logs of one batch and the state after it."""
    trainable, non_trainable, metrics_variables = state
    step, updates = _forward(self, trainable, non_trainable, data, training=False)
    non_trainable = [
        value if new is None else new
        for new, value in zip(updates, non_trainable, strict=True)
    ]
    logs, metrics_variables = _logs(self, metrics_variables, step)
    return logs, (trainable, non_trainable, metrics_variables)


def _forward(
    self: keras.Model,
    trainable: list[Tensor],
    non_trainable: list[Tensor],
    data: TensorStructure,
    training: bool,
) -> tuple[Step, list[Tensor | None]]:
    """Return the step, and the new value or `None` of each non-trainable variable."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    mapping = [
        *zip(self.trainable_variables, trainable, strict=True),
        *zip(self.non_trainable_variables, non_trainable, strict=True),
    ]
    with DeferredUpdates(mapping) as deferred:
        step = self.run_exits(x, y, sample_weight, training=training)
    # A list in the order of the variables. JAX sorts a dict by its keys, which would be
    # memory addresses: every process would compile another program and never hit JAX's
    # compilation cache.
    assigned = {id(variable): value for variable, value in deferred.updates}
    return step, [assigned.get(id(v)) for v in self.non_trainable_variables]


def _choose(
    condition: Tensor, yes: TensorStructure, no: TensorStructure
) -> TensorStructure:
    return jax.tree.map(lambda a, b: jax.numpy.where(condition, a, b), yes, no)


def _logs(
    self: keras.Model,
    metrics_variables: list[Tensor],
    *result: Step | FiniteCheck | dict[str, Tensor],
) -> tuple[Logs, list[Tensor]]:
    mapping = list(zip(self.metrics_variables, metrics_variables, strict=True))
    scope = keras.StatelessScope(state_mapping=mapping)
    with scope:
        logs = self._update_logs(*result)
    return logs, [scope.get_current_value(v) for v in self.metrics_variables]
