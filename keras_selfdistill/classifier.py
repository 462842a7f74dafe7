"""Find where a base ends: its logits, its last feature, its class count."""

import collections
import dataclasses
from typing import Any

import keras
from keras import layers

from keras_selfdistill.config import PACKAGE
from keras_selfdistill.graph import check_functional, producer
from keras_selfdistill.layout import data_format_of, format_said_by
from keras_selfdistill.shells import original
from keras_selfdistill.task import Task, decide_task

# Layers that may stand between the last weights and the output, or between the
# feature and the last weights, without changing what the values mean.
_RESHAPING = (layers.Reshape, layers.Flatten, layers.Identity)
_RESIZING = (
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.Resizing,
    layers.Cropping1D,
    layers.Cropping2D,
)
_POOLING = (
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
)
# Activations between whose input and output no regression needs to tell.
_NOT_NUMBERS = (None, "linear", "softmax")
_DROPOUT = (
    layers.Dropout,
    layers.AlphaDropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
)


@keras.saving.register_keras_serializable(package=PACKAGE)
class PreActivation(layers.Layer):
    """What a layer computes before its activation, with the layer's own weights.

    Recovers true logits from, say, `Dense(10, activation="softmax")`. The log of the
    probabilities would not do: they underflow to 0 for logits 100 apart.

    Args:
        layer: A built layer with an `activation` attribute; shared, not copied.

    Example:
        >>> import numpy as np
        >>> ones = keras.initializers.Ones()
        >>> dense = keras.layers.Dense(1, "softmax", kernel_initializer=ones)
        >>> dense.build((None, 1))
        >>> logits = PreActivation(dense)(np.array([[80.0]]))
        >>> print(float(keras.ops.convert_to_numpy(logits)[0, 0]))
        80.0
    """

    def __init__(self, layer, **kwargs):
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(**kwargs)
        self.layer = layer
        self.built = layer.built

    def call(self, inputs):
        """Apply the layer without its activation."""
        # A twin that shares everything but the activation: to switch the activation
        # of the layer itself, even for a moment, would show in other threads.
        twin = object.__new__(type(self.layer))
        twin.__dict__.update(self.layer.__dict__)
        twin.__dict__["activation"] = keras.activations.linear
        return twin.call(inputs)

    def compute_output_spec(self, inputs):
        """Return the form of the layer's own output, which no activation changes."""
        # Else by tracing `call`, of which JAX keeps something for every wrapper.
        return self.layer.compute_output_spec(inputs)

    def get_config(self):
        """Return the arguments that make an equal layer."""
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer}

    @classmethod
    def from_config(cls, config):
        """Make the layer from what `get_config` returned."""
        config = dict(config)
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        return cls(layer, **config)

    def build(self, input_shape):
        """Build the layer inside."""
        if not self.layer.built:
            self.layer.build(input_shape)


@dataclasses.dataclass(frozen=True)
class Classifier:
    """The end of a base, as symbolic tensors.

    Args:
        logits: Of the output's shape, before the activation.
        feature: Shape `(batch, width)`: what the last layer with weights reads; with
            the output's positions, where each has an answer.
        task: What the base answers.
        output: The base's own output.
        last_spatial: The deepest tensor with spatial axes that leads to the feature,
            `None` where there is none.
        data_format: `"channels_last"` or `"channels_first"`.
    """

    logits: Any
    feature: Any
    task: Task
    output: Any
    last_spatial: Any
    data_format: str


def find_classifier(base, task=None):
    """Walk back from a base's output to its logits and its last feature.

    Args:
        base: A functional model with one output of shape `(batch, ..., units)`.
        task: As in `decide_task`.

    Returns:
        A `Classifier`. The base is left as it is.

    Raises:
        TypeError: The base is no functional or Sequential model.
        ValueError: The base has several outputs, or its end does not say what it
            answers, or not what the task asks for.

    Example:
        >>> inputs = keras.Input((4,))
        >>> hidden = keras.layers.Dense(3, activation="relu")(inputs)
        >>> outputs = keras.layers.Dense(2, activation="softmax")(hidden)
        >>> end = find_classifier(keras.Model(inputs, outputs))
        >>> end.task.name, end.task.units, end.feature.shape
        ('multiclass', 2, (None, 3))
    """
    check_functional(base)
    output = _only_output(base)
    node, logits, activation = _logits(base, output, task)
    task = decide_task(activation, output.shape, task, base.name)
    feature, last_spatial, data_format = _feature(base, node, task)
    return Classifier(logits, feature, task, output, last_spatial, data_format)


