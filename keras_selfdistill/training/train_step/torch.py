"""Training and test step on PyTorch."""

import keras
import torch

from keras_selfdistill.backend.finite import all_finite
from keras_selfdistill.backend.processes import true_in_all
from keras_selfdistill.training.nonfinite import DeferredUpdates, FiniteCheck
from keras_selfdistill.utils.type_aliases import Logs, TensorStructure


def train_step(self: keras.Model, data: TensorStructure) -> Logs:
    """Update the weights with one batch and return the logs."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    variables = self.trainable_variables
    with DeferredUpdates.keeping(variables) as deferred:
        step = self.run_exits(x, y, sample_weight, training=True)
    # Not self.zero_grad(): Keras registers parameters by path, so if the base and the
    # external teacher have a layer of the same name, it knows only one of them.
    for variable in variables:
        variable.value.grad = None
    if variables:
        self.optimizer.scale_loss(step.loss).backward()
    with torch.no_grad():
        gradients = self._in_equilibrium([each.value.grad for each in variables])
        check = FiniteCheck(
            forward=all_finite([step.loss, *(value for _, value in deferred.updates)]),
            gradients=all_finite([g for g in gradients if g is not None]),
        )
        if self.process_group is not None:
            check = FiniteCheck(*true_in_all(check, self.process_group))
        # First, because applying gradients may change the loss scale.
        magnitudes = self._gradient_magnitudes(gradients)
        if check.finite:
            deferred.assign(True)
        if variables and check.applies(self.optimizer):
            self.optimizer.apply(gradients, variables)
    return self._update_logs(step, check, magnitudes)


def test_step(self: keras.Model, data: TensorStructure) -> Logs:
    """Evaluate one batch and return the logs."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    return self._update_logs(self.run_exits(x, y, sample_weight, training=False))
