"""Samples that were submitted together, and the future of their result."""

import concurrent.futures
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
from absl import logging

from keras_selfdistill.early_exit.exited import Exited
from keras_selfdistill.early_exit.result import EarlyExitResult, Setting

ResultFuture = concurrent.futures.Future[EarlyExitResult]


@dataclasses.dataclass(eq=False)
class Request:
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

    @classmethod
    def of(cls, setting: Setting, tensors: list[np.ndarray]) -> Self:
        """Return a request none of whose samples has exited."""
        samples = len(tensors[0])
        found = Exited.zeros(setting.cascade.classes, samples)
        return cls(setting, tensors, ResultFuture(), found, samples)

    @property
    def samples(self) -> int:
        """Number of its samples."""
        return len(self.found.ids)

    @property
    def batch_key(self) -> tuple[object, ...]:
        """What requests have in common that may be in one batch."""
        return self.setting, [array.shape[1:] for array in self.tensors]

    def keep(self, row: int, values: Sequence[np.ndarray]) -> None:
        """Keep the exit, prediction and score of the sample of a row."""
        for column, value in zip(self.found[1:], values, strict=True):
            column[row] = value
        self.missing -= 1

    def answer(self) -> None:
        """Set the result, which calls the callbacks of the future."""
        try:
            result = self.setting.result(self.found)
        except BaseException as error:  # Such as no memory.
            self.fail(error)
            return
        with _logged_errors():
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Set an error, which calls the callbacks of the future."""
        with _logged_errors():
            self.future.set_exception(error)


@contextlib.contextmanager
def _logged_errors() -> Iterator[None]:
    """Log what callbacks of futures raise; futures themselves log `Exception` only."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):  # Of the program's own handlers of logs.
            logging.exception("A callback of a future raised an error.")
