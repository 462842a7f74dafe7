"""Run sections in order, each only on the samples that have not exited.

Samples wait in front of every section until they fill a batch, so that little padding
is needed; at the end the rest runs in smaller batches.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from keras_selfdistill.backend.tensors import compiles_gathering, gather_rows
from keras_selfdistill.early_exit.scoring import SectionOutput
from keras_selfdistill.utils.type_aliases import Tensor

# Samples queued together: a section that runs many times in a row keeps its weights in
# the cache, but queued tensors take memory.
_AT_ONCE = 64
_PASSED_OVER = 2  # Batches of other sections that samples wait for.
_MOST_PADDING = (
    0.25  # Fraction of a bucket; with more, two smaller batches are cheaper.
)


@dataclasses.dataclass
class Chunk:
    """Samples between two sections.

    Args:
        tensors: Inputs of the next section, also with rows of samples that have exited.
        rows: Rows of the tensors that belong to the samples, shape `(samples,)`.
        memory: Arrays with one row per sample, such as its id.
    """

    tensors: list[Tensor]
    rows: np.ndarray
    memory: dict[str, np.ndarray]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.rows)

    @property
    def size(self) -> int:
        """Number of rows of the tensors."""
        return int(self.tensors[0].shape[0]) if self.tensors else len(self)

    def part(self, chosen: slice | np.ndarray) -> "Chunk":
        """Return some of the samples, with the same tensors."""
        memory = {name: array[chosen] for name, array in self.memory.items()}
        return Chunk(self.tensors, self.rows[chosen], memory)

    def copy_memory(self) -> "Chunk":
        """Return the samples with a copy of their memory, and the same tensors."""
        memory = {name: array.copy() for name, array in self.memory.items()}
        return Chunk(self.tensors, self.rows, memory)


def joined(chunks: Sequence[Chunk], size: int) -> Chunk:
    """Return the samples of several chunks as one.

    Args:
        chunks: Samples in front of the same section.
        size: Number of rows to pad to, by repeating the last row.
    """
    if len(chunks) == 1 and chunks[0].size == size:
        return chunks[0]
    rows = [chunk.rows for chunk in chunks]
    columns = zip(*(chunk.tensors for chunk in chunks), strict=True)
    tensors = [gather_rows(column, rows, size) for column in columns]
    memory = {
        name: np.concatenate([chunk.memory[name] for chunk in chunks])
        for name in chunks[0].memory
    }
    return Chunk(tensors, np.arange(sum(map(len, chunks))), memory)


def bucket_sizes(batch_size: int, *, fixed: bool = False) -> list[int]:
    """Return the batch sizes that sections are compiled for, ascending.

    Args:
        batch_size: Largest number of samples per batch.
        fixed: Whether this is the only batch size.

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

    This is the smallest bucket for all of them, unless it would need too much padding:
    then the largest bucket that they fill.

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

    def __init__(self) -> None:
        self._chunks: collections.deque[Chunk] = collections.deque()
        self.samples = 0

    def put(self, chunk: Chunk) -> None:
        if len(chunk):
            self._chunks.append(chunk)
            self.samples += len(chunk)

    def take(self, samples: int) -> list[Chunk]:
        """Remove and return a number of samples, or all if there are fewer."""
        found, missing = [], min(samples, self.samples)
        self.samples -= missing
        while missing:
            chunk = self._chunks.popleft()
            if len(chunk) > missing:
                self._chunks.appendleft(chunk.part(slice(missing, None)))
                chunk = chunk.part(slice(missing))
            found.append(chunk)
            missing -= len(chunk)
        return found


def next_section(waiting: Sequence[int], passed: Sequence[int], most: int) -> int:
    """Return the index of the section to run next, where requests keep arriving.

    It is the one that fills the largest batch, the deepest if there are several; before
    it those that were passed over twice, so that few samples left at a deep section do
    not wait until many have joined them.

    Args:
        waiting: Number of samples in front of each section; not all are 0.
        passed: How often each section was passed over while samples waited.
        most: Largest number of samples per batch.

    Example:
        >>> next_section([9, 4, 0], [0, 0, 0], 8), next_section([9, 8, 1], [0, 0, 0], 8)
        (0, 1)
        >>> next_section([9, 8, 1], [0, 0, 2], 8)
        2
    """
    return max(
        (index for index, samples in enumerate(waiting) if samples),
        key=lambda i: (passed[i] >= _PASSED_OVER, min(waiting[i], most), i),
    )


