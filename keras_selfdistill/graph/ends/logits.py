"""Find the logits of a base: a check shows that its output is their activation."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from keras_selfdistill.graph.ends.check import agrees
from keras_selfdistill.graph.ends.pre_activation import (
    LogitsOfProbabilities,
    PreActivation,
)
from keras_selfdistill.graph.nodes import model_nodes, producer
from keras_selfdistill.graph.shells import masked_as, original

# Layers behind an activation that may as well be applied to logits. Whether what they
# make of logits are logits is checked.
_PASSING = (
    layers.Reshape,
    layers.Flatten,
    layers.Identity,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
    layers.Resizing,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
)
# Activations between whose input and output no regression needs to tell.
_NOT_NUMBERS = (None, "linear", "softmax")


@dataclasses.dataclass(frozen=True)
class End:
    """Where a base ends.

    Args:
        node: The call of the last layer with weights.
        logits: Symbolic tensor of the output's shape.
        output: The base's own output; where its last layer would run a second time,
            an equal tensor made of the logits.
        kind: Name of the activation from logits to output.
        activation: That activation.
    """

    node: Any
    logits: Any
    output: Any
    kind: str
    activation: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class _Path:
    """What the way back from an output to the last layer with weights met.

    Args:
        base: The model.
        output: Its output.
        node: The call of that layer.
        squash: The call with the activation, `None` if there is none; maybe the same.
        kind: Name of the activation, of the layer's where there is no other.
        behind: Operations between the activation (or, without one, the layer) and the
            output, from the output on.
        explicit: Whether one of them is an activation that says that it is linear.
    """

    base: Any
    output: Any
    node: Any
    squash: Any
    kind: str | None
    behind: tuple[Any, ...]
    explicit: bool

    def unused(self, name: str) -> str:
        """Return the name, or one like it that nothing in the base has."""
        taken = {node.operation.name for node in model_nodes(self.base)}
        while name in taken:
            name += "_"
        return name

    def activates(self, logits: Any, activation: Callable[[Any], Any]) -> bool:
        """Tell whether the output is the activation of logits."""
        return agrees(self.node.input_tensors, logits, self.output, activation)


def find_end(base: Any, output: Any, task: str | None, *, alone: bool = False) -> End:
    """Return where a base ends.

    That the output is the activation of the logits is not taken from a name: both are
    computed on a random batch. Where they differ, but the output is probabilities all
    the same, the logits are made of these.

    Args:
        base: A functional model.
        output: Its output, of shape `(batch, ..., units)`.
        task: As in `decide_task`.
        alone: Whether only the logits are asked for, so that no weights need to be
            found in front of an activation.

    Raises:
        ValueError: No logits are found.

    Example:
        >>> inputs = keras.Input((4,))
        >>> outputs = keras.ops.softmax(keras.layers.Dense(2, name="a")(inputs))
        >>> end = find_end(keras.Model(inputs, outputs), outputs, None)
        >>> end.kind, producer(end.logits).operation.name
        ('softmax', 'a')
    """
    path = _walk(base, output, task, alone)
    found = None
    if path.squash is not None:
        found = _in_front(path, _function(path)) or _behind(path)
    elif path.kind == "linear" and not path.explicit and task != "regression":
        found = _in_front(path, keras.activations.linear) and _as_it_is(path)
    if found is None and (path.explicit or task == "regression"):
        found = _as_it_is(path)
    if found is None:
        raise ValueError(_unknown_end(path))
    return found


def _walk(base, output, task, alone):
    """Walk back from the output to the last layer with weights."""
    node, squash, found, behind, explicit = producer(output), None, None, [], False
    while True:
        operation = original(node.operation)
        kind = _kind(operation)
        if squash is None and _squashes(kind, task):
            squash, found = node, kind
        if _weights(operation) or (alone and squash is not None):
            break
        if len(node.input_tensors) != 1:
            path = _Path(base, output, node, None, None, (), False)
            raise ValueError(_unknown_end(path))
        if squash is None:
            behind.append(node.operation)
            explicit = explicit or kind == "linear"
        node = producer(node.input_tensors[0])
    return _Path(base, output, node, squash, found or kind, tuple(behind), explicit)


def _in_front(path, activation):
    """Return the end with what its activation is called with, reshaped as its output.

    `None` if that cannot be told, or the output is not the activation of it.
    """
    if not all(map(_passes, path.behind)):
        return None
    node = path.squash or path.node
    inside = bool(_weights(original(node.operation)))
    logits = _pre_activation(path) if inside else node.input_tensors[0]
    if logits is None:
        return None
    for operation in reversed(path.behind):
        logits = _twin(operation)(logits)
    if not path.activates(logits, activation):
        return None
    name = path.unused(f"{path.node.operation.name}_unmasked")
    logits = masked_as(logits, path.output, name)
    output = path.output
    if inside:
        # The layer has run once, in front of its activation; not a second time here.
        name = path.unused(f"{path.node.operation.name}_output")
        output = layers.Activation(activation, name=name, dtype=output.dtype)(logits)
    return End(path.node, logits, output, path.kind, activation)


def _pre_activation(path):
    """Return what a layer with weights calls its activation with, `None` if unknown."""
    layer = original(path.node.operation)
    if inspect.isdatadescriptor(getattr(type(layer), "activation", None)):
        return None  # It is another layer's, as that of recurrent ones is their cell's.
    arguments = path.node.arguments
    args, kwargs = list(arguments.args), dict(arguments.kwargs)
    if not args:  # Called by keywords alone.
        args = [kwargs.pop(next(iter(inspect.signature(layer.call).parameters)))]
    name = path.unused(f"{path.node.operation.name}_logits")
    return PreActivation(layer, name=name)(*args, **kwargs)


def _behind(path):
    """Return the end with logits made of its probabilities, `None` if it has none."""
    if path.kind not in ("softmax", "sigmoid"):
        return None
    name = path.unused(f"{path.node.operation.name}_logits")
    dtype = "float64" if path.output.dtype == "float64" else "float32"
    logits = LogitsOfProbabilities(path.kind, name=name, dtype=dtype)(path.output)
    activation = _function(path)
    if not path.activates(logits, activation):
        return None
    return End(path.node, logits, path.output, path.kind, activation)


def _as_it_is(path):
    """Return the end whose output is logits, or numbers."""
    output, linear = path.output, keras.activations.linear
    return End(path.node, output, output, "linear", linear)


def _kind(operation):
    """Return the name of the activation that an operation ends in, `None` without one.

    It is a name alone, of a layer or of an operation such as `keras.ops.softmax`.
    """
    name = type(operation).__name__.lower()
    if isinstance(operation, layers.Softmax):
        return name
    if not isinstance(operation, keras.Layer):
        return name if hasattr(keras.activations, name) else None
    if not hasattr(operation, "activation"):
        return None
    activation = operation.activation or keras.activations.linear
    if isinstance(activation, layers.Softmax):
        return "softmax"
    return getattr(activation, "__name__", type(activation).__name__)


def _function(path):
    """Return what the activation computes: Keras' own of this name, or the layer's."""
    if path.kind in ("softmax", "sigmoid"):
        return getattr(keras.activations, path.kind)
    operation = original(path.squash.operation)
    if isinstance(operation, keras.Layer):
        return operation.activation
    return getattr(keras.activations, path.kind)


def _squashes(kind, task):
    """Whether an activation lies between logits and output, by its name."""
    if kind in ("softmax", "sigmoid"):
        return True
    return task == "regression" and kind not in _NOT_NUMBERS


def _passes(operation):
    """Whether an operation may as well be applied to logits."""
    like = original(operation)
    linear = isinstance(like, layers.Activation) and _kind(like) == "linear"
    return linear or isinstance(like, _PASSING)


def _twin(layer):
    """Return a layer without weights like one of the base, which is not called again.

    Keras keeps the calls of a layer as long as the layer.
    """
    like = original(layer)
    config = {**like.get_config(), "name": f"{layer.name}_of_logits"}
    return type(like).from_config(config)


def _weights(operation):
    return operation.weights if isinstance(operation, keras.Layer) else []


def _unknown_end(path):
    last = path.squash or path.node
    foreign = (each for each in path.behind if not _passes(each))
    nearest = last.operation if path.squash else next(foreign, last.operation)
    operation = original(nearest)
    kind = _kind(operation)
    ends_in = f"{operation.name!r} ({type(operation).__name__}"
    ends_in += f", activation {kind!r})" if kind else ")"
    return (
        f"Cannot tell the logits of model {path.base.name!r}. Received: a base that "
        f"ends in {ends_in}. Expected: a layer whose output is softmax, sigmoid or "
        "linear in what it computes, such as Dense; on a random batch, no such "
        "activation gave the output. If it is another layer, put "
        "keras.layers.Activation('softmax') behind its logits, or Activation('linear') "
        "if the base is to answer in logits. If it ends in features, as with "
        "include_top=False, pass classes=10."
    )
