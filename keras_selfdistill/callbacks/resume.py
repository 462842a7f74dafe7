"""`Resume`: continues a stopped training, bit for bit as if it had not stopped."""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from absl import logging

from keras_selfdistill.backend.random_state import random_state, set_random_state
from keras_selfdistill.callbacks.checkpoints import Checkpoint, Checkpoints
from keras_selfdistill.callbacks.interrupts import InterruptsWait
from keras_selfdistill.callbacks.skipped_batches import SkippedBatches
from keras_selfdistill.callbacks.training_state import (
    assign,
    check_backend,
    check_model,
    signature,
    state_variables,
)
from keras_selfdistill.utils.keras_internals import (
    give_back_weights,
    set_initial_epoch,
)
from keras_selfdistill.utils.number_checks import is_positive_integer
from keras_selfdistill.utils.type_aliases import Logs, PathLike


class Resume(keras.callbacks.Callback):
    """Resume a stopped training, as if it had not stopped.

    Run the same program again: `fit` continues after the latest checkpoint. Weights,
    optimizer (loss scale, schedules), seeds of dropout and augmentation, metrics and
    logs are then bit-identical to those of a training that did not stop, if the
    operations of the backend are deterministic. Works for any built Keras model. A
    finished training is restored, and continues only if `epochs` is larger.

    Checkpoints are written atomically, also in case of a power failure. A checkpoint
    that is truncated, changed, or of another model is refused and logged, and the one
    before is used. A file with the exact name of a checkpoint counts as one, whoever
    put it there: that with the largest numbers is used, and checkpoints with smaller
    numbers than the latest `keep` are removed. Keep copies under other names; these,
    and links, are neither read nor removed. If a checkpoint cannot be written (the disk
    is full), `fit` stops with the error, and earlier checkpoints do not change. Ctrl-C
    is deferred to the end of the step and leaves a usable model; on JAX, without this
    callback, the model often has lost its weights.

    In the new process the data must start with the epoch in which `fit` continues;
    batches of this epoch that were trained before are drawn and skipped. Resuming is
    exact for:

    - Arrays, without `steps_per_epoch`. Keras shuffles them with a random state that is
      restored, except on TensorFlow: there, call `keras.utils.set_random_seed` first,
      or pass `shuffle=False`.
    - A `PyDataset` or data loader whose batches depend only on their index, the epoch,
      or the states of the global generators of Python, NumPy or PyTorch, used in the
      main thread. Keras does not pass the epoch to a `PyDataset`; use a
      `LambdaCallback`: `on_epoch_begin=lambda epoch, logs: data.set_epoch(epoch)`. Pass
      `shuffle=False` on TensorFlow, which shuffles in a thread.
    - A generator that starts with `initial_epoch`, see the example.
    - A `tf.data.Dataset` that is the same in every epoch, or starts with
      `initial_epoch`. A dataset that is reshuffled in every epoch
      (`reshuffle_each_iteration`, on by default) restarts with the first order.

    Not restored are the states of other callbacks, such as the patience of
    `EarlyStopping`, and the random states of TensorFlow's own operations
    (`tf.random`), which Keras layers do not use. Only one process may write to a
    directory; of several that train one model, the others pass `write=False`.

    Args:
        directory: Path of the folder of checkpoints, created if missing.
        save_freq: `"epoch"`, or the number of batches between checkpoints.
        keep: Number of checkpoints to keep; with two, one remains if one is damaged.
        write: Whether to write checkpoints; otherwise, they are only restored.

    Raises:
        ValueError: An argument is out of range; the model is not built; there are
            checkpoints, but none fits the model; or the data ends before the batch of
            the checkpoint.
        FileExistsError: Before the training, a link, a folder or a device has the name
            of a later checkpoint.

    Example:
        Put it last, so that it saves what the callbacks before it did:

        ```python
        resume = ksd.callbacks.Resume("run/checkpoints", save_freq=500)
        model.fit(
            batches(first_epoch=resume.initial_epoch),  # A generator over all epochs.
            steps_per_epoch=390,
            epochs=200,
            callbacks=[keras.callbacks.CSVLogger("run/log.csv", append=True), resume],
        )
        ```
    """

    def __init__(
        self,
        directory: PathLike,
        *,
        save_freq: str | int = "epoch",
        keep: int = 2,
        write: bool = True,
    ):
        super().__init__()
        if save_freq != "epoch" and not is_positive_integer(save_freq):
            raise ValueError(
                "Resume.save_freq must be 'epoch' or a number of batches of at least "
                f"1. Received: save_freq={save_freq!r}."
            )
        if not is_positive_integer(keep):
            raise ValueError(
                "Resume.keep must be an integer of at least 1. Received: "
                f"keep={keep!r}."
            )
        self._by_epoch = save_freq == "epoch"
        self._batches_between = math.inf if self._by_epoch else int(save_freq)
        self._checkpoints = Checkpoints(directory, keep)
        self._write = write
        self._promised_epoch: int | None = None
        self._restored: Checkpoint | None = None
        self._skipping: SkippedBatches | None = None
        self._interrupts = InterruptsWait()
        self._undisturbed: dict[str, Callable] = {}

    @property
    def initial_epoch(self) -> int:
        """The epoch, from 0, in which `fit` continues and the data has to start."""
        found = self._checkpoints.newest(check_backend)
        self._promised_epoch = 0 if found is None else found.epoch
        return self._promised_epoch

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Restore the newest checkpoint, if there is one."""
        if not self.model.built:
            raise ValueError(
                "Resume needs a model that is built. Received: the unbuilt model "
                f"{self.model.name!r}. Start it with keras.Input, or call it on a "
                "batch before fit."
            )
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        self._interrupts = InterruptsWait()
        self._undisturbed = {}
        self._delay_interrupts("train_function")
        self._skipping = None
        self._is_due = False
        self._unsaved_batches = 0
        self._restored = self._checkpoints.newest(self._check)
        if self._write:
            self._checkpoints.check_free(self._restored)
        epoch = 0 if self._restored is None else self._restored.epoch
        if self._promised_epoch not in (None, epoch):
            raise ValueError(
                f"The data starts with epoch {self._promised_epoch}, which was "
                "Resume.initial_epoch, but the newest checkpoint of this model is of "
                f"epoch {epoch}. Remove the checkpoints of other models from "
                f"{str(self._checkpoints.directory)!r}."
            )
        self._promised_epoch = None
        if self._restored is not None:
            state = state_variables(self.model)
            assign(state, self._restored.arrays[: len(state)])
            set_initial_epoch(self.model, epoch)
            logging.info("Resumed at epoch %d, batch %d.", *self._restored[:2])
            if epoch >= self.params["epochs"]:
                logging.warning(
                    "The training is finished: the newest checkpoint is of the end of "
                    "epoch %d, and fit trains %d. To continue, pass more epochs.",
                    *(epoch, self.params["epochs"]),
                )

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Restore the random states, and within an epoch also the metrics."""
        # Read by now; another fit of this model shall not begin with it.
        set_initial_epoch(self.model, None)
        self._epoch, self._last_batch = epoch, -1
        restored, self._restored = self._restored, None
        if restored is not None:
            # An epoch's order is drawn at its beginning.
            set_random_state(restored.about["random_at_epoch_begin"])
            if restored.about["random_now"] is not None:
                # Saved within the epoch: with the state of a recipe as this epoch's
                # beginning left it, which must not begin again.
                state = state_variables(self.model)
                assign(state, restored.arrays[: len(state)])
            self._skipping = SkippedBatches(self.model, restored)
        self._random_at_epoch_begin = random_state()

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Skip a batch that was trained before, or save the previous epoch."""
        self._interrupts.keep_out_of_next()
        self._end_skipping_at(batch)
        if self._skipping is not None:
            self._skipping.skip_next()
        elif self._is_due:
            self._save(self._epoch, batch, self._random_at_epoch_begin, random_state())

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Save after `save_freq` batches."""
        done, self._last_batch = batch - self._last_batch, batch
        if self._skipping is not None:
            # Before validation, which also draws from the random states.
            self._end_skipping_at(batch + 1)
            return
        self._unsaved_batches += done
        if self._unsaved_batches >= self._batches_between:
            begin = self._random_at_epoch_begin
            self._save(self._epoch, batch + 1, begin, random_state())
        self._interrupts.let_in()

    def _end_skipping_at(self, batch: int) -> None:
        """Let training continue if a batch is the first that was not trained before."""
        if self._skipping is not None and self._skipping.is_over(batch):
            self._skipping.restore_random_state()
            self._skipping = None

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Save the last epoch; others are saved when the next has drawn its order."""
        if self._skipping is not None:
            raise ValueError(
                f"Epoch {epoch} ended after {self._last_batch + 1} batches, but the "
                "checkpoint was saved after more. Continue with the data of the "
                "stopped training, or start from the beginning in another directory."
            )
        self._is_due = self._by_epoch
        if epoch + 1 == self.params["epochs"] or self.model.stop_training:
            self._save_end()

    def on_test_begin(self, logs: Logs | None = None) -> None:
        """Defer interrupts also in the steps of validation."""
        self._delay_interrupts("test_function")

    def on_test_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Defer interrupts in the step that begins."""
        self._interrupts.keep_out_of_next()

    def on_test_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Raise an interrupt of the step."""
        self._interrupts.let_in()

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Restore the functions of the model, and save the last epoch."""
        set_initial_epoch(self.model, None)
        for name, function in self._undisturbed.items():
            setattr(self.model, name, function)
        self._save_end()

    def _delay_interrupts(self, name: str) -> None:
        function = getattr(self.model, name)
        if name not in self._undisturbed:
            self._undisturbed[name] = function
            setattr(self.model, name, self._interrupts.around(function))

    def _save_end(self) -> None:
        if self._is_due:
            self._save(self._epoch + 1, 0, random_state(), None)

    def _save(
        self,
        epoch: int,
        batch: int,
        random_at_epoch_begin: dict[str, Any],
        random_now: dict[str, Any] | None,
    ) -> None:
        self._is_due = False
        self._unsaved_batches = 0
        if not self._write:
            return
        give_back_weights(self.model)
        variables = [*state_variables(self.model), *self.model.metrics_variables]
        about = {
            **signature(self.model),
            "random_at_epoch_begin": random_at_epoch_begin,
            "random_now": random_now,
        }
        arrays = [np.asarray(keras.ops.convert_to_numpy(each)) for each in variables]
        self._checkpoints.write(Checkpoint(epoch, batch, arrays, about))

    def _check(self, checkpoint: Checkpoint) -> None:
        check_model(checkpoint, self.model)
