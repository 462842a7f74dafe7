"""The calls of all engines, an engine of one device, and shares of batches."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

Batch = tuple[np.ndarray, ...]  # Images, labels and perhaps sample weights.


class Engine:
    """One device; the engines below are of the same form.

    Attributes:
        replicas: How many equal shares a global batch is cut into, one for each device.
        processes: Number of processes.
        process: Number of this process, from 0; its share is the one of this number.
        local_process: Number of this process among those of its machine, from 0.
    """

    replicas = 1
    processes = 1
    process = 0
    local_process = 0

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the files."""
        return self.process == 0

    def wait(self) -> None:
        """Waits until all processes are here, and what they wrote is there."""

    @contextlib.contextmanager
    def in_turns(self) -> Iterator[None]:
        """Lets one process of each machine download a file before the others read it.

        The first process of all comes before those of other machines, which may have
        their home folders on the same disk.
        """
        turn = 0 if self.is_chief else 1 if self.local_process == 0 else 2
        for _ in range(turn):
            self.wait()
        yield
        for _ in range(turn, 2):
            self.wait()

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the context in which models are built, loaded and saved."""
        return contextlib.nullcontext()

    def fit(
        self,
        model: keras.Model,
        batches: Iterable[Batch],
        *,
        steps_per_epoch: int,
        epochs: int,
        initial_epoch: int = 0,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        verbose: int = 0,
        validation_data: Any = None,
    ) -> keras.callbacks.History:
        """Trains a compiled model.

        Args:
            model: Made in `scope()`.
            batches: This process' shares of the global batches of one epoch after the
                other, from the first one on whenever it is iterated over.
            steps_per_epoch: Batches in an epoch.
            epochs: Number of the last epoch.
            initial_epoch: Number of epochs that the model has behind it.
            callbacks: Keras callbacks, as for `keras.Model.fit`.
            verbose: Verbosity, as for `keras.Model.fit`.
            validation_data: Data as for `keras.Model.fit`, of which each process has an
                equal share; not with several workers of TensorFlow.
        """
        return model.fit(
            self._data(batches),
            steps_per_epoch=steps_per_epoch,
            epochs=epochs,
            initial_epoch=initial_epoch,
            callbacks=list(callbacks),
            verbose=verbose,
            validation_data=validation_data,
            shuffle=False,  # which Keras cannot do to such data
        )

    def _data(self, batches):
        """Returns the batches in a form that Keras' `fit` takes."""
        return (batch for batch in batches)


def share(batch: Batch, index: int, count: int) -> Batch:
    """Returns one of `count` equal parts of a batch."""
    return tuple(np.split(array, count)[index] for array in batch)


@dataclasses.dataclass(frozen=True)
class Shares:
    """Of global batches, which every process can make, the shares of one process.

    Args:
        batches: Global batches, from the first one on whenever they are iterated over.
        process: Number of the process, from 0.
        processes: How many equal shares each batch is cut into.
    """

    batches: Iterable[Batch]
    process: int
    processes: int

    def __iter__(self) -> Iterator[Batch]:
        """Begins with the first batch."""
        return (share(each, self.process, self.processes) for each in self.batches)
