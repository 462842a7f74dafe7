"""The batches of a resumed epoch that were trained before the training stopped."""

import itertools
from typing import Any

import keras

from keras_selfdistill.backend.random_state import set_random_state
from keras_selfdistill.callbacks.checkpoints import Checkpoint
from keras_selfdistill.callbacks.training_state import assign, state_variables
from keras_selfdistill.utils.keras_internals import build_metrics


class SkippedBatches:
    """Lets the batches of an epoch that are done go by, none at its beginning.

    The steps are counted and the other callbacks called as ever, with the logs of the
    checkpoint; no weight moves.

    Args:
        model: Its training function is replaced, for one batch at a time: were it for
            longer, an error meanwhile would leave a model that does not train.
        checkpoint: Of the epoch that begins.
    """

    def __init__(self, model: keras.Model, checkpoint: Checkpoint):
        self._model = model
        self._checkpoint = checkpoint
        self._train_function = model.train_function
        self._logs: dict[str, Any] | None = None
        # TensorFlow builds the metrics with the first batch.
        if checkpoint.batch and keras.backend.backend() != "tensorflow":
            self._restore_metrics()

    def skip_next(self) -> None:
        """Let the next batch go by."""
        self._model.train_function = self._skip

    def is_over(self, batch: int) -> bool:
        """Return whether training goes on with `batch`, the next."""
        if batch < self._checkpoint.batch:
            return False
        # On PyTorch, the steps that are left out draw from the global generators, and
        # so does a new iterator over the data, where the training had an old one. On
        # TensorFlow, it is threads that read ahead of the steps, so that what was saved
        # is of no certain batch; what the dropped batches drew now, is.
        random_now = self._checkpoint.about["random_now"]
        if random_now is not None and keras.backend.backend() != "tensorflow":
            set_random_state(random_now)
        return True

    def _skip(self, *arguments):
        """Draw data, train nothing, return what a training function would."""
        self._model.train_function = self._train_function
        *state, data = arguments
        drawn = list(itertools.islice(data, self._model.steps_per_execution))
        if not drawn:
            raise StopIteration
        if self._logs is None:
            build_metrics(self._model, drawn[0])
            self._restore_metrics()
        return (self._logs, *state) if state else self._logs

    def _restore_metrics(self):
        variables = self._model.metrics_variables
        saved = self._checkpoint.arrays[len(state_variables(self._model)) :]
        shapes = [tuple(variable.shape) for variable in variables]
        if shapes != [array.shape for array in saved]:
            raise ValueError(
                "The checkpoint was saved inside of an epoch, with other metrics. "
                f"Received: {len(variables)} variables of metrics. Expected: "
                f"{len(saved)}, of the shapes in the checkpoint. Compile as before, or "
                "begin anew in another directory."
            )
        assign(variables, saved)
        self._logs = self._model.get_metrics_result()
