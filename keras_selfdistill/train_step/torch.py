"""One training step and one test step on PyTorch."""

import keras
import torch


def train_step(self, data):
    """Update the weights with one batch and return the logs."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    step = self._run_exits(x, y, sample_weight, training=True)
    variables = self.trainable_variables
    # Not self.zero_grad(): Keras registers parameters by path, so that of two layers of
    # one name, in the base and in an external teacher, it knows one alone.
    for variable in variables:
        variable.value.grad = None
    if variables:
        self.optimizer.scale_loss(step.loss).backward()
        with torch.no_grad():
            self.optimizer.apply([v.value.grad for v in variables], variables)
    return self._update_logs(step)


def test_step(self, data):
    """Evaluate one batch and return the logs."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    return self._update_logs(self._run_exits(x, y, sample_weight, training=False))
