"""Cut a model of every exit into sections that run only where a sample goes on."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_selfdistill.early_exit.export.int8.flatbuffer import (
    Model,
    Operator,
    Subgraph,
    ends,
    moved,
    read,
    schema,
    tensor_maps,
    tensors_read,
    tensors_written,
    write,
)

OUTPUTS = ("prediction", "exit", "score")


class ExitTensors(NamedTuple):
    """Tensors of one exit.

    Args:
        prediction: Tensor of shape `(1, classes)`.
        score: Tensor of shape `(1,)`.
        stop: Whether the sample exits here, without shape; `None` at the last exit.
    """

    prediction: int
    score: int
    stop: int | None

    @property
    def read(self) -> set[int]:
        """The tensors that the exit needs."""
        found = (self.prediction, self.score, self.stop)
        return {each for each in found if each is not None}


def branched(content: bytes) -> tuple[bytes, list[int]]:
    """Return a model that stops at the first exit where its sample does.

    The operators are cut into sections: each runs in the section of the first exit
    that needs it. A section ends in an `IF`, whose one branch returns the section's
    own prediction, and whose other branch is the next section.

    Args:
        content: File of a model that computes every exit, with the outputs
            `prediction_0`, `score_0`, `stop_0`, …, and no `stop` of the last exit.

    Returns:
        File of a model with the outputs `OUTPUTS`, and the index of the subgraph of
        each section.
    """
    model = read(content)
    inputs, outputs = ends(model)
    exits = _exits(outputs)
    source = model.subgraphs[0]
    parts = _sections(source, exits)
    given = [int(each) for each in source.inputs]
    cuts = [given, *(_alive(source, parts, exits, i) for i in range(1, len(parts)))]
    first = len(model.subgraphs)
    if_code = _add_operator_code(model, schema().BuiltinOperator.IF)
    made = []
    for i, (part, exit_) in enumerate(zip(parts, exits, strict=True)):
        # A branch has the inputs of its twin, which returns the prediction before it.
        before = [exits[i - 1].prediction, exits[i - 1].score] if i else []
        section = _Builder(source, before + cuts[i], f"section_{i + 1}")
        section.run(part)
        index = _constant(model, np.array([i], np.int32))
        made.append(section.subgraph)
        if exit_.stop is None:
            section.returns_exit(exit_, index)
            continue
        carried = [exit_.prediction, exit_.score, *cuts[i + 1]]
        here = _Builder(source, carried, f"exit_{i + 1}")
        here.returns_exit(exit_, index)
        made.append(here.subgraph)
        section.branches(if_code, exit_, carried, first + 2 * i)
    main, *others = made
    model.subgraphs[0] = main
    model.subgraphs += others
    _name_ends(model, main, {name: given.index(at) for name, at in inputs.items()})
    return write(model), [0, *range(first + 1, first + len(others), 2)]


def _exits(outputs: dict[str, int]) -> list[ExitTensors]:
    """Return the tensors of the exits, shallow to deep."""
    numbers = range(sum(name.startswith("prediction_") for name in outputs))
    return [
        ExitTensors(
            outputs[f"prediction_{i}"], outputs[f"score_{i}"], outputs.get(f"stop_{i}")
        )
        for i in numbers
    ]


class _Builder:
    """Writes one subgraph whose tensors are copies of another's."""

    def __init__(self, source: Subgraph, inputs: Sequence[int], name: str):
        self._source = source
        self._places: dict[int, int] = {-1: -1}
        self.subgraph = schema().SubGraphT()
        self.subgraph.name = name
        self.subgraph.tensors, self.subgraph.operators = [], []
        # Of two inputs of one tensor either may be read.
        self.subgraph.inputs = [self._copy(each) for each in inputs]

    def run(self, operators: Iterable[Operator]) -> None:
        """Append operators."""
        for each in operators:
            for tensor in tensors_read(each) | tensors_written(each):
                self._place(tensor)
            self.subgraph.operators.append(moved(each, self._places))

    def returns_exit(self, exit_: ExitTensors, index: Any) -> None:
        """Return the prediction, index and score of an exit."""
        places = [self._place(exit_.prediction), self._add(index)]
        self.subgraph.outputs = [*places, self._place(exit_.score)]

    def branches(
        self, code: int, exit_: ExitTensors, carried: Sequence[int], here: int
    ) -> None:
        """Return what one of two subgraphs makes of tensors, by an operator `IF`."""
        names = schema()
        operator = names.OperatorT()
        operator.opcodeIndex = code
        read = [exit_.stop, *carried]
        operator.inputs = [self._place(each) for each in read if each is not None]
        index = _int32_tensor([1])
        prediction, score = (
            self._copy(each) for each in (exit_.prediction, exit_.score)
        )
        operator.outputs = [prediction, self._add(index), score]
        operator.builtinOptionsType = names.BuiltinOptions.IfOptions
        operator.builtinOptions = names.IfOptionsT()
        operator.builtinOptions.thenSubgraphIndex = here
        operator.builtinOptions.elseSubgraphIndex = here + 1
        self.subgraph.operators.append(operator)
        self.subgraph.outputs = operator.outputs

    def _place(self, tensor: int) -> int:
        return self._places[tensor] if tensor in self._places else self._copy(tensor)

    def _copy(self, tensor: int) -> int:
        found = copy.copy(self._source.tensors[tensor])
        found.name = None  # Names of layers would be a third of a small file.
        self._places[tensor] = self._add(found)
        return self._places[tensor]

    def _add(self, tensor: Any) -> int:
        self.subgraph.tensors.append(copy.copy(tensor))
        return len(self.subgraph.tensors) - 1


