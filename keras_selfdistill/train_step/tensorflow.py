"""One training step and one test step on TensorFlow."""

import keras
import tensorflow as tf


def train_step(self, data):
    """Update the weights with one batch and return the logs."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    with tf.GradientTape() as tape:
        step = self._run_exits(x, y, sample_weight, training=True)
        loss = self.optimizer.scale_loss(step.loss)
    variables = self.trainable_variables
    _check_scope(variables)
    self.optimizer.apply(tape.gradient(loss, variables), variables)
    return _logs(self, step)


def test_step(self, data):
    """Evaluate one batch and return the logs."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    return _logs(self, self._run_exits(x, y, sample_weight, training=False))


def _check_scope(variables):
    """Refuse weights that the replicas do not share: Keras' own error has no words."""
    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync == 1:
        return
    outside = [
        variable.path
        for variable in variables
        if not strategy.extended.variable_created_in_scope(variable.value)
    ]
    if outside:
        raise ValueError(
            f"The wrapper was made in the scope of {type(strategy).__name__}, but "
            f"{len(outside)} of its {len(variables)} trainable weights were not. "
            f"Received, among others: {outside[0]!r}. Build or load the base, too, "
            "inside of `with strategy.scope():`."
        )


def _logs(self, step):
    # Keras' losses divide by the number of replicas; the logs show the whole mean.
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return self._update_logs(step, loss_scale=float(replicas))
