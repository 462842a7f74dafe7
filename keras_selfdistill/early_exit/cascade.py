"""The exits of a wrapper, one after another, on the samples that still need them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_selfdistill.backend.compiled import CompiledModel
from keras_selfdistill.costs.counting import Count, model_macs
from keras_selfdistill.costs.input_shapes import nominal_shapes
from keras_selfdistill.early_exit.scheduler import Chunk, bucket_sizes, run_sections
from keras_selfdistill.early_exit.scoring import Scorer
from keras_selfdistill.early_exit.section_models import cut_sections, section_costs
from keras_selfdistill.early_exit.thresholds.search import Outcomes
from keras_selfdistill.evaluation.data_adapter import (
    DataAdapter,
    best_classes,
    class_indices,
)
from keras_selfdistill.exits.attach import ExitGraph


class Exited(NamedTuple):
    """Samples in the order given, and where and with what they left."""

    ids: np.ndarray  # 0, 1, …
    numbers: np.ndarray  # Of the exits.
    predictions: np.ndarray  # Shape (samples, classes).
    scores: np.ndarray


class Cascade:
    """Sections, compiled, and what is counted and scored at their ends.

    Args:
        graph: A base with exits.
        scorer: Turns what sections answer into predictions and scores.

    Raises:
        ValueError: An exit reads the base beyond its tap.
    """

    def __init__(self, graph: ExitGraph, scorer: Scorer):
        models = cut_sections(graph, [scorer.reads])
        shapes = nominal_shapes(graph.flat.model)
        sections = section_costs(graph, [scorer.reads], shapes)
        of_base = model_macs(graph.flat.model, shapes)
        names = Count.total([*sections, of_base]).unknown
        self.unknown = tuple(dict.fromkeys(names))  # What does not tell its cost.
        # Share of the base's multiply-adds that a sample costs, by its exit.
        spent = np.cumsum([_known(each) for each in sections])
        self.costs = spent / np.maximum(1.0, _known(of_base))  # NaN if not known.
        self._scorer = scorer
        self._classes = graph.task.units
        self._sections = [CompiledModel(section) for section in models]
        places = {id(tensor): i for i, tensor in enumerate(graph.base.inputs)}
        self._inputs = {places[id(tensor)]: tensor for tensor in models[0].inputs}
        self._feeder = DataAdapter(graph.base)
        self._fixed_batch_size = _fixed_batch_size(graph.base)

    @property
    def compile_count(self) -> int:
        """How many times sections were compiled."""
        return sum(section.compile_count for section in self._sections)

    def warm_up(self, batch_size: int) -> None:
        """Compile every section for every number of rows that it may be given."""
        batch_size, fixed = self._batch_size(batch_size)
        for rows in bucket_sizes(batch_size, fixed=fixed):
            tensors: Any = [
                np.zeros((rows, *tensor.shape[1:]), tensor.dtype)
                for tensor in self._inputs.values()
            ]
            for section in self._sections:
                tensors = section(tensors)["alive"]

    def leave(
        self, x: Any, y: Any, thresholds: Sequence[float], batch_size: int
    ) -> tuple[Exited, list[Any]]:
        """Let each sample exit at the first exit whose score reaches its threshold.

        Args:
            x: What `DataAdapter.batches` takes.
            y: Likewise.
            thresholds: One for each exit but the last.
            batch_size: Samples a section takes at once.

        Returns:
            The exited samples, and the labels of the data, batch by batch.
        """
        limits = [*thresholds, -np.inf]  # All that come so far leave at the end.
        nothing = np.zeros(0, "int64"), np.zeros((0, self._classes), "float32")
        left = [Exited(nothing[0], *nothing, np.zeros(0))]

        def decide(number, answers, memory):
            predictions, scores = self._scorer(number, answers, memory)
            leaves = scores >= limits[number]
            ids = memory["id"][leaves]
            numbers = np.full(len(ids), number)
            left.append(Exited(ids, numbers, predictions[leaves], scores[leaves]))
            return ~leaves

        labels = self._run(x, y, decide, batch_size)
        return Exited(*_in_order(left)), labels

    def observe(self, x: Any, y: Any, batch_size: int) -> Outcomes:
        """Send all samples to the end and return what every exit answered.

        Raises:
            ValueError: Labels are missing, or no classes of the base.
        """
        exits = self._scorer.exits
        seen: list[list[tuple[Any, ...]]] = [[] for _ in range(exits)]

        def decide(number, answers, memory):
            predictions, scores = self._scorer(number, answers, memory)
            # At the end, the answers of the section are those of the base alone.
            classes = best_classes(predictions), best_classes(answers)
            seen[number].append((memory["id"], scores, *classes))
            return np.full(len(scores), number < exits - 1)

        labels = class_indices(self._run(x, y, decide, batch_size), self._classes)
        columns = [_in_order(rows) for rows in seen]
        correct = np.stack([column[2] == labels for column in columns], axis=1)
        return Outcomes(
            scores=np.stack([column[1] for column in columns[:-1]], axis=1),
            correct=correct.astype("int8"),
            reference=(columns[-1][3] == labels).astype("int8"),
            costs=self.costs,
        )

    def _run(self, x, y, decide, batch_size):
        """Send samples through the sections; return their labels, batch by batch."""
        batch_size, fixed = self._batch_size(batch_size)
        labels = []

        def chunks():
            start = 0
            for arrays, some_labels in self._feeder.batches(x, y):
                rows = np.arange(len(arrays[0]))
                labels.append(some_labels)
                tensors = [arrays[i] for i in self._inputs]
                yield Chunk(tensors, rows, {"id": rows + start})
                start += len(rows)

        run_sections(
            self._sections,
            chunks(),
            decide,
            answer=self._scorer.reads,
            batch_size=batch_size,
            fixed=fixed,
        )
        return labels

    def _batch_size(self, wanted):
        """Return how many samples a section takes, and whether it takes no others."""
        _check_batch_size(wanted)
        return self._fixed_batch_size or wanted, self._fixed_batch_size is not None


def _fixed_batch_size(base):
    """Return the one batch size that a base takes; `None` if it takes any.

    Raises:
        ValueError: Its inputs fix different ones, so that no row is a sample.
    """
    sizes = {tensor.shape[0] for tensor in base.inputs} - {None}
    if len(sizes) > 1:
        shapes = {tensor.name: tuple(tensor.shape) for tensor in base.inputs}
        raise ValueError(
            "The inputs of the base must have the same batch size. Received: shapes "
            f"{shapes} of model {base.name!r}. Expected: None as the first size of "
            "each, as keras.Input(shape=...) makes it."
        )
    return sizes.pop() if sizes else None


def _known(count):
    """Return the multiply-adds of a count, NaN where a part of it is unknown."""
    return np.nan if count.unknown else float(count.macs)


def _in_order(parts):
    """Join columns of several batches and sort their rows by the first column."""
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(columns[0])
    return [column[order] for column in columns]


def _check_batch_size(batch_size):
    whole = isinstance(batch_size, (int, np.integer)) and batch_size is not True
    if not whole or batch_size < 1:
        raise ValueError(
            "`batch_size` is out of range. Received: "
            f"batch_size={batch_size!r}. Expected: an integer of at least 1."
        )
