"""Skipping of the batches of a resumed epoch that were trained before."""

import itertools
from typing import Any

import keras

from keras_selfdistill.backend.random_state import set_random_state
from keras_selfdistill.callbacks.checkpoints import Checkpoint
from keras_selfdistill.callbacks.training_state import assign, state_variables
from keras_selfdistill.utils.keras_internals import build_metrics
from keras_selfdistill.utils.type_aliases import Logs


class SkippedBatches:
    """Skips the batches of an epoch that were trained before the checkpoint.

    Steps are counted and other callbacks are called as usual, with the logs of the
    checkpoint; no weight changes.

    Args:
        model: Model whose training function is replaced for one batch at a time, so
            that an error in between does not leave a model that cannot train.
        checkpoint: Checkpoint within the epoch that begins; it may be at its start.
    """

    def __init__(self, model: keras.Model, checkpoint: Checkpoint):
        self._model = model
        self._checkpoint = checkpoint
        self._train_function = model.train_function
        self._logs: Logs | None = None
        # TensorFlow builds the metrics with the first batch.
        if checkpoint.batch and keras.backend.backend() != "tensorflow":
            self._restore_metrics()

    def skip_next(self) -> None:
        """Skip the next batch."""
        self._model.train_function = self._skip

    def is_over(self, batch: int) -> bool:
        """Return whether training continues with a batch.

        Args:
            batch: Index of the next batch.
        """
        return batch >= self._checkpoint.batch

    def restore_random_state(self) -> None:
        """Restore the random state of the checkpoint, behind the skipped batches."""
        # On PyTorch, the skipped steps would have drawn from the global generators, and
        # a new iterator over the data draws again. On TensorFlow, threads read ahead of
        # the steps, so the saved state belongs to no certain batch, but the state after
        # drawing the skipped batches is correct.
        random_now = self._checkpoint.about["random_now"]
        if random_now is not None and keras.backend.backend() != "tensorflow":
            set_random_state(random_now)

    def _skip(self, *arguments: Any) -> Any:
        """Draw data without training, and return what a training function returns."""
        self._model.train_function = self._train_function
        *state, data = arguments
        drawn = list(itertools.islice(data, self._model.steps_per_execution))
        if not drawn:
            raise StopIteration
        if self._logs is None:
            build_metrics(self._model, drawn[0])
            self._restore_metrics()
        return (self._logs, *state) if state else self._logs

    def _restore_metrics(self) -> None:
        variables = self._model.metrics_variables
        saved = self._checkpoint.arrays[len(state_variables(self._model)) :]
        shapes = [tuple(variable.shape) for variable in variables]
        if shapes != [array.shape for array in saved]:
            raise ValueError(
                "The checkpoint was saved within an epoch, with other metrics. "
                f"Received: {len(variables)} variables of metrics. Expected: "
                f"{len(saved)}, with the shapes in the checkpoint. Compile as before, "
                "or start from the beginning in another directory."
            )
        assign(variables, saved)
        self._logs = self._model.get_metrics_result()
