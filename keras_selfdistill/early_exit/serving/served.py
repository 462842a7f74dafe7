"""The part of an `EarlyExit` that answers single requests, batched with others."""

import threading
import weakref
from types import TracebackType
from typing import Self

from keras_selfdistill.early_exit.calibration import Calibration
from keras_selfdistill.early_exit.result import Setting
from keras_selfdistill.early_exit.serving.request import ResultFuture
from keras_selfdistill.early_exit.serving.worker import CLOSED, Worker
from keras_selfdistill.utils.number_checks import is_finite_number, is_positive_integer
from keras_selfdistill.utils.type_aliases import Data


class ServedExits(Calibration):
    """The part of an `EarlyExit` that answers single requests, batched with others."""

    _worker: Worker | None = None
    _stop: weakref.finalize | None = None  # Ends the worker's thread with this object.
    _closed = False

    def start(self, batch_size: int = 32, max_queued: int = 256) -> Self:
        """Start the background thread of `submit`, which otherwise starts it itself.

        The thread has the dtype policy, the distribution and the choice of flash
        attention of the calling thread, which Keras keeps per thread.

        Args:
            batch_size: Number of samples a section processes at once.
            max_queued: Largest number of samples that have been submitted and have no
                result yet. They are kept in memory.

        Returns:
            This object, so that `with fast.start(batch_size=8):` closes it.

        Raises:
            ValueError: An argument is no integer of at least 1.
            RuntimeError: It runs already.
        """
        for name, value in (("batch_size", batch_size), ("max_queued", max_queued)):
            if not is_positive_integer(value):
                raise ValueError(
                    f"`{name}` is out of range. Received: {name}={value!r}. Expected: "
                    "an integer of at least 1."
                )
        with self._lock:
            if self._worker is not None and self._worker.is_open:
                raise RuntimeError(
                    "This EarlyExit accepts requests already. Received: start after "
                    "start or submit. Expected: close() first."
                )
            self._begun(batch_size, max_queued)
        return self

    def _begun(self, batch_size: int, max_queued: int) -> Worker:
        worker = Worker(batch_size, max_queued)
        if self._stop is not None:
            self._stop.detach()
        # The thread does not keep this object alive.
        self._stop = weakref.finalize(self, worker.stop)
        self._stop.atexit = False
        self._worker, self._closed = worker, False
        return worker

    def submit(self, x: Data, timeout: float | None = 0.0) -> ResultFuture:
        """Predict samples in the background, in batches with those of other calls.

        For services: call it from any number of threads, and wait for the future. A
        background thread runs each section on the samples that wait in front of it,
        whichever requests they belong to. Samples have the thresholds and temperatures
        that are set when they are submitted.

        Args:
            x: One or several samples: an array with a batch axis, or a tuple or dict of
                arrays for several inputs. They are copied.
            timeout: Seconds to wait if `max_queued` samples have no result yet; `None`
                waits without limit; waiting calls are accepted in any order. By
                default it raises at once, so that a service refuses what it cannot
                answer soon. Callbacks of futures never wait for this object.

        Returns:
            A future whose result is that of `predict(x)`, up to rounding. If a section
            or the criterion raises an error, it has that error. `cancel()` works until
            the first section begins; until then its samples count as queued.

        Raises:
            ValueError: There are no thresholds yet, or the samples do not fit the base,
                or are more than `max_queued`.
            TypeError: `x` is not arrays.
            queue.Full: `max_queued` samples had no result within `timeout`.
            RuntimeError: It was closed, it broke, or this process was forked since it
                started.

        Example:
            >>> import numpy as np
            >>> import keras_selfdistill as ksd
            >>> base = ksd.networks.resnet18(width_multiplier=0.125, classes=10)
            >>> model = ksd.SelfDistiller(base, taps=1, recipe="byot")
            >>> with ksd.EarlyExit(model, thresholds=0.0) as fast:
            ...     future = fast.submit(np.ones((1, 32, 32, 3)))
            >>> future.result().exits.tolist()
            ['exit_1']
        """
        if timeout is not None and not (
            is_finite_number(timeout) and 0 <= timeout <= threading.TIMEOUT_MAX
        ):
            raise ValueError(
                f"`timeout` is out of range. Received: timeout={timeout!r}. Expected: "
                f"seconds from 0 to {threading.TIMEOUT_MAX:.0f}, or None to wait "
                "without limit."
            )
        setting = self._setting("submit")
        tensors = setting.cascade.request(x)
        with self._lock:
            if self._closed:
                raise RuntimeError(CLOSED)
            worker = self._worker or self._begun(batch_size=32, max_queued=256)
        return worker.submit(setting, tensors, timeout)

    def close(self) -> None:
        """Finish all requests that were submitted, and end the background thread.

        Afterwards `submit` raises an error, until `start`; `predict` works as before.
        A program that ends closes it, too. In a callback of a future it returns without
        waiting.
        """
        with self._lock:
            self._closed = True
            worker = self._worker
        if worker is not None:
            worker.close()

    def __copy__(self) -> Self:
        """Share the model and its compiled sections, and take over no requests."""
        copied = object.__new__(type(self))
        with self._lock:
            vars(copied).update(vars(self))
        own = {"_worker": None, "_stop": None, "_closed": False}
        vars(copied).update(own, _lock=threading.RLock())
        return copied

    def __enter__(self) -> Self:
        """Return this object, which is started if it is not yet."""
        with self._lock:
            if self._worker is None or not self._worker.is_open:
                self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _setting(self, method: str) -> Setting:
        """Return what a method predicts with now, whatever changes later."""
        with self._lock:
            found = self._latencies
            return Setting(
                self._cascade,
                self._limits(method),
                tuple(self.exit_names),
                None if found is None else tuple(found.tolist()),
            )
