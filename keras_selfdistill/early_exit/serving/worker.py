"""One thread that runs the sections for the requests of many threads."""

import atexit
import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import os
import queue
import threading
import weakref

import numpy as np

from keras_selfdistill.backend.thread_settings import thread_settings
from keras_selfdistill.early_exit.result import EarlyExitResult, Setting
from keras_selfdistill.early_exit.scheduler import Chunk, SectionQueues, next_section
from keras_selfdistill.early_exit.scoring import Exited, exiting

ResultFuture = concurrent.futures.Future[EarlyExitResult]


@dataclasses.dataclass(eq=False)
class _Request:
    """Samples that were submitted together.

    Args:
        setting: What they are predicted with.
        tensors: Inputs of the first section.
        future: Gets the result.
        found: Predictions so far, with a row for each sample.
        missing: Number of samples that have not exited.
    """

    setting: Setting
    tensors: list[np.ndarray]
    future: ResultFuture
    found: Exited
    missing: int

    @property
    def kind(self) -> tuple[object, ...]:
        """What requests have in common that may be in one batch."""
        return self.setting, [array.shape[1:] for array in self.tensors]


class Worker:
    """A thread that runs sections, and the requests that wait for it.

    Requests that arrive while others are half-way join the queues in front of the
    sections. Those with another setting, or of another shape, begin when the ones
    before them have been answered.

    Args:
        batch_size: Number of samples a section processes at once.
        max_queued: Largest number of samples that have been accepted, but not answered.
    """

    def __init__(self, batch_size: int, max_queued: int) -> None:
        self._batch_size = batch_size
        self._capacity = max_queued
        self._changed = threading.Condition()  # Guards the three below.
        self._arrived: collections.deque[_Request] = collections.deque()
        self._accepted = 0  # Samples.
        self._closing = False
        # Of the worker's thread alone:
        self._kind: tuple[object, ...] | None = None
        self._queues: SectionQueues | None = None
        self._passed: list[int] = []
        self._owners: dict[int, tuple[_Request, int]] = {}  # And the row, by id.
        self._ids = itertools.count()
        self._adopt_settings = thread_settings()
        self._process = os.getpid()
        # A daemon, so that the program ends: `_close_all` lets it finish before.
        self._thread = threading.Thread(
            target=self._work, name="EarlyExit", daemon=True
        )
        _close_at_exit()
        _WORKERS.add(self)
        self._thread.start()

    @property
    def is_open(self) -> bool:
        """Whether it runs in this process and accepts requests."""
        return not self._closing and not self._is_forked

    @property
    def _is_forked(self) -> bool:
        return os.getpid() != self._process

    def submit(
        self, setting: Setting, tensors: list[np.ndarray], timeout: float | None
    ) -> ResultFuture:
        """Accept a request and return the future of its result.

        Args:
            setting: What the samples are predicted with.
            tensors: Inputs of the first section, which nobody changes.
            timeout: Seconds to wait until fewer samples wait; `None` for no limit.

        Raises:
            queue.Full: So many samples wait.
            RuntimeError: The worker was closed, or is one of another process.
            ValueError: There are more samples than may wait.
        """
        samples = len(tensors[0])
        found = Exited.none(setting.cascade.classes, samples)
        request = _Request(setting, tensors, ResultFuture(), found, samples)
        if self._is_forked:
            raise RuntimeError(_FORKED)
        if samples > self._capacity:
            raise ValueError(
                f"A request is too large. Received: {samples} samples. Expected: at "
                f"most {self._capacity}, the max_queued of start(); or use predict(x)."
            )
        if threading.current_thread() is self._thread:  # It would wait for itself.
            timeout = 0.0
        with self._changed:
            fits = self._changed.wait_for(
                lambda: self._closing or self._accepted + samples <= self._capacity,
                timeout,
            )
            if self._closing:
                raise RuntimeError(CLOSED)
            if not fits:
                raise queue.Full(
                    f"Too many samples wait. Received: {samples} more than "
                    f"{self._accepted} that have no result yet. Expected: at most "
                    f"{self._capacity}, the max_queued of start(). Try again later, or "
                    "pass timeout= to wait."
                )
            if samples:
                self._accepted += samples
                self._arrived.append(request)
                self._changed.notify_all()
        if not samples:
            request.future.set_result(setting.result(found))
        return request.future

    def stop(self) -> None:
        """Accept no more requests; the thread ends after those that it has."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def close(self) -> None:
        """Accept no more requests, and wait until all others are answered."""
        if self._is_forked:
            return
        self.stop()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _work(self) -> None:
        try:
            self._adopt_settings()
            while self._next():
                self._step()
        except BaseException as error:  # Nobody may wait for ever.
            self._abort(error)
            raise

    def _next(self) -> bool:
        """Wait for samples and queue them; return whether there are any."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._arrived or self._owners or self._closing
            )
            while self._arrived and self._takes(self._arrived[0]):
                request = self._arrived.popleft()
                # What was cancelled never begins.
                if request.future.set_running_or_notify_cancel():
                    self._begin(request)
                else:
                    self._release(request)
            return bool(self._owners or self._arrived or not self._closing)

    def _takes(self, request: _Request) -> bool:
        """Return whether a request can join those that have begun."""
        if not self._owners:
            return True
        waiting = self._queues.waiting[0] if self._queues else 0
        return waiting < self._batch_size and request.kind == self._kind

    def _begin(self, request: _Request) -> None:
        if self._queues is None or request.kind != self._kind:
            self._kind = request.kind
            cascade, thresholds, *_ = request.setting
            decide = exiting(cascade.scorer, thresholds, self._exited)
            self._queues = cascade.queues(decide, self._batch_size)
            self._passed = [0] * len(self._queues.waiting)
        rows = np.arange(request.missing)
        ids = np.array([next(self._ids) for _ in rows])
        self._owners.update((i, (request, row)) for row, i in enumerate(ids.tolist()))
        self._queues.put(Chunk(request.tensors, rows, {"id": ids}))

    def _step(self) -> None:
        """Run one section on one batch."""
        if self._queues is None or not any(waiting := self._queues.waiting):
            return
        index = next_section(waiting, self._passed, self._batch_size)
        self._passed = [
            0 if i == index or not samples else passed + 1
            for i, (samples, passed) in enumerate(
                zip(waiting, self._passed, strict=True)
            )
        ]
        self._run(self._queues, index, self._queues.take(index))

    def _run(self, queues: SectionQueues, index: int, chunk: Chunk) -> None:
        """Run a section on a batch; if it fails, on every request by itself."""
        try:
            # With a copy of the memory, which is changed half-way.
            queues.run(index, chunk.part(slice(None)))
        except BaseException as error:
            owners = [self._owner(i) for i in chunk.memory["id"].tolist()]
            requests = {id(each): each for each in owners if each is not None}
            for request in requests.values():
                if len(requests) == 1:
                    self._fail(request, error)
                    continue
                chosen = np.array([each is request for each in owners])
                self._run(queues, index, queues.part(chunk, chosen))

    def _owner(self, number: int) -> _Request | None:
        return self._owners.get(number, (None, 0))[0]

    def _exited(self, exited: Exited) -> None:
        """Keep the predictions of samples, and finish requests that have all."""
        for number, *values in zip(*exited, strict=True):
            request, row = self._owners.pop(int(number), (None, 0))
            if request is None or request.future.done():  # Other samples of it failed.
                continue
            for column, value in zip(request.found[1:], values, strict=True):
                column[row] = value
            request.missing -= 1
            if not request.missing:
                self._release(request)
                request.future.set_result(request.setting.result(request.found))

    def _fail(self, request: _Request, error: BaseException) -> None:
        self._owners = {
            number: each
            for number, each in self._owners.items()
            if each[0] is not request
        }
        if not self._owners:  # Other samples of the request wait for nothing.
            self._queues = None
        self._release(request)
        request.future.set_exception(error)

    def _release(self, request: _Request) -> None:
        with self._changed:
            self._accepted -= len(request.found.ids)
            self._changed.notify_all()

    def _abort(self, error: BaseException) -> None:
        """Close, and fail all that have no result."""
        with self._changed:
            self._closing = True
            waiting = list(self._arrived)
            self._arrived.clear()
            self._changed.notify_all()
        begun = {id(each): each for each, _ in self._owners.values()}
        for request in [*begun.values(), *waiting]:
            if not request.future.done():
                request.future.set_exception(error)


CLOSED = (
    "This EarlyExit was closed. Received: submit after close. Expected: start() first, "
    "which begins another worker."
)
_FORKED = (
    "The worker of this EarlyExit runs in another process. Received: submit in a "
    "process that was forked from it. Expected: start() in this process; better, a "
    "process of its own that loads the file of save()."
)
_WORKERS: weakref.WeakSet[Worker] = weakref.WeakSet()


@functools.cache
def _close_at_exit() -> None:
    """Let workers finish at exit, before the backend, imported earlier, is closed."""
    atexit.register(_close_all)


def _close_all() -> None:
    for worker in list(_WORKERS):
        worker.close()
