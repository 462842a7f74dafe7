"""Read, join and write TensorFlow Lite models, by LiteRT's own Python schema."""

import copy
from typing import Any, TypeAlias

import numpy as np

from keras_selfdistill.utils.optional_packages import optional_module

# Objects of the schema, which has no types of its own.
Model: TypeAlias = Any
Subgraph: TypeAlias = Any
Operator: TypeAlias = Any

_ALIGNMENT = 16  # Bytes; what the runtimes expect of constants.


def schema() -> Any:
    """Return the module of the classes of a model file."""
    return optional_module(
        "ai_edge_litert.schema_py_generated", "An int8 artifact", "export"
    )


def read(content: bytes) -> Model:
    """Return the model of a file."""
    return schema().ModelT.InitFromPackedBuf(content, 0)


def write(model: Model) -> bytes:
    """Return the file of a model: each constant once, aligned for all processors.

    Args:
        model: A model, which is changed: only the buffers that tensors read are kept,
            without metadata.
    """
    flatbuffers = optional_module("flatbuffers", "An int8 artifact", "export")
    tensors = [each for subgraph in model.subgraphs for each in subgraph.tensors]
    places: dict[bytes, int] = {b"": 0}  # The first buffer is that of no values.
    renumbered = {}
    for index in sorted({tensor.buffer for tensor in tensors}):
        values = buffer_bytes(model, index)
        renumbered[index] = places.setdefault(values, len(places))
    for tensor in tensors:
        tensor.buffer = renumbered[tensor.buffer]
    model.buffers = list(map(_AlignedBuffer, places))
    model.metadata = model.metadataBuffer = None
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def buffer_bytes(model: Model, index: int) -> bytes:
    """Return the bytes of a buffer; none if its tensors are computed."""
    found = model.buffers[index].data
    return b"" if found is None else np.asarray(found, np.uint8).tobytes()


def ends(model: Model) -> tuple[dict[str, int], dict[str, int]]:
    """Return the tensors of the inputs and outputs of a converted model, by name."""
    (found,) = model.signatureDefs
    inputs, outputs = (
        {each.name.decode(): each.tensorIndex for each in maps}
        for maps in (found.inputs, found.outputs)
    )
    return inputs, outputs


def joined(content: bytes, other: bytes) -> bytes:
    """Return a model that runs two models, one behind the other.

    Args:
        content: File of a model, whose outputs have the names of the other's inputs.
        other: File of a model of one subgraph.

    Returns:
        A model with the inputs of the first and the outputs of the second.

    Raises:
        ValueError: `other` has branches or loops.
    """
    model, behind = read(content), read(other)
    if len(behind.subgraphs) > 1:
        raise ValueError(
            "This criterion cannot be exported in int8. Received: a criterion with "
            f"branches or loops, which make {len(behind.subgraphs)} subgraphs. "
            "Expected: operations without keras.ops.cond or while_loop."
        )
    made, read_by = ends(model)[1], ends(behind)[0]
    places = {-1: -1} | {read_by[name]: made[name] for name in read_by}
    main, added = model.subgraphs[0], behind.subgraphs[0]
    for i, tensor in enumerate(added.tensors):
        tensor.buffer += len(model.buffers)
        if i not in places:
            places[i] = len(main.tensors)
            main.tensors.append(tensor)
    for operator in added.operators:
        operator.opcodeIndex += len(model.operatorCodes)
        main.operators.append(moved(operator, places))
    model.buffers += behind.buffers
    model.operatorCodes += behind.operatorCodes
    outputs = {name: places[each] for name, each in ends(behind)[1].items()}
    main.outputs = list(outputs.values())
    (signature,) = model.signatureDefs
    signature.outputs = tensor_maps(outputs)
    return write(model)


def tensor_maps(tensors: dict[str, int]) -> list[Any]:
    """Return tensors with names, as a signature has them."""
    found = []
    for name, tensor in tensors.items():
        each = schema().TensorMapT()
        each.name, each.tensorIndex = name, tensor
        found.append(each)
    return found


def moved(operator: Operator, places: dict[int, int]) -> Operator:
    """Return a copy of an operator that reads and writes other tensors.

    Args:
        operator: An operator.
        places: New index of each tensor.
    """
    found = copy.copy(operator)
    for name in ("inputs", "outputs", "intermediates"):
        tensors = getattr(operator, name)
        if tensors is not None:
            setattr(found, name, [places[int(each)] for each in tensors])
    return found


def name_of(model: Model, operator: Operator) -> str:
    """Return the name of the kind of an operator, such as `"CONV_2D"`."""
    found = model.operatorCodes[operator.opcodeIndex]
    code = max(found.builtinCode, found.deprecatedBuiltinCode)
    names = vars(schema().BuiltinOperator).items()
    return next(name for name, number in names if number == code)


def tensors_read(operator: Operator) -> set[int]:
    """Return the tensors that an operator reads, computed or constant."""
    return {int(each) for each in operator.inputs} - {-1}


def tensors_written(operator: Operator) -> set[int]:
    """Return the tensors that an operator computes."""
    extra = [] if operator.intermediates is None else operator.intermediates
    return {int(each) for each in [*operator.outputs, *extra]} - {-1}


class _AlignedBuffer:
    """A buffer whose bytes lie where every processor can read them."""

    def __init__(self, values: bytes):
        self._values = values

    def Pack(self, builder: Any) -> int:
        """Write the buffer; the schema's own `BufferT` does not align bytes."""
        names, data = schema(), None
        if self._values:
            builder.StartVector(1, len(self._values), _ALIGNMENT)
            builder.head = builder.Head() - len(self._values)
            end = builder.head + len(self._values)
            builder.Bytes[builder.head : end] = self._values
            data = builder.EndVector()
        names.BufferStart(builder)
        if data is not None:
            names.BufferAddData(builder, data)
        return names.BufferEnd(builder)
