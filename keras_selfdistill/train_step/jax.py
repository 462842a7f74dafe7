"""One training step and one test step on JAX, as functions of all state."""

import jax
import keras


def train_step(self, state, data):
    """Return the logs of one batch and the state after one update."""
    trainable, non_trainable, optimizer_variables, metrics_variables = state

    def scaled_loss(trainable):
        step, updated = _forward(self, trainable, non_trainable, data, training=True)
        mapping = list(zip(self.optimizer.variables, optimizer_variables, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            loss = self.optimizer.scale_loss(step.loss)
        return loss, (step, updated)

    gradients, (step, non_trainable) = jax.grad(scaled_loss, has_aux=True)(trainable)
    trainable, optimizer_variables = self.optimizer.stateless_apply(
        optimizer_variables, gradients, trainable
    )
    logs, metrics_variables = _logs(self, step, metrics_variables)
    return logs, (trainable, non_trainable, optimizer_variables, metrics_variables)


def test_step(self, state, data):
    """Return the logs of one batch and the state after it."""
    trainable, non_trainable, metrics_variables = state
    step, non_trainable = _forward(self, trainable, non_trainable, data, training=False)
    logs, metrics_variables = _logs(self, step, metrics_variables)
    return logs, (trainable, non_trainable, metrics_variables)


def _forward(self, trainable, non_trainable, data, training):
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    mapping = [
        *zip(self.trainable_variables, trainable, strict=True),
        *zip(self.non_trainable_variables, non_trainable, strict=True),
    ]
    scope = keras.StatelessScope(state_mapping=mapping, collect_losses=True)
    with scope:
        step = self._run_exits(x, y, sample_weight, training=training)
    return step, [scope.get_current_value(v) for v in self.non_trainable_variables]


def _logs(self, step, metrics_variables):
    mapping = list(zip(self.metrics_variables, metrics_variables, strict=True))
    scope = keras.StatelessScope(state_mapping=mapping)
    with scope:
        logs = self._update_logs(step)
    return logs, [scope.get_current_value(v) for v in self.metrics_variables]
