"""Run sections one after another on those samples alone that still need them.

Samples wait in front of every section until there are enough to fill a batch, so that
few rows are padded; at the end the rest goes through in smaller batches.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from keras_selfdistill.backend.tensors import join_rows, take_rows, to_numpy

# Samples that go on together: a section that runs many times in a row has its weights
# in the cache, but what waits for the next one takes memory.
_AT_ONCE = 64
_MOST_PADDING = 0.25  # Share of a bucket; beyond it two smaller batches are cheaper.


@dataclasses.dataclass
class Chunk:
    """Samples between two sections.

    Args:
        tensors: What the next section reads; also rows of samples that have left.
        rows: Which rows of the tensors the samples are, shape `(samples,)`.
        memory: Arrays with one row for each sample, such as its number.
    """

    tensors: list[Any]
    rows: np.ndarray
    memory: dict[str, np.ndarray]

    def __len__(self):
        """Return the number of samples."""
        return len(self.rows)

    @property
    def size(self) -> int:
        """How many rows the tensors have."""
        return int(self.tensors[0].shape[0]) if self.tensors else len(self)

    def part(self, chosen: Any) -> "Chunk":
        """Return some of the samples; the tensors stay as they are."""
        memory = {name: array[chosen] for name, array in self.memory.items()}
        return Chunk(self.tensors, self.rows[chosen], memory)

    def compact(self, size: int | None = None) -> "Chunk":
        """Return the samples in tensors that hold nothing else.

        Args:
            size: How many rows to fill up to, by repeating the last.
        """
        rows = self.rows
        if size is not None:
            rows = np.append(rows, np.repeat(rows[-1:], size - len(rows)))
        tensors = [take_rows(tensor, rows) for tensor in self.tensors]
        return Chunk(tensors, np.arange(len(self)), self.memory)


def joined(chunks: Sequence[Chunk]) -> Chunk:
    """Return the samples of several chunks as one."""
    if len(chunks) == 1:
        return chunks[0]
    chunks = [
        chunk if chunk.size == len(chunk) else chunk.compact() for chunk in chunks
    ]
    every = range(len(chunks[0].tensors))
    memory = {
        name: np.concatenate([chunk.memory[name] for chunk in chunks])
        for name in chunks[0].memory
    }
    return Chunk(
        [join_rows([chunk.tensors[i] for chunk in chunks]) for i in every],
        np.arange(sum(map(len, chunks))),
        memory,
    )


def bucket_sizes(batch_size: int, *, fixed: bool = False) -> list[int]:
    """Return the batch sizes that sections are compiled for, ascending.

    Args:
        batch_size: How many samples a section takes at most.
        fixed: Whether it takes no other number.

    Example:
        >>> bucket_sizes(48)
        [1, 2, 4, 8, 16, 32, 48]
    """
    if fixed:
        return [batch_size]
    powers = [2**power for power in range(batch_size.bit_length())]
    return [size for size in powers if size < batch_size] + [batch_size]


def next_bucket(samples: int, buckets: Sequence[int]) -> int:
    """Return the size of the next batch for a number of waiting samples.

    The smallest bucket that holds all of them, unless it would be mostly padding: then
    the largest that they fill.

    Example:
        >>> [next_bucket(samples, [1, 2, 4, 8, 16, 32]) for samples in (30, 20, 3, 99)]
        [32, 16, 4, 32]
    """
    if samples >= buckets[-1]:
        return buckets[-1]
    enough = next(size for size in buckets if size >= samples)
    if samples >= (1 - _MOST_PADDING) * enough:
        return enough
    return max((size for size in buckets if size <= samples), default=enough)


class _Queue:
    """Samples waiting for a section."""

    def __init__(self):
        self._chunks: collections.deque[Chunk] = collections.deque()
        self.samples = 0

    def put(self, chunk):
        if len(chunk):
            self._chunks.append(chunk)
            self.samples += len(chunk)

    def take(self, samples):
        """Remove and return so many samples, or all if there are fewer."""
        found, missing = [], min(samples, self.samples)
        self.samples -= missing
        while missing:
            chunk = self._chunks.popleft()
            if len(chunk) > missing:
                self._chunks.appendleft(chunk.part(slice(missing, None)))
                chunk = chunk.part(slice(missing))
            found.append(chunk)
            missing -= len(chunk)
        return joined(found)


def run_sections(
    sections: Sequence[Callable[[list[Any]], dict[str, Any]]],
    chunks: Iterable[Chunk],
    decide: Callable[[int, np.ndarray, dict[str, np.ndarray]], np.ndarray],
    *,
    answer: str,
    batch_size: int,
    fixed: bool = False,
) -> None:
    """Send samples through the sections until each has left.

    Args:
        sections: Each returns a dict with the exit's answer and, under `"alive"`, what
            the next section reads.
        chunks: The samples, in any number of any size.
        decide: Called with the number of the section, the answers of some samples,
            shape `(samples, classes)`, and their memory, which it may change. Returns
            which samples go on, shape `(samples,)`. It is called for every sample at
            every section that the sample reaches.
        answer: The key of the answers in what the sections return.
        batch_size: How many samples a section takes at most.
        fixed: Whether it takes no other number, so that fewer are always padded.
    """
    buckets = bucket_sizes(batch_size, fixed=fixed)
    queues = [_Queue() for _ in range(len(sections) + 1)]

    def step(number):
        waiting = queues[number]
        bucket = next_bucket(waiting.samples, buckets)
        chunk = waiting.take(bucket)
        if chunk.size != bucket:
            chunk = chunk.compact(bucket)
        outputs = sections[number](chunk.tensors)
        answers = to_numpy(outputs[answer])[chunk.rows]
        stay = decide(number, answers, chunk.memory)
        if not stay.any():
            return
        rest = Chunk(outputs["alive"], chunk.rows, chunk.memory)
        rest = rest if stay.all() else rest.part(stay)
        # Gathering pays unless the next batch is as large anyway. It also frees the
        # rows of samples that have left, while the others wait.
        if next_bucket(len(rest), buckets) != bucket:
            rest = rest.compact()
        queues[number + 1].put(rest)

    for chunk in chunks:
        for start in range(0, len(chunk), most := max(batch_size, _AT_ONCE)):
            queues[0].put(chunk.part(slice(start, start + most)))
            for number in range(len(sections)):
                while queues[number].samples >= batch_size:
                    step(number)
    for number in range(len(sections)):
        while queues[number].samples:
            step(number)
