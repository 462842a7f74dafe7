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
    self.optimizer.apply(tape.gradient(loss, variables), variables)
    return _logs(self, step)


def test_step(self, data):
    """Evaluate one batch and return the logs."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    return _logs(self, self._run_exits(x, y, sample_weight, training=False))


def _logs(self, step):
    # Keras' losses divide by the number of replicas; the logs show the whole mean.
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return self._update_logs(step, loss_scale=float(replicas))
