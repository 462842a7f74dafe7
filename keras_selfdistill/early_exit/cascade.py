"""The sections of a wrapper, run in order on the samples that have not exited."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_selfdistill.backend.compiled import CompiledModel
from keras_selfdistill.backend.tensors import compile_gathering
from keras_selfdistill.costs.counting import Count, macs_ratio, model_macs
from keras_selfdistill.costs.input_shapes import nominal_shapes
from keras_selfdistill.criteria import Memory
from keras_selfdistill.early_exit.exited import (
    Collected,
    Exited,
    exiting,
    in_order,
)
from keras_selfdistill.early_exit.scheduler import (
    Chunk,
    Decide,
    SectionQueues,
    bucket_sizes,
    run_sections,
)
from keras_selfdistill.early_exit.scoring import Scorer, SectionOutput
from keras_selfdistill.early_exit.section_models import cut_sections, section_costs
from keras_selfdistill.early_exit.thresholds.outcomes import Outcomes, missing_costs
from keras_selfdistill.evaluation.data_adapter import (
    DataAdapter,
    Targets,
    best_classes,
    class_indices,
)
from keras_selfdistill.exits.attach import ExitGraph
from keras_selfdistill.utils.number_checks import is_positive_integer
from keras_selfdistill.utils.type_aliases import Data, Labels, Tensor


class Cascade:
    """Compiled sections, with the costs and the scores of their exits.

    Args:
        graph: A base with exits.
        scorer: Computes predictions and scores from the outputs of sections.

    Attributes:
        costs: Multiply-adds of a sample as a fraction of the base's, by the index of
            its exit, shape `(exits,)`; NaN if unknown, or if the base has none.
        unknown: Names of the layers whose cost is unknown.
        scorer: Computes predictions and scores from the outputs of sections.
        classes: Number of classes.

    Raises:
        ValueError: An exit reads the base beyond its tap.
    """

    def __init__(self, graph: ExitGraph, scorer: Scorer):
        models = cut_sections(graph, [scorer.reads])
        for section in models:
            # Whatever the criterion: another one then needs no new sections.
            section.scores = scorer.softmax and scorer.reads == "output"
        shapes = nominal_shapes(graph.flat.model)
        sections = section_costs(graph, [scorer.reads], shapes)
        of_base = model_macs(graph.flat.model, shapes)
        names = Count.total([*sections, of_base]).unknown
        self.unknown = tuple(dict.fromkeys(names))
        spent = [Count.total(sections[:end]) for end in range(1, len(sections) + 1)]
        self.costs = np.array([macs_ratio(each, of_base) for each in spent])
        self.scorer = scorer
        self._graph = graph
        self.classes = graph.task.units
        self._sections = [CompiledModel(section) for section in models]
        places = {id(tensor): i for i, tensor in enumerate(graph.base.inputs)}
        self._inputs = {places[id(tensor)]: tensor for tensor in models[0].inputs}
        self._adapter = DataAdapter(graph.base)
        self._fixed_batch_size = _fixed_batch_size(graph.base)

    @property
    def lacks_costs(self) -> bool:
        """Whether the cost of some exit is not known as a fraction of the base's."""
        return bool(np.isnan(self.costs).any())

    @property
    def compile_count(self) -> int:
        """Number of compilations of sections."""
        return sum(section.compile_count for section in self._sections)

    def check_costs(self, argument: str) -> None:
        """Refuse an argument that needs costs if some are not known."""
        if self.lacks_costs:
            raise ValueError(
                f"{missing_costs(self.unknown)} Received: {argument}, which needs "
                "costs. Expected: latency_budget_ms=; or max_accuracy_drop= or "
                "target_accuracy=, with thresholds that all exits share."
            )

    def warm_up(self, batch_size: int) -> None:
        """Compile every section for every batch size that it may get."""
        batch_size, fixed = self._batch_size(batch_size)
        sizes = bucket_sizes(batch_size, fixed=fixed)
        for size in sizes:
            tensors: Any = [
                np.zeros((size, *tensor.shape[1:]), tensor.dtype)
                for tensor in self._inputs.values()
            ]
            for section in self._sections:
                tensors = section(tensors)["alive"]
                compile_gathering(tensors, sizes)

    def predict(
        self,
        x: Data,
        y: Labels,
        sample_weight: Tensor | None,
        *,
        thresholds: Sequence[float],
        batch_size: int,
    ) -> tuple[Exited, list[Targets]]:
        """Predict each sample at the first exit whose score reaches its threshold.

        Args:
            x: Samples, as `DataAdapter.batches` takes them.
            y: Labels; `None` if there are none, or if `x` gives (inputs, labels).
            sample_weight: Sample weights; `None` as for `y`.
            thresholds: Thresholds of all exits but the last.
            batch_size: Number of samples a section processes at once.

        Returns:
            Predictions of all samples, in the order of the input, and the targets of
            the data, batch by batch.
        """
        exited = Collected(self.classes)
        decide = exiting(self.scorer, thresholds, exited.add)
        batches = self._adapter.batches(x, y, sample_weight)
        targets = self._run(batches, decide, batch_size)
        return exited.all_in_order(), targets

    def queues(self, decide: Decide, batch_size: int) -> SectionQueues:
        """Return the sections with empty queues in front of them."""
        batch_size, fixed = self._batch_size(batch_size)
        return SectionQueues(
            self._sections,
            decide,
            output=self.scorer.reads,
            batch_size=batch_size,
            fixed=fixed,
        )

    def request(self, x: Data) -> list[np.ndarray]:
        """Return copies of arrays, those of the inputs that sections read.

        Raises:
            TypeError: `x` is not arrays.
            ValueError: The arrays do not fit the base.
        """
        arrays = self._adapter.arrays(x)
        return [np.array(arrays[i]) for i in self._inputs]

    def observe(self, x: Data, y: Labels, batch_size: int) -> Outcomes:
        """Run all samples through all sections and return the outcome at every exit.

        Args:
            x: Samples, as `DataAdapter.batches` takes them.
            y: Labels; `None` if `x` gives (inputs, labels).
            batch_size: Number of samples a section processes at once.

        Raises:
            ValueError: Labels are missing, or are not classes of the base.
        """
        exits = self.scorer.exits
        seen: list[list[tuple[Any, ...]]] = [[] for _ in range(exits)]

        def decide(index: int, output: SectionOutput, memory: Memory) -> np.ndarray:
            outputs = output.array()
            predictions, scores = self.scorer(index, outputs, memory)
            # The outputs of the last section are those of the base.
            classes = best_classes(predictions), best_classes(outputs)
            seen[index].append((memory["id"], scores, *classes))
            return np.full(len(scores), index < exits - 1)

        batches = self._run(self._adapter.batches(x, y), decide, batch_size)
        labels = class_indices([each.labels for each in batches], self.classes)
        columns = [in_order(rows) for rows in seen]
        correct = np.stack([column[2] == labels for column in columns], axis=1)
        return Outcomes(
            scores=np.stack([column[1] for column in columns[:-1]], axis=1),
            correct=correct.astype("int8"),
            reference=(columns[-1][3] == labels).astype("int8"),
            costs=self.costs,
        )

    def outputs(
        self, x: Data, y: Labels, batch_size: int
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the outputs of every section on all samples, and their labels.

        Args:
            x: Samples, as `DataAdapter.batches` takes them.
            y: Labels; `None` if `x` gives (inputs, labels).
            batch_size: Number of samples a section processes at once.

        Raises:
            ValueError: Labels are missing, or are not classes of the base.
        """
        last = self.scorer.exits - 1
        seen: list[list[tuple[Any, ...]]] = [[] for _ in range(last + 1)]

        def keep(index: int, output: SectionOutput, memory: Memory) -> np.ndarray:
            seen[index].append((memory["id"], output.array().astype("float32")))
            return np.full(len(output.rows), index < last)

        batches = self._run(self._adapter.batches(x, y), keep, batch_size)
        labels = class_indices([each.labels for each in batches], self.classes)
        return [in_order(rows)[1] for rows in seen], labels

    def outcomes(self, outputs: Sequence[np.ndarray], labels: np.ndarray) -> Outcomes:
        """Return the outcome at every exit of outputs that `outputs` returned."""
        memory: Memory = {}
        scores, correct = [], []
        for index, each in enumerate(outputs):
            predictions, found = self.scorer(index, each, memory)
            scores.append(found)
            correct.append(best_classes(predictions) == labels)
        return Outcomes(
            scores=np.stack(scores[:-1], axis=1),
            correct=np.stack(correct, axis=1).astype("int8"),
            reference=(best_classes(outputs[-1]) == labels).astype("int8"),
            costs=self.costs,
        )

    def with_scorer(self, scorer: Scorer) -> "Cascade":
        """Return a cascade with another scorer, and if possible the same sections."""
        if scorer.reads != self.scorer.reads:
            return Cascade(self._graph, scorer)
        other = copy.copy(self)
        other.scorer = scorer
        return other

    def _run(
        self,
        batches: Iterable[tuple[list[np.ndarray], Targets]],
        decide: Decide,
        batch_size: int,
    ) -> list[Targets]:
        """Run samples through the sections and return a list of their targets."""
        queues = self.queues(decide, batch_size)
        seen = []

        def chunks() -> Iterator[Chunk]:
            start = 0
            for arrays, targets in batches:
                rows = np.arange(targets.samples)
                seen.append(targets)
                tensors = [arrays[i] for i in self._inputs]
                yield Chunk(tensors, rows, {"id": rows + start})
                start += len(rows)

        run_sections(queues, chunks(), self._batch_size(batch_size)[0])
        return seen

    def _batch_size(self, batch_size: int) -> tuple[int, bool]:
        """Return the batch size of sections, and whether the base fixes it."""
        _check_batch_size(batch_size)
        return self._fixed_batch_size or batch_size, self._fixed_batch_size is not None


def _fixed_batch_size(base: keras.Model) -> int | None:
    """Return the fixed batch size of a base, `None` if it takes any.

    Raises:
        ValueError: The inputs have different fixed batch sizes.
    """
    sizes = {tensor.shape[0] for tensor in base.inputs} - {None}
    if len(sizes) > 1:
        shapes = {tensor.name: tuple(tensor.shape) for tensor in base.inputs}
        raise ValueError(
            "The inputs of the base must have the same batch size. Received: shapes "
            f"{shapes} of model {base.name!r}. Expected: None as the batch size of "
            "each, as in keras.Input(shape=...)."
        )
    return sizes.pop() if sizes else None


def _check_batch_size(batch_size: int) -> None:
    if not is_positive_integer(batch_size):
        raise ValueError(
            "`batch_size` is out of range. Received: "
            f"batch_size={batch_size!r}. Expected: an integer of at least 1."
        )
