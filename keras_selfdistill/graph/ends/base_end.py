"""Find the end of a base: its logits, its last feature, its task."""

import collections
import dataclasses

import keras
from keras import layers

from keras_selfdistill.graph.ends.logits import Activation, find_end
from keras_selfdistill.graph.layout import data_format_of, layer_data_format
from keras_selfdistill.graph.nodes import check_functional, producer
from keras_selfdistill.graph.shells import original
from keras_selfdistill.graph.task import Task, decide_task
from keras_selfdistill.utils.type_aliases import Node, SymbolicTensor

_DROPOUT = (
    layers.Dropout,
    layers.AlphaDropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
)


@dataclasses.dataclass(frozen=True)
class BaseEnd:
    """The end of a base, as symbolic tensors.

    Args:
        logits: Logits before the activation, of the output's shape.
        feature: Input of the last layer with weights, shape `(batch, width)`, or
            `(batch, *positions, width)` if the base predicts at each position.
        task: Task of the base.
        activation: Activation from logits to output.
        output: The base's own output; if its last layer would run a second time, an
            equal one computed from the logits.
        last_spatial: The deepest tensor with spatial axes on the path to the feature,
            `None` if there is none.
        data_format: `"channels_last"` or `"channels_first"`.
    """

    logits: SymbolicTensor
    feature: SymbolicTensor
    task: Task
    activation: Activation
    output: SymbolicTensor
    last_spatial: SymbolicTensor | None
    data_format: str


def find_base_end(base: keras.Model, task: str | None = None) -> BaseEnd:
    """Walk back from a base's output to its logits and its last feature.

    Names of layers do not decide what the activation is: output and logits are compared
    on a random batch. If they do not match but the output holds probabilities, the
    logits are computed from those.

    Args:
        base: A functional model with one output of shape `(batch, ..., units)`.
        task: Requested task, as in `decide_task`.

    Returns:
        A `BaseEnd`. The base is not changed.

    Raises:
        TypeError: The base is not a functional or Sequential model.
        ValueError: The base has several outputs, or its task is ambiguous or not the
            requested one.

    Example:
        >>> import keras
        >>> inputs = keras.Input((4,))
        >>> hidden = keras.layers.Dense(3, activation="relu")(inputs)
        >>> outputs = keras.layers.Dense(2, activation="softmax")(hidden)
        >>> end = find_base_end(keras.Model(inputs, outputs))
        >>> end.task.name, end.task.units, end.feature.shape
        ('multiclass', 2, (None, 3))
    """
    check_functional(base)
    output = _only_output(base)
    end = find_end(base, output, task)
    decided = decide_task(end.kind, output.shape, task, base.name)
    feature, last_spatial, data_format = _feature(base, end.node, decided)
    return BaseEnd(
        logits=end.logits,
        feature=feature,
        task=decided,
        activation=end.activation,
        output=end.output,
        last_spatial=last_spatial,
        data_format=data_format,
    )


def find_logits(model: keras.Model, task: str | None = None) -> SymbolicTensor:
    """Return the symbolic logits of a model: its output before the activation.

    Args:
        model: A functional model with one output of shape `(batch, ..., units)`.
        task: Requested task, as in `decide_task`.

    Raises:
        ValueError: As in `find_base_end`.

    Example:
        >>> import keras
        >>> inputs = keras.Input((4,))
        >>> outputs = keras.layers.Softmax()(keras.layers.Dense(2, name="a")(inputs))
        >>> producer(find_logits(keras.Model(inputs, outputs))).operation.name
        'a'
    """
    return find_end(model, _only_output(model), task, logits_only=True).logits


def _only_output(base: keras.Model) -> SymbolicTensor:
    if len(base.outputs) != 1:
        raise ValueError(
            f"The base must have one output. Received: model {base.name!r} with "
            f"{len(base.outputs)} outputs. Wrap a model of one of them, e.g. "
            f"keras.Model(model.inputs, model.outputs[0]), or `model.base` of a "
            "SelfDistiller."
        )
    output = base.outputs[0]
    if len(output.shape) < 2 or output.shape[-1] is None:
        raise ValueError(
            "The output of the base must have a known number of units. Received: model "
            f"{base.name!r} with an output of shape {tuple(output.shape)}. Expected: "
            "(batch, classes). Add pooling and a Dense layer, or pass classes=10."
        )
    return output


def _feature(
    base: keras.Model, last_node: Node, task: Task
) -> tuple[SymbolicTensor, SymbolicTensor | None, str]:
    """Return (feature vector, deepest spatial tensor, its data format)."""
    last_layer = last_node.operation
    feature = last_node.input_tensors[0]
    while isinstance(original(producer(feature).operation), _DROPOUT):
        feature = producer(feature).input_tensors[0]
    data_format = layer_data_format(original(last_layer), len(feature.shape))
    data_format = data_format or data_format_of(feature)
    if task.positions:
        if data_format != "channels_last" or len(feature.shape) < 3:
            order = (*range(2, len(feature.shape)), 1)
            raise ValueError(
                "To predict at each position, the last layer must read channels last. "
                f"Received: model {base.name!r}, whose last layer "
                f"with weights, {last_layer.name!r}, reads shape "
                f"{tuple(feature.shape)} with data_format={data_format!r}. Put "
                f"keras.layers.Permute({order}) before it, and data_format="
                "'channels_last' into it."
            )
        return feature, feature, data_format
    spatial, data_format = _deepest_spatial(feature, data_format)
    pooling = {
        3: layers.GlobalAveragePooling1D,
        4: layers.GlobalAveragePooling2D,
        5: layers.GlobalAveragePooling3D,
    }
    if len(feature.shape) in pooling:
        # A name of its own: an automatic one may be taken in a loaded base.
        pool = pooling[len(feature.shape)](
            data_format=data_format, name=f"{last_layer.name}_feature"
        )
        feature = pool(feature)
    return feature, spatial, data_format


def _deepest_spatial(
    tensor: SymbolicTensor, data_format: str
) -> tuple[SymbolicTensor | None, str]:
    """Search backwards for the nearest tensor with more than one position."""
    pending: collections.deque[tuple[SymbolicTensor, str | None]]
    pending, seen = collections.deque([(tensor, data_format)]), set()
    while pending:
        tensor, reader_format = pending.popleft()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        nearest_format = data_format_of(tensor, reader_format)
        last = nearest_format == "channels_last"
        sizes = tensor.shape[1:-1] if last else tensor.shape[2:]
        if any(size != 1 for size in sizes):
            return tensor, nearest_format
        node = producer(tensor)
        operation = original(node.operation)
        for source in node.input_tensors:
            rank = len(source.shape)
            same = nearest_format if rank == len(tensor.shape) else None
            pending.append((source, layer_data_format(operation, rank) or same))
    return None, data_format
