"""Steps with NaN or infinity: what they would change is held back; when to give up."""

import math
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_selfdistill.utils.keras_internals import value_without_autocast

# More than a search for the loss scale needs: Keras starts at 2¹⁵ and halves it.
PATIENCE = 100


class DeferredUpdates(keras.StatelessScope):
    """Holds back what a forward pass assigns to variables, such as moving statistics.

    Inside the scope a variable reads as if it had been assigned; outside it is as it
    was, until the values are assigned for good. Gradients are those of Keras' own step:
    on TensorFlow and PyTorch they end at an assignment, and what is read afterwards is
    the variable itself; on JAX they flow into what was assigned.

    Args:
        state_mapping: Pairs of variable and value to use in the scope.

    Example:
        >>> count = keras.Variable(1, trainable=False)
        >>> with DeferredUpdates() as held:
        ...     inside = int(ops.convert_to_numpy(count.assign_add(1)))
        >>> inside, int(ops.convert_to_numpy(count.value)), len(held.updates)
        (2, 1, 1)
        >>> held.assign(True)
        >>> int(ops.convert_to_numpy(count.value))
        2
    """

    def __init__(self, state_mapping: Iterable[tuple[Any, Any]] = ()):
        super().__init__(state_mapping=list(state_mapping), collect_losses=True)
        self._assigned: dict[int, Any] = {}

    @classmethod
    def keeping(cls, variables: Iterable[Any]) -> "DeferredUpdates":
        """Return a scope whose losses reach the variables themselves.

        Inside a scope, Keras regularises the values that the scope maps weights to.
        """
        # A list: torch.compile does not get past a generator.
        return cls([(v, v.value) for v in variables if v.regularizer is not None])

    def add_update(self, update: tuple[Any, Any]) -> None:
        """Keep what is assigned; called by Keras."""
        variable, value = update
        self._assigned[id(variable)] = variable
        if keras.backend.backend() != "jax":
            value = self._as_read_again(variable, value)
        super().add_update((variable, value))

    def _as_read_again(self, variable, value):
        """Return a value whose gradient is the variable's own, as after an assignment.

        A layer such as SpectralNormalization assigns a weight a function of itself, and
        reads it: Keras differentiates by what was read, not through the function.
        """
        value = ops.stop_gradient(value)
        if not variable.trainable:
            return value
        before = self.get_current_value(variable)
        before = value_without_autocast(variable) if before is None else before
        return value + (before - ops.stop_gradient(before))  # Adds 0, exactly.

    @property
    def updates(self) -> list[tuple[Any, Any]]:
        """Pairs of variable and new value, of those that were assigned."""
        return [(v, self.get_current_value(v)) for v in self._assigned.values()]

    def assign(self, condition: Any) -> None:
        """Assign the new values where a condition, a scalar, holds."""
        for variable, value in self.updates:
            variable.assign(ops.where(condition, value, variable.value))


class FiniteCheck(NamedTuple):
    """What of a training step is finite, as scalar tensors.

    Args:
        forward: The loss and all that the forward pass would assign.
        gradients: All gradients.
    """

    forward: Any
    gradients: Any

    @property
    def finite(self) -> Any:
        """Whether the step may change anything."""
        return ops.logical_and(self.forward, self.gradients)

    def applies(self, optimizer: keras.optimizers.Optimizer) -> Any:
        """Whether to call the optimizer.

        One that scales the loss looks at the gradients itself: it skips the step and
        lowers its scale. No scale helps a loss that is not finite, so such a step
        does not reach it: a few bad batches would lower the scale until gradients
        vanish.
        """
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            return self.forward
        return self.finite


def all_finite(tensors: Iterable[Any]) -> Any:
    """Return whether no tensor holds NaN or infinity, as a scalar.

    One pass over each and no copy: a sum with NaN or infinity in it is not finite. Nor
    is one past the range of float32, which no useful gradient comes near.

    Args:
        tensors: Of any shape and dtype; integers are always finite.

    Example:
        >>> import numpy as np
        >>> bool(all_finite([np.ones(3), np.array([np.inf, -np.inf])]))
        False
    """
    sums = [
        ops.sum(ops.cast(tensor, "float32"))
        for tensor in tensors
        if "float" in keras.backend.standardize_dtype(tensor.dtype)
    ]
    return ops.isfinite(ops.sum(ops.stack(sums))) if sums else ops.isfinite(0.0)


class StopWithoutProgress(keras.callbacks.Callback):
    """Ends a training in which no step changes the model any more.

    That is so after `PATIENCE` skipped steps in a row, looked at every `PATIENCE`
    batches and at an epoch's end, or after an epoch in which no loss was finite.

    Raises:
        FloatingPointError: It is so.
    """

    async_safe = True  # On JAX, Keras may call it while the next step runs.

    def __init__(self):
        super().__init__()
        self._lock = threading.Lock()
        self._idle = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Count from zero, as the logs do."""
        self._batches = self._seen = self._skipped = 0

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Look at the logs now and then."""
        with self._lock:
            self._batches = max(self._batches, batch + 1)
            if batch + 1 - self._seen >= PATIENCE:
                self._look(batch + 1, logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Look at the logs of the epoch."""
        logs = logs or {}
        if math.isnan(logs.get("loss", 0.0)):
            self._give_up(f"no loss of epoch {epoch + 1} ({self._batches} batches)")
        self._look(self._batches, logs)

    def _look(self, batches, logs):
        skipped = int((logs or {}).get("nonfinite_steps", 0))
        new, idle = batches - self._seen, skipped - self._skipped
        self._idle = self._idle + new if idle >= new else 0
        self._seen, self._skipped = batches, skipped
        if self._idle >= PATIENCE:
            self._give_up(f"none of the last {self._idle} steps")

    def _give_up(self, what):
        raise FloatingPointError(
            f"Nothing is learned. Received: {what} was finite, so no step has changed "
            "the model. Expected: finite samples, labels and weights. Look at one "
            "batch for NaN and infinity (np.isfinite), at the weights you started "
            "from, and at the learning rate; in mixed_float16 also for values past "
            "65504."
        )