Section = Callable[[list[Tensor]], dict[str, Tensor]]
Decide = Callable[[int, SectionOutput, dict[str, np.ndarray]], np.ndarray]


class SectionQueues:
    """Sections, and the samples that wait in front of each.

    Args:
        sections: Functions from the tensors alive before a section to a dict with the
            output of its exit and, under `"alive"`, the inputs of the next section;
            maybe the largest values of the output under `"confidence"`.
        decide: Function of the index of a section, the output of its exit and the
            memory of the samples, which it may update. Returns whether each sample
            continues, shape `(samples,)`. It is called once for every sample at every
            section that the sample reaches.
        output: Key of the exit's output in the results of the sections.
        batch_size: Largest number of samples per batch.
        fixed: Whether this is the only batch size, so that smaller batches are padded.
    """

    def __init__(
        self,
        sections: Sequence[Section],
        decide: Decide,
        *,
        output: str,
        batch_size: int,
        fixed: bool = False,
    ) -> None:
        self._sections = sections
        self._decide = decide
        self._output = output
        self._buckets = bucket_sizes(batch_size, fixed=fixed)
        self._queues = [_Queue() for _ in range(len(sections) + 1)]

    @property
    def waiting(self) -> list[int]:
        """Number of samples in front of each section."""
        return [queue.samples for queue in self._queues[:-1]]

    def put(self, chunk: Chunk) -> None:
        """Queue samples in front of the first section."""
        self._queues[0].put(chunk)

    def take(self, index: int) -> Chunk:
        """Remove the next batch from the queue in front of a section."""
        waiting = self._queues[index]
        bucket = next_bucket(waiting.samples, self._buckets)
        return joined(waiting.take(bucket), bucket)

    def part(self, chunk: Chunk, chosen: np.ndarray) -> Chunk:
        """Return some samples of a batch as a batch."""
        part = chunk.part(chosen)
        return joined([part], self._enough(len(part)))

    def run(self, index: int, chunk: Chunk) -> None:
        """Run a section on a batch, and queue what continues for the next section."""
        results = self._sections[index](chunk.tensors)
        output, confidence = results[self._output], results.get("confidence")
        found = SectionOutput(output, confidence, chunk.rows)
        goes_on = self._decide(index, found, chunk.memory)
        if not goes_on.any():
            return
        rest = Chunk(results["alive"], chunk.rows, chunk.memory)
        rest = rest if goes_on.all() else rest.part(goes_on)
        # Gathering pays off unless the next batch has the same size. It also frees the
        # rows of samples that have exited, while the others wait.
        if next_bucket(len(rest), self._buckets) != chunk.size:
            any_size = not compiles_gathering(rest.tensors)
            size = len(rest) if any_size else self._enough(len(rest))
            rest = joined([rest], size)
        self._queues[index + 1].put(rest)

    def _enough(self, samples: int) -> int:
        """Return the smallest batch size that has room for a number of samples."""
        return next(size for size in self._buckets if size >= samples)


def run_sections(queues: SectionQueues, chunks: Iterable[Chunk], most: int) -> None:
    """Run samples through the sections until all have exited.

    Args:
        queues: The sections, with nothing in front of them.
        chunks: The samples, in chunks of any size.
        most: Largest number of samples per batch.
    """
    sections = range(len(queues.waiting))
    for chunk in chunks:
        for start in range(0, len(chunk), at_once := max(most, _AT_ONCE)):
            queues.put(chunk.part(slice(start, start + at_once)))
            for index in sections:
                while queues.waiting[index] >= most:
                    queues.run(index, queues.take(index))
    for index in sections:
        while queues.waiting[index]:
            queues.run(index, queues.take(index))
