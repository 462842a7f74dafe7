"""One thread that runs the sections for the requests of many threads."""

import atexit
import collections
import functools
import itertools
import os
import queue
import threading
import weakref

import numpy as np

from keras_selfdistill.backend.thread_settings import thread_settings
from keras_selfdistill.early_exit.exited import Waiting, exiting, fetched
from keras_selfdistill.early_exit.result import Setting
from keras_selfdistill.early_exit.scheduler import Chunk, SectionQueues, next_section
from keras_selfdistill.early_exit.serving.request import Request, ResultFuture


class Worker:
    """A thread that runs sections, and the requests that wait for it.

    Requests that arrive while others are half-way join the queues in front of the
    sections. Those with another setting, or of another shape, begin when the ones
    before them have been answered. An error fails the requests that it concerns; the
    thread goes on with the others.

    Args:
        batch_size: Number of samples a section processes at once.
        max_queued: Largest number of samples that have been accepted, but not answered.
    """

    def __init__(self, batch_size: int, max_queued: int) -> None:
        self._batch_size = batch_size
        self._capacity = max_queued
        self._changed = threading.Condition()  # Guards the four below.
        self._arrived: collections.deque[Request] = collections.deque()
        self._accepted = 0  # Samples.
        self._closing = False
        self._broken_by: BaseException | None = None
        # Of the worker's thread alone:
        self._batch_key: tuple[object, ...] | None = None
        self._queues: SectionQueues | None = None
        self._passed: list[int] = []
        self._complete: list[Request] = []  # All their samples have exited.
        self._owners: dict[int, tuple[Request, int]] = {}  # And the row, by id.
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
            RuntimeError: The worker was closed or broke, or is one of another process.
            ValueError: There are more samples than may wait.
        """
        if self._is_forked:
            raise RuntimeError(_FORKED)
        request = Request.of(setting, tensors)
        samples = request.missing
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
                raise RuntimeError(
                    _BROKEN if self._broken_by else CLOSED
                ) from self._broken_by
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
            request.answer()
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
            while self._wait():
                while (request := self._next_request()) is not None:
                    self._begin(request)
                self._step()
        except BaseException as error:  # Nobody may wait for ever.
            self._break(error)
            raise

    def _wait(self) -> bool:
        """Wait for samples; return whether there are any, or may be."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._arrived or self._owners or self._closing
            )
            return bool(self._owners or self._arrived or not self._closing)

    def _next_request(self) -> Request | None:
        """Remove and return the request that begins now, if one does."""
        with self._changed:
            while self._arrived and self._takes(self._arrived[0]):
                request = self._arrived.popleft()
                if request.future.set_running_or_notify_cancel():
                    return request
                self._release(request)  # What was cancelled never begins.
        return None

    def _takes(self, request: Request) -> bool:
        """Return whether a request can join those that have begun."""
        if not self._owners:
            return True
        waiting = self._queues.waiting[0] if self._queues else 0
        return waiting < self._batch_size and request.batch_key == self._batch_key

    def _begin(self, request: Request) -> None:
        try:
            self._put(request)
        except BaseException as error:
            self._fail(request, error)

    def _put(self, request: Request) -> None:
        """Queue the samples of a request in front of the first section."""
        if self._queues is None or request.batch_key != self._batch_key:
            cascade, thresholds, *_ = request.setting
            decide = exiting(cascade.scorer, thresholds, self._exited)
            self._queues = cascade.queues(decide, self._batch_size)
            self._passed = [0] * len(self._queues.waiting)
            self._batch_key = request.batch_key
        rows = np.arange(request.missing)
        ids = np.array([next(self._ids) for _ in rows])
        self._owners.update((i, (request, row)) for row, i in enumerate(ids.tolist()))
        self._queues.put(Chunk(request.tensors, rows, {"id": ids}))

    def _step(self) -> None:
        """Run one section on one batch, and answer the requests that it completes."""
        if self._queues is None or not any(waiting := self._queues.waiting):
            return
        index = next_section(waiting, self._passed, self._batch_size)
        self._passed = [
            0 if i == index or not samples else passed + 1
            for i, (samples, passed) in enumerate(
                zip(waiting, self._passed, strict=True)
            )
        ]
        try:
            self._run(self._queues, index, self._owned(self._queues.take(index)))
        except BaseException as error:  # Such as no memory to gather a batch.
            self._fail_all(error)
        # Not from within the section: callbacks of futures may raise anything.
        while self._complete:
            request = self._complete.pop(0)
            self._release(request)
            request.answer()

    def _owned(self, chunk: Chunk) -> Chunk:
        """Return a batch without samples of requests that failed."""
        owned = np.array([each in self._owners for each in chunk.memory["id"].tolist()])
        return chunk if owned.all() else chunk.part(owned)

    def _run(self, queues: SectionQueues, index: int, chunk: Chunk) -> None:
        """Run a section on a batch; if it fails, on every request by itself."""
        if not len(chunk):
            return
        try:
            # With a copy of the memory, which a criterion may change in place.
            queues.run(index, chunk.copy_memory())
        except BaseException as error:
            ids = chunk.memory["id"].tolist()
            owners = [self._owners.get(each, (None, 0))[0] for each in ids]
            requests = {id(each): each for each in owners if each is not None}
            for request in requests.values():
                chosen = np.array([each is request for each in owners])
                if chosen.all():
                    self._fail(request, error)
                    continue
                self._run(queues, index, queues.part(chunk, chosen))

    def _exited(self, exited: Waiting) -> None:
        """Keep the predictions of samples."""
        for number, *values in zip(*fetched([exited]), strict=True):
            request, row = self._owners.pop(int(number))
            request.keep(row, values)
            if not request.missing:
                self._complete.append(request)

    def _fail(self, request: Request, error: BaseException) -> None:
        self._owners = {
            number: each
            for number, each in self._owners.items()
            if each[0] is not request
        }
        if not self._owners:  # Other samples of the request wait for nothing.
            self._queues = None
        self._release(request)
        request.fail(error)

    def _fail_all(self, error: BaseException) -> None:
        """Fail all requests that have begun."""
        for request in {id(each): each for each, _ in self._owners.values()}.values():
            self._fail(request, error)

    def _release(self, request: Request) -> None:
        with self._changed:
            self._accepted -= request.samples
            self._changed.notify_all()

    def _break(self, error: BaseException) -> None:
        """Close, and fail all requests that have no result."""
        with self._changed:
            self._closing, self._broken_by = True, error
            waiting = list(self._arrived)
            self._arrived.clear()
            self._changed.notify_all()
        for request in self._complete:
            request.answer()
        self._fail_all(error)
        for request in waiting:
            if request.future.set_running_or_notify_cancel():
                request.fail(error)


CLOSED = (
    "This EarlyExit was closed. Received: submit after close. Expected: start() first, "
    "which begins another worker."
)
_BROKEN = (
    "The worker of this EarlyExit broke by the error above. Received: submit after it. "
    "Expected: close(), then start(), which begins another worker."
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
