"""Find where a base ends: its logits, its last feature, its class count."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

from keras import layers

from keras_selfdistill.graph.ends.logits import find_end
from keras_selfdistill.graph.layout import data_format_of, format_said_by
from keras_selfdistill.graph.nodes import check_functional, producer
from keras_selfdistill.graph.shells import original
from keras_selfdistill.graph.task import Task, decide_task

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
        logits: Of the output's shape, before the activation.
        feature: Shape `(batch, width)`: what the last layer with weights reads; with
            the output's positions, where each has an answer.
        task: What the base answers.
        activation: Makes the output of the logits.
        output: The base's own output, or, where its last layer would run a second
            time, an equal one made of the logits.
        last_spatial: The deepest tensor with spatial axes that leads to the feature,
            `None` where there is none.
        data_format: `"channels_last"` or `"channels_first"`.
    """

    logits: Any
    feature: Any
    task: Task
    activation: Callable[[Any], Any]
    output: Any
    last_spatial: Any
    data_format: str


def find_base_end(base, task=None):
    """Walk back from a base's output to its logits and its last feature.

    That the output is the activation of the logits is not taken from a name: both are
    computed on a random batch. Where they differ, but the output is probabilities all
    the same, the logits are taken from these.

    Args:
        base: A functional model with one output of shape `(batch, ..., units)`.
        task: As in `decide_task`.

    Returns:
        A `BaseEnd`. The base is left as it is.

    Raises:
        TypeError: The base is no functional or Sequential model.
        ValueError: The base has several outputs, or its end does not say what it
            answers, or not what the task asks for.

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
    task = decide_task(end.kind, output.shape, task, base.name)
    feature, last_spatial, data_format = _feature(base, end.node, task)
    return BaseEnd(
        logits=end.logits,
        feature=feature,
        task=task,
        activation=end.activation,
        output=end.output,
        last_spatial=last_spatial,
        data_format=data_format,
    )


def find_logits(model, task=None):
    """Return the symbolic logits of a model: its output before the activation.

    Args:
        model: A functional model with one output of shape `(batch, ..., units)`.
        task: As in `decide_task`.

    Raises:
        ValueError: As in `find_base_end`.

    Example:
        >>> import keras
        >>> inputs = keras.Input((4,))
        >>> outputs = keras.layers.Softmax()(keras.layers.Dense(2, name="a")(inputs))
        >>> producer(find_logits(keras.Model(inputs, outputs))).operation.name
        'a'
    """
    return find_end(model, _only_output(model), task, alone=True).logits


def _only_output(base):
    if len(base.outputs) != 1:
        raise ValueError(
            f"The base must have one output. Received: model {base.name!r} with "
            f"{len(base.outputs)} outputs. Wrap the part that classifies, e.g. "
            f"keras.Model(model.inputs, model.outputs[0])."
        )
    output = base.outputs[0]
    if len(output.shape) < 2 or output.shape[-1] is None:
        raise ValueError(
            f"The base must answer with a known number of units. Received: model "
            f"{base.name!r} with an output of shape {tuple(output.shape)}. Expected: "
            "(batch, classes). Add pooling and a Dense layer, or pass classes=10."
        )
    return output


def _feature(base, classifier_node, task):
    """Return (feature vector, deepest spatial tensor, its data format)."""
    classifier = classifier_node.operation
    feature = classifier_node.input_tensors[0]
    while isinstance(original(producer(feature).operation), _DROPOUT):
        feature = producer(feature).input_tensors[0]
    data_format = format_said_by(original(classifier), len(feature.shape))
    data_format = data_format or data_format_of(feature)
    if task.positions:
        if data_format != "channels_last" or len(feature.shape) < 3:
            raise ValueError(
                "Where each position has an answer, the last layer must read positions "
                f"with channels last. Received: model {base.name!r}, whose last layer "
                f"with weights, {classifier.name!r}, reads shape "
                f"{tuple(feature.shape)} with data_format={data_format!r}."
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
            data_format=data_format, name=f"{classifier.name}_feature"
        )
        feature = pool(feature)
    return feature, spatial, data_format


def _deepest_spatial(tensor, data_format):
    """Search backwards for the nearest tensor with more than one position."""
    pending, seen = collections.deque([(tensor, data_format)]), set()
    while pending:
        tensor, reader_says = pending.popleft()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        nearest_format = data_format_of(tensor, reader_says)
        last = nearest_format == "channels_last"
        sizes = tensor.shape[1:-1] if last else tensor.shape[2:]
        if any(size != 1 for size in sizes):
            return tensor, nearest_format
        node = producer(tensor)
        operation = original(node.operation)
        for source in node.input_tensors:
            rank = len(source.shape)
            same = nearest_format if rank == len(tensor.shape) else None
            pending.append((source, format_said_by(operation, rank) or same))
    return None, data_format