def _sections(source: Subgraph, exits: Sequence[ExitTensors]) -> list[list[Operator]]:
    """Return the operators of each section, in their order."""
    makers = {
        tensor: number
        for number, operator in enumerate(source.operators)
        for tensor in tensors_written(operator)
    }
    section: dict[int, int] = {}
    for i, exit_ in enumerate(exits):
        waiting = list(exit_.read)
        while waiting:
            number = makers.get(waiting.pop())
            if number is not None and number not in section:
                section[number] = i
                waiting += tensors_read(source.operators[number])
    return [
        [source.operators[number] for number in sorted(section) if section[number] == i]
        for i in range(len(exits))
    ]


def _alive(
    source: Subgraph,
    parts: Sequence[Sequence[Operator]],
    exits: Sequence[ExitTensors],
    start: int,
) -> list[int]:
    """Return the tensors made before a section and read in it or behind it."""
    made = {int(each) for each in source.inputs}
    made |= {
        each for part in parts[:start] for op in part for each in tensors_written(op)
    }
    read = {each for part in parts[start:] for op in part for each in tensors_read(op)}
    read |= {each for exit_ in exits[start:] for each in exit_.read}
    return sorted(made & read)


def _add_operator_code(model: Model, code: int) -> int:
    found = schema().OperatorCodeT()
    found.builtinCode = found.deprecatedBuiltinCode = code
    found.version = 1
    model.operatorCodes.append(found)
    return len(model.operatorCodes) - 1


def _constant(model: Model, values: np.ndarray) -> Any:
    buffer = schema().BufferT()
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    model.buffers.append(buffer)
    return _int32_tensor(values.shape, len(model.buffers) - 1)


def _int32_tensor(shape: Sequence[int], buffer: int = 0) -> Any:
    found = schema().TensorT()
    found.shape, found.buffer = list(shape), buffer
    found.type = schema().TensorType.INT32
    return found


def _name_ends(model: Model, main: Subgraph, inputs: dict[str, int]) -> None:
    """Name the inputs, given by their positions, and the outputs of a model."""
    (signature,) = model.signatureDefs
    found = {name: main.inputs[at] for name, at in inputs.items()}
    made = dict(zip(OUTPUTS, main.outputs, strict=True))
    signature.inputs, signature.outputs = tensor_maps(found), tensor_maps(made)
    for name, tensor in (found | made).items():
        main.tensors[tensor].name = name
