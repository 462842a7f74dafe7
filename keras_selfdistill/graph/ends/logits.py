"""Find the logits of a base, and check that its output is their activation."""

import dataclasses
import inspect

import keras
from keras import layers

from keras_selfdistill.graph.ends.activation import (
    Activation,
    activation_name,
    activation_of,
    computes_keras_activation,
    is_of_keras,
    separates_logits,
)
from keras_selfdistill.graph.ends.check import agrees
from keras_selfdistill.graph.ends.pre_activation import (
    LogitsOfProbabilities,
    PreActivation,
)
from keras_selfdistill.graph.nodes import model_nodes, producer
from keras_selfdistill.graph.shells import masked_as, original
from keras_selfdistill.utils.type_aliases import Node, SymbolicTensor

# Layers after an activation that may be applied to the logits instead. Whether the
# results are logits is checked.
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


@dataclasses.dataclass(frozen=True)
class LogitsEnd:
    """The logits of a base and the activation after them.

    Args:
        node: Node of the last layer with weights.
        logits: Symbolic logits, of the output's shape.
        output: The base's own output; if its last layer would run a second time, an
            equal tensor computed from the logits.
        kind: Name of the activation from logits to output.
        activation: The activation itself.
    """

    node: Node
    logits: SymbolicTensor
    output: SymbolicTensor
    kind: str
    activation: Activation


@dataclasses.dataclass(frozen=True)
class _Path:
    """The path back from an output to the last layer with weights.

    Args:
        base: The model.
        output: Output of the model.
        node: Node of the last layer with weights.
        squash: Node with the activation, maybe the same; `None` if there is none.
        kind: Name of that activation; without one, of the last layer's own, or "".
        behind: Operations after the activation (without one, after the last layer),
            from the output backwards.
        explicit: Whether one of them is an explicit linear activation.
    """

    base: keras.Model
    output: SymbolicTensor
    node: Node
    squash: Node | None
    kind: str
    behind: tuple[keras.Operation, ...]
    explicit: bool

    def unused(self, name: str) -> str:
        """Return the name, with a suffix if it is taken in the base."""
        taken = {node.operation.name for node in model_nodes(self.base)}
        while name in taken:
            name += "_"
        return name

    def squash_operation(self) -> keras.Operation:
        """Return the operation with the activation; without one, the last layer."""
        return original((self.squash or self.node).operation)

    def is_of_keras(self) -> bool:
        """Return whether Keras' own code leads from the logits to the output."""
        behind = map(original, self.behind)
        return all(map(is_of_keras, [self.squash_operation(), *behind]))

    def activates(
        self, logits: SymbolicTensor, activation: Activation, *, large: bool
    ) -> bool:
        """Return whether the output is the activation of logits."""
        inputs = self.node.input_tensors
        return agrees(inputs, logits, self.output, activation, large=large)


def find_end(
    base: keras.Model,
    output: SymbolicTensor,
    task: str | None,
    *,
    logits_only: bool = False,
) -> LogitsEnd:
    """Return the logits of a base and the activation after them.

    Names of layers do not decide what the activation is: output and logits are compared
    on a random batch. If they do not match but the output holds probabilities, the
    logits are computed from those.

    Args:
        base: A functional model.
        output: Output of the base, shape `(batch, ..., units)`.
        task: Requested task, as in `decide_task`.
        logits_only: Whether only the logits are needed, so that the activation need not
            follow a layer with weights.

    Raises:
        ValueError: No logits are found.

    Example:
        >>> inputs = keras.Input((4,))
        >>> outputs = keras.ops.softmax(keras.layers.Dense(2, name="a")(inputs))
        >>> end = find_end(keras.Model(inputs, outputs), outputs, None)
        >>> end.kind, producer(end.logits).operation.name
        ('softmax', 'a')
    """
    path = _walk(base, output, task, logits_only)
    found = None
    if path.squash is not None:
        operation = path.squash_operation()
        if computes_keras_activation(operation):
            found = _in_front(path, activation_of(operation))
        found = found or _behind(path)
    elif path.kind == "linear" and not path.explicit and task != "regression":
        found = _in_front(path, keras.activations.linear) and _as_it_is(path)
    if found is None and (path.explicit or task == "regression"):
        found = _as_it_is(path)
    if found is None:
        raise ValueError(_unknown_end(path))
    return found


