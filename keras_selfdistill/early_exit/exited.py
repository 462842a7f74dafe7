"""Samples that exit: who does, and their predictions until they are on the host."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import numpy as np

from keras_selfdistill.backend.tensors import fetch_rows
from keras_selfdistill.criteria import Memory
from keras_selfdistill.early_exit.scoring import Scorer, SectionOutput
from keras_selfdistill.utils.type_aliases import Tensor

# Numbers that may wait on the device: 64 MiB of float32.
_MOST_WAITING = 2**24


class Exited(NamedTuple):
    """Predictions of samples that have exited.

    Args:
        ids: Numbers of the samples, shape `(samples,)`.
        exits: Indices of their exits, shape `(samples,)`.
        predictions: Outputs in the base's own form, shape `(samples, classes)`.
        scores: Confidence scores, shape `(samples,)`.
    """

    ids: np.ndarray
    exits: np.ndarray
    predictions: np.ndarray
    scores: np.ndarray

    @classmethod
    def zeros(cls, classes: int, samples: int = 0) -> Self:
        """Return rows of zeros, to be filled."""
        numbers = np.zeros(samples, "int64")
        outputs = np.zeros((samples, classes), "float32")
        return cls(numbers, numbers.copy(), outputs, np.zeros(samples))


class Waiting(NamedTuple):
    """Samples that have exited, whose predictions are still on the device.

    Args:
        ids: Numbers of the samples, shape `(samples,)`.
        exit_index: Index of their exit.
        tensor: Predictions, also of other samples.
        rows: Rows of the tensor that are theirs, shape `(samples,)`.
        scores: Confidence scores, shape `(samples,)`.
    """

    ids: np.ndarray
    exit_index: int
    tensor: Tensor
    rows: np.ndarray
    scores: np.ndarray


def fetched(waiting: Sequence[Waiting]) -> Exited:
    """Return samples with their predictions, which come to the host together."""
    predictions = fetch_rows(
        [each.tensor for each in waiting], [each.rows for each in waiting]
    )
    return Exited(
        np.concatenate([each.ids for each in waiting]),
        np.repeat(
            [each.exit_index for each in waiting], [len(each.ids) for each in waiting]
        ),
        predictions.astype("float32", copy=False),
        np.concatenate([each.scores for each in waiting]),
    )


class Collected:
    """The samples that have exited; their predictions are fetched at the end.

    If they are many, some are fetched before, so that they do not fill the device.

    Args:
        classes: Number of classes.
    """

    def __init__(self, classes: int) -> None:
        self._exited = [Exited.zeros(classes)]
        self._waiting: list[Waiting] = []
        self._size = 0

    def add(self, exited: Waiting) -> None:
        """Add samples that exit."""
        self._waiting.append(exited)
        self._size += math.prod(exited.tensor.shape)
        if self._size > _MOST_WAITING:
            self._fetch()

    def all_in_order(self) -> Exited:
        """Return all samples, in the order of their numbers."""
        if self._waiting:
            self._fetch()
        return Exited(*in_order(self._exited))

    def _fetch(self) -> None:
        self._exited.append(fetched(self._waiting))
        self._waiting, self._size = [], 0


def exiting(
    scorer: Scorer,
    thresholds: Sequence[float],
    exited: Callable[[Waiting], object],
) -> Callable[[int, SectionOutput, Memory], np.ndarray]:
    """Return a function that decides which samples continue, and passes on the others.

    Args:
        scorer: Computes predictions and scores from the outputs of sections.
        thresholds: Thresholds of all exits but the last.
        exited: Called with the samples of each batch that exit, if there are any.
    """
    limits = [*thresholds, -np.inf]  # All remaining samples exit at the last exit.

    def decide(index: int, output: SectionOutput, memory: Memory) -> np.ndarray:
        predictions, rows, scores = scorer.at_exit(index, output, memory)
        exits = scores >= limits[index]
        if exits.any():
            ids = memory["id"][exits]
            exited(Waiting(ids, index, predictions, rows[exits], scores[exits]))
        return ~exits

    return decide


def in_order(parts: Sequence[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    """Concatenate the columns of several batches, sorted by the first column."""
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(columns[0])
    return [column[order] for column in columns]
