"""One training step and one test step on PyTorch."""

import keras
import torch

from keras_selfdistill.training.nonfinite import (
    DeferredUpdates,
    FiniteCheck,
    all_finite,
)


def train_step(self, data):
    """Update the weights with one batch and return the logs."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    variables = self.trainable_variables
    with DeferredUpdates.keeping(variables) as held:
        step = self._run_exits(x, y, sample_weight, training=True)
    # Not self.zero_grad(): Keras registers parameters by path, so that of two layers of
    # one name, in the base and in an external teacher, it knows one alone.
    for variable in variables:
        variable.value.grad = None
    if variables:
        self.optimizer.scale_loss(step.loss).backward()
    gradients = [variable.value.grad for variable in variables]
    with torch.no_grad():
        verdict = FiniteCheck(
            forward=all_finite([step.loss, *(value for _, value in held.updates)]),
            gradients=all_finite([g for g in gradients if g is not None]),
        )
        # First, because applying gradients may change the factor on the loss.
        magnitudes = self._gradient_magnitudes(gradients)
        held.assign(verdict.finite)
        if variables and verdict.applies(self.optimizer):
            self.optimizer.apply(gradients, variables)
    return self._update_logs(step, verdict, magnitudes)


def test_step(self, data):
    """Evaluate one batch and return the logs."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    return self._update_logs(self._run_exits(x, y, sample_weight, training=False))