def _walk(
    base: keras.Model, output: SymbolicTensor, task: str | None, logits_only: bool
) -> _Path:
    """Walk back from the output to the last layer with weights."""
    node, squash, found, behind, explicit = producer(output), None, None, [], False
    while True:
        operation = original(node.operation)
        kind = activation_name(operation)
        if squash is None and separates_logits(kind, task):
            squash, found = node, kind
        if _weights(operation) or (logits_only and squash is not None):
            break
        if len(node.input_tensors) != 1:
            path = _Path(base, output, node, None, "", (), False)
            raise ValueError(_unknown_end(path))
        if squash is None:
            behind.append(node.operation)
            explicit = explicit or (kind == "linear" and is_of_keras(operation))
        node = producer(node.input_tensors[0])
    kind = found or kind or ""
    return _Path(base, output, node, squash, kind, tuple(behind), explicit)


def _in_front(path: _Path, activation: Activation) -> LogitsEnd | None:
    """Return the end whose logits are the input of the activation, reshaped.

    `None` if they cannot be found, or the output is not their activation.
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
    # What Keras computes between the two does not change with their size.
    if not path.activates(logits, activation, large=not path.is_of_keras()):
        return None
    name = path.unused(f"{path.node.operation.name}_unmasked")
    logits = masked_as(logits, path.output, name)
    output = path.output
    if inside:
        # The layer has run once, in front of its activation; not a second time here.
        name = path.unused(f"{path.node.operation.name}_output")
        output = layers.Activation(activation, name=name, dtype=output.dtype)(logits)
    return LogitsEnd(path.node, logits, output, path.kind, activation)


def _pre_activation(path: _Path) -> SymbolicTensor | None:
    """Return the input of the activation of a layer with weights, `None` if unknown."""
    layer = original(path.node.operation)
    if inspect.isdatadescriptor(getattr(type(layer), "activation", None)):
        return None  # It is another layer's, as that of recurrent ones is their cell's.
    arguments = path.node.arguments
    args, kwargs = list(arguments.args), dict(arguments.kwargs)
    if not args:  # Called by keywords alone.
        args = [kwargs.pop(next(iter(inspect.signature(layer.call).parameters)))]
    name = path.unused(f"{path.node.operation.name}_logits")
    return PreActivation(layer, name=name)(*args, **kwargs)


def _behind(path: _Path) -> LogitsEnd | None:
    """Return the end with logits of its probabilities, `None` if it has none."""
    if path.kind not in ("softmax", "sigmoid"):
        return None
    name = path.unused(f"{path.node.operation.name}_logits")
    dtype = "float64" if path.output.dtype == "float64" else "float32"
    logits = LogitsOfProbabilities(path.kind, name=name, dtype=dtype)(path.output)
    activation = activation_of(path.squash_operation())
    if not path.activates(logits, activation, large=True):
        return None
    return LogitsEnd(path.node, logits, path.output, path.kind, activation)


def _as_it_is(path: _Path) -> LogitsEnd:
    """Return the end whose output is the logits themselves, or numbers."""
    output, linear = path.output, keras.activations.linear
    return LogitsEnd(path.node, output, output, "linear", linear)


def _passes(operation: keras.Operation) -> bool:
    """Return whether an operation may be applied to logits instead."""
    like = original(operation)
    linear = isinstance(like, layers.Activation) and activation_name(like) == "linear"
    return linear or isinstance(like, _PASSING)


def _twin(layer: keras.Layer) -> keras.Layer:
    """Return a copy of a layer without weights.

    The base's own layer is not called again: Keras keeps calls as long as the layer.
    """
    like = original(layer)
    config = {**like.get_config(), "name": f"{layer.name}_of_logits"}
    return type(like).from_config(config)


def _weights(operation: keras.Operation) -> list[keras.Variable]:
    return operation.weights if isinstance(operation, keras.Layer) else []


def _unknown_end(path: _Path) -> str:
    last = path.squash or path.node
    foreign = (each for each in path.behind if not _passes(each))
    nearest = last.operation if path.squash else next(foreign, last.operation)
    operation = original(nearest)
    kind = activation_name(operation)
    ends_in = f"{operation.name!r} ({type(operation).__name__}"
    ends_in += f", activation {kind!r})" if kind else ")"
    return (
        f"Cannot find the logits of model {path.base.name!r}. Received: a base that "
        f"ends in {ends_in}. Expected: a layer such as Dense whose activation is "
        "softmax, sigmoid or linear; on a random batch, none of these gave the output. "
        "After any other layer, add keras.layers.Activation('softmax') on its logits, "
        "or Activation('linear') if the base returns logits. If it ends in features, "
        "as with include_top=False, pass classes=10."
    )
