"""Handling of NaN and infinity: deferred updates, finite checks, and a stop."""

import math
import threading
from collections.abc import Iterable
from typing import NamedTuple, NoReturn

import keras
from keras import ops

from keras_selfdistill.utils.keras_internals import value_without_autocast
from keras_selfdistill.utils.type_aliases import Logs, Tensor

# More steps than the search for a loss scale skips: Keras starts at 2¹⁵ and halves it.
PATIENCE = 100


class DeferredUpdates(keras.StatelessScope):
    """Scope that defers the updates of a forward pass, such as moving statistics.

    Inside the scope a variable has its new value; outside it keeps its old value until
    `assign` is called. Gradients are those of a Keras training step: on TensorFlow and
    PyTorch they end at an assignment, and later reads have the gradient of the
    variable; on JAX they flow through the assigned value.

    Args:
        state_mapping: Pairs of a variable and its value in the scope.

    Example:
        >>> count = keras.Variable(1, trainable=False)
        >>> with DeferredUpdates() as deferred:
        ...     inside = int(ops.convert_to_numpy(count.assign_add(1)))
        >>> inside, int(ops.convert_to_numpy(count.value)), len(deferred.updates)
        (2, 1, 1)
        >>> deferred.assign(True)
        >>> int(ops.convert_to_numpy(count.value))
        2
    """

    def __init__(self, state_mapping: Iterable[tuple[keras.Variable, Tensor]] = ()):
        super().__init__(state_mapping=list(state_mapping), collect_losses=True)
        self._assigned: dict[int, keras.Variable] = {}

    @classmethod
    def keeping(cls, variables: Iterable[keras.Variable]) -> "DeferredUpdates":
        """Return a scope in which the losses of regularisers reach the variables.

        In a scope, Keras applies regularisers to the values that variables have there.

        Args:
            variables: Trainable variables.
        """
        # A list, because torch.compile does not support a generator here.
        return cls([(v, v.value) for v in variables if v.regularizer is not None])

    def add_update(self, update: tuple[keras.Variable, Tensor]) -> None:
        """Store an update instead of assigning it; called by Keras."""
        variable, value = update
        self._assigned[id(variable)] = variable
        if keras.backend.backend() != "jax":
            value = self._as_read_again(variable, value)
        super().add_update((variable, value))

    def _as_read_again(self, variable: keras.Variable, value: Tensor) -> Tensor:
        """Return the value with the gradient of the variable, as after an assignment.

        A layer such as SpectralNormalization assigns a function of a weight to the
        weight and reads it again. Keras differentiates with respect to the weight that
        was read, not through the function.
        """
        value = ops.stop_gradient(value)
        if not variable.trainable:
            return value
        before = self.get_current_value(variable)
        before = value_without_autocast(variable) if before is None else before
        return value + (before - ops.stop_gradient(before))  # Adds 0, exactly.

    @property
    def updates(self) -> list[tuple[keras.Variable, Tensor]]:
        """Pairs of an updated variable and its new value."""
        return [(v, self.get_current_value(v)) for v in self._assigned.values()]

    def assign(self, condition: Tensor | bool) -> None:
        """Assign the new values if a condition is true.

        Args:
            condition: Boolean scalar.
        """
        for variable, value in self.updates:
            if condition is not True:
                value = ops.where(condition, value, variable.value)
            variable.assign(value)


class FiniteCheck(NamedTuple):
    """Whether a training step is finite, as boolean scalars.

    Args:
        forward: Whether the loss and all updates of the forward pass are finite.
        gradients: Whether all gradients are finite.
    """

    forward: Tensor
    gradients: Tensor

    @property
    def finite(self) -> Tensor:
        """Whether the updates of the step may be applied."""
        return ops.logical_and(self.forward, self.gradients)

    def applies(self, optimizer: keras.optimizers.Optimizer) -> Tensor:
        """Return whether to call the optimizer.

        A `LossScaleOptimizer` checks the gradients itself: it skips the step and
        lowers its scale. It is not called if the loss is not finite, because no scale
        helps then: a few bad batches would lower the scale until gradients vanish.

        Args:
            optimizer: Optimizer of the model.
        """
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            return self.forward
        return self.finite


class StopWithoutProgress(keras.callbacks.Callback):
    """Stops a training whose steps no longer change the model.

    It stops after `PATIENCE` consecutive skipped steps, checked every `PATIENCE`
    batches and at the end of an epoch, or after an epoch without a finite loss.

    Raises:
        FloatingPointError: The training is stopped.
    """

    async_safe = True  # On JAX, Keras may call it during the next step.

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._idle = 0

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Reset the counts, as the logs are reset."""
        self._batches = self._seen = self._skipped = 0

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Check the logs every `PATIENCE` batches."""
        with self._lock:
            self._batches = max(self._batches, batch + 1)
            if batch + 1 - self._seen >= PATIENCE:
                self._check(batch + 1, logs)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Check the logs of the epoch."""
        logs = logs or {}
        if math.isnan(logs.get("loss", 0.0)):
            self._stop(f"no loss of epoch {epoch + 1} ({self._batches} batches)")
        self._check(self._batches, logs)

    def _check(self, batches: int, logs: Logs | None) -> None:
        skipped = int((logs or {}).get("nonfinite_steps", 0))
        new, idle = batches - self._seen, skipped - self._skipped
        self._idle = self._idle + new if idle >= new else 0
        self._seen, self._skipped = batches, skipped
        if self._idle >= PATIENCE:
            self._stop(f"none of the last {self._idle} steps")

    def _stop(self, received: str) -> NoReturn:
        raise FloatingPointError(
            f"Training does not change the model. Received: {received} was finite. "
            "Expected: finite samples, labels and weights. Check a batch and the "
            "initial weights for NaN and infinity (np.isfinite), and the learning "
            "rate; in mixed_float16 also values above 65504."
        )