def find_logits(model, task=None):
    """Return the symbolic logits of a model: its output before the activation.

    Args:
        model: A functional model with one output of shape `(batch, ..., units)`.
        task: As in `decide_task`.

    Raises:
        ValueError: As in `find_classifier`.

    Example:
        >>> inputs = keras.Input((4,))
        >>> outputs = keras.layers.Softmax()(keras.layers.Dense(2, name="a")(inputs))
        >>> producer(find_logits(keras.Model(inputs, outputs))).operation.name
        'a'
    """
    output = _only_output(model)
    end = producer(output)
    last = original(end.operation)
    if _squashes(_activation_of(last), task) and not _weights(last):
        # What stands before an activation of its own, be it an ensemble's average.
        return end.input_tensors[0]
    return _logits(model, output, task)[1]


def _squashes(kind, task):
    """Whether an activation lies between logits and output, and is known by name."""
    if kind in ("softmax", "sigmoid"):
        return True
    return task == "regression" and kind not in _NOT_NUMBERS


def _logits(base, output, task):
    """Return (node of the last layer with weights, logits, activation behind them)."""
    node, logits, kind, behind, explicit = _walk_to_weights(base, output, task)
    last = original(node.operation)
    kind = kind or _activation_of(last)
    if _squashes(kind, task):
        if any(isinstance(original(operation), _POOLING) for operation in behind):
            raise ValueError(_unknown_end(base, last))  # No softmax of any logits.
        if logits is None:
            before = PreActivation(last, name=f"{node.operation.name}_logits")
            logits = before(node.input_tensors[0])
        for operation in reversed(behind):
            logits = _twin(operation)(logits)
        return node, logits, kind
    if kind == "linear" or (kind is None and explicit):
        return node, output, "linear"
    raise ValueError(_unknown_end(base, last))


def _twin(layer):
    """Return a layer without weights like one of the base, which is not called again.

    Keras keeps the calls of a layer as long as the layer.
    """
    like = original(layer)
    config = {**like.get_config(), "name": f"{layer.name}_of_logits"}
    return type(like).from_config(config)


def _walk_to_weights(base, output, task):
    """Walk back from the output to the last layer with weights.

    Returns:
        Its node; the input and the name of an activation of its own behind it, `None`
        if there is none; the operations between that and the output; and whether an
        activation layer says that the output is linear.
    """
    node, logits, found, behind, explicit = producer(output), None, None, [], False
    passing = _RESHAPING + _POOLING + _RESIZING
    while not _weights(node.operation):
        operation = original(node.operation)
        kind = _activation_of(operation)
        if len(node.input_tensors) != 1:
            raise ValueError(_unknown_end(base, operation))
        if logits is None and _squashes(kind, task):
            logits, found = node.input_tensors[0], kind
        elif logits is None:
            if kind != "linear" and not isinstance(operation, passing):
                raise ValueError(_unknown_end(base, operation))
            behind.append(node.operation)
            explicit = explicit or kind == "linear"
        node = producer(node.input_tensors[0])
    return node, logits, found, behind, explicit


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


def _activation_of(operation):
    """Return the name of the activation that a layer ends in, `None` if it has none."""
    if isinstance(operation, layers.Softmax):
        return "softmax" if operation.axis == -1 else None
    if not isinstance(operation, keras.Layer) or not hasattr(operation, "activation"):
        return None
    activation = operation.activation or keras.activations.linear
    return getattr(activation, "__name__", type(activation).__name__)


def _unknown_end(base, operation):
    kind = _activation_of(operation)
    ends_in = f"{operation.name!r} ({type(operation).__name__}"
    ends_in += f", activation {kind!r})" if kind else ")"
    return (
        f"Cannot tell the logits of model {base.name!r}. Received: a base that ends in "
        f"{ends_in}. Expected: a layer whose activation is softmax, sigmoid or linear, "
        "such as Dense. If it is another layer, put keras.layers.Activation('softmax') "
        "behind its logits, or Activation('linear') if the base is to answer in "
        "logits. If it ends in features, as with include_top=False, pass classes=10."
    )


def _weights(operation):
    return operation.weights if isinstance(operation, keras.Layer) else []


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
    pooling = {3: layers.GlobalAveragePooling1D, 4: layers.GlobalAveragePooling2D}
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
