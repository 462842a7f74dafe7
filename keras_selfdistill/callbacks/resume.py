"""`Resume`: a training that was killed ends as one that was not, bit for bit."""

import math
import os
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


class Resume(keras.callbacks.Callback):
    """Go on with a training that was stopped, as if it never had been.

    Run the same program again: `fit` goes on after the last checkpoint, and ends with
    weights, optimizer (loss scale, schedules), seeds of dropout and augmentation,
    metrics and logs that equal, bit for bit, those of a training never stopped, where
    the backend's operations are deterministic. For any built Keras model. A finished
    training is restored, and trains on only if `epochs` has grown.

    A checkpoint is whole or not there, also after a power cut. One that is cut off,
    changed, or of another model is refused, with its name in the log, and the one
    before is used. Other files in the directory, also copies with other names and
    links, are neither read nor removed. If it cannot be written (the disk is full),
    `fit` stops with the error, and those before are as they were. Ctrl-C waits for the
    end of the step and leaves a usable model; on JAX, without this callback, it often
    has lost its weights.

    The data must begin, in the new process, with the epoch in which `fit` goes on; that
    epoch's batches that are done are drawn and dropped. That makes this exact:

    - Arrays, without `steps_per_epoch`. Keras shuffles them by a state that is restored
      here, but on TensorFlow by one that is not: there, call
      `keras.utils.set_random_seed` first, or pass `shuffle=False`.
    - A `PyDataset` or data loader whose batches follow from their index, the epoch, or
      the states of Python's, NumPy's or PyTorch's global generators, read in the main
      thread. Keras tells a `PyDataset` no epoch; a `LambdaCallback` can:
      `on_epoch_begin=lambda epoch, logs: data.set_epoch(epoch)`. With `shuffle=False`
      on TensorFlow, which shuffles in a thread.
    - A generator that begins with `initial_epoch`, see the example.
    - A `tf.data.Dataset` that is the same in every epoch, or made to begin with
      `initial_epoch`. One that is shuffled anew in every epoch
      (`reshuffle_each_iteration`, on by default) counts from the first again.

    Not restored: what other callbacks remember, such as `EarlyStopping` the epochs it
    waited, and the random states inside of TensorFlow's own operations (`tf.random`),
    which layers of Keras do not use. One process writes into one directory.

    Args:
        directory: Folder of this training's checkpoints, made if missing.
        save_freq: `"epoch"`, or a number of batches after which to save.
        keep: Number of checkpoints to keep; with two, there is one to fall back on.

    Raises:
        ValueError: An argument is out of range; the model is not built; there are
            checkpoints, but none of this model; or the data ends before the batch of
            the checkpoint.

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
        directory: str | os.PathLike,
        *,
        save_freq: str | int = "epoch",
        keep: int = 2,
    ):
        super().__init__()
        if save_freq != "epoch" and not _is_count(save_freq):
            raise ValueError(
                "Resume.save_freq must be 'epoch' or a number of batches of at least "
                f"1. Received: save_freq={save_freq!r}."
            )
        if not _is_count(keep):
            raise ValueError(
                "Resume.keep must be an integer of at least 1. Received: "
                f"keep={keep!r}."
            )
        self._by_epoch = save_freq == "epoch"
        self._batches_between = math.inf if self._by_epoch else int(save_freq)
        self._checkpoints = Checkpoints(directory, keep)
        self._promised_epoch: int | None = None
        self._restored: Checkpoint | None = None
        self._skipping: SkippedBatches | None = None
        self._interrupts = InterruptsWait()
        self._undisturbed: dict[str, Callable] = {}

    @property
    def initial_epoch(self) -> int:
        """The epoch in which `fit` goes on, from 0: where the data has to begin."""
        found = self._checkpoints.newest(check_backend)
        self._promised_epoch = 0 if found is None else found.epoch
        return self._promised_epoch

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Restore the newest checkpoint, if there is one."""
        if not self.model.built:
            raise ValueError(
                "Resume needs a model that is built. Received: the unbuilt model "
                f"{self.model.name!r}. Begin it with keras.Input, or call it on a "
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
        epoch = 0 if self._restored is None else self._restored.epoch
        if self._promised_epoch not in (None, epoch):
            raise ValueError(
                f"The data begins with epoch {self._promised_epoch}, which was "
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
                    "Nothing is trained: the newest checkpoint is of the end of epoch "
                    "%d, and fit trains %d. To go on, pass more epochs.",
                    *(epoch, self.params["epochs"]),
                )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Restore the random states, and the metrics inside of an epoch."""
        # Read by now; another fit of this model shall not begin with it.
        set_initial_epoch(self.model, None)
        self._epoch, self._last_batch = epoch, -1
        restored, self._restored = self._restored, None
        if restored is not None:
            # An epoch's order is drawn at its beginning.
            set_random_state(restored.about["random_at_epoch_begin"])
            self._skipping = SkippedBatches(self.model, restored)
        self._random_at_epoch_begin = random_state()

    def on_train_batch_begin(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Let a batch that is done go by; save, if the epoch before is to be."""
        self._interrupts.keep_out_of_next()
        if self._skipping is not None and self._skipping.is_over(batch):
            self._skipping = None
        if self._skipping is not None:
            self._skipping.skip_next()
        elif self._is_due:
            self._save(self._epoch, batch, self._random_at_epoch_begin, random_state())

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Save, if it is time to."""
        done, self._last_batch = batch - self._last_batch, batch
        if self._skipping is not None:
            # Before validation, which draws from the random states, too.
            if self._skipping.is_over(batch + 1):
                self._skipping = None
            return
        self._unsaved_batches += done
        if self._unsaved_batches >= self._batches_between:
            begin = self._random_at_epoch_begin
            self._save(self._epoch, batch + 1, begin, random_state())
        self._interrupts.let_in()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save the last epoch; others as soon as the next has drawn its order."""
        if self._skipping is not None:
            raise ValueError(
                f"Epoch {epoch} ended after {self._last_batch + 1} batches, but the "
                "checkpoint was saved after more. Go on with the data with which the "
                "training was begun, or begin anew in another directory."
            )
        self._is_due = self._by_epoch
        if epoch + 1 == self.params["epochs"] or self.model.stop_training:
            self._save_end()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Keep interrupts out of the steps of validation, too."""
        self._delay_interrupts("test_function")

    def on_test_batch_begin(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Keep interrupts out of the step that begins."""
        self._interrupts.keep_out_of_next()

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Let an interrupt in that came in the step."""
        self._interrupts.let_in()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leave the model as it was."""
        set_initial_epoch(self.model, None)
        for name, function in self._undisturbed.items():
            setattr(self.model, name, function)
        self._save_end()

    def _delay_interrupts(self, name):
        function = getattr(self.model, name)
        if name not in self._undisturbed:
            self._undisturbed[name] = function
            setattr(self.model, name, self._interrupts.around(function))

    def _save_end(self):
        if self._is_due:
            self._save(self._epoch + 1, 0, random_state(), None)

    def _save(self, epoch, batch, random_at_epoch_begin, random_now):
        self._is_due = False
        self._unsaved_batches = 0
        give_back_weights(self.model)
        variables = [*state_variables(self.model), *self.model.metrics_variables]
        about = {
            **signature(self.model),
            "random_at_epoch_begin": random_at_epoch_begin,
            "random_now": random_now,
        }
        arrays = [np.asarray(keras.ops.convert_to_numpy(each)) for each in variables]
        self._checkpoints.write(Checkpoint(epoch, batch, arrays, about))

    def _check(self, checkpoint):
        check_model(checkpoint, self.model)


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
