"""Trace the graph inside a layer that is made of layers, such as a stack of blocks."""

import dataclasses
import inspect
from collections.abc import Iterable

import keras

from keras_selfdistill.graph.compare_traces import first_difference, reads_weights
from keras_selfdistill.graph.trace_calls import needed_calls, trace_calls
from keras_selfdistill.utils.keras_internals import (
    call_context,
    flatten_layers,
    mask_of,
)
from keras_selfdistill.utils.type_aliases import Node, SymbolicTensor, Tensor


@dataclasses.dataclass(frozen=True)
class LayerGraph:
    """The sublayer calls that one call of a layer makes.

    Args:
        inputs: Symbolic inputs, one for each symbolic tensor of the call.
        outputs: Symbolic outputs.
        nodes: Nodes of the calls between them, in topological order.
    """

    inputs: list[SymbolicTensor]
    outputs: list[SymbolicTensor]
    nodes: list[Node]


def trace_layer(layer: keras.Layer, node: Node, path: str) -> LayerGraph:
    """Trace a layer's `call` into the graph of its sublayer calls.

    The call is traced in inference mode and, with other weights, in training mode. Both
    traces must be equal, so that one graph serves both modes and holds no constant that
    was computed from weights while tracing.

    Args:
        layer: Built layer that calls other layers and has no weights besides theirs.
        node: Node of the call to trace.
        path: Path of the layer, for error messages.

    Raises:
        ValueError: The layer has or reads weights besides those of its sublayers,
            assigns variables, adds losses, reads or computes a mask, behaves
            differently in training, or its `call` needs more than the shapes of its
            inputs.

    Example:
        >>> class Stack(keras.layers.Layer):
        ...     def __init__(self, **kwargs):
        ...         super().__init__(**kwargs)
        ...         self.first = keras.layers.Dense(4, name="first")
        ...         self.second = keras.layers.Dense(2, name="second")
        ...     def call(self, x):
        ...         return self.second(self.first(x))
        >>> stack = Stack(name="stack")
        >>> from keras_selfdistill.graph.nodes import producer
        >>> node = producer(stack(keras.Input((4,))))
        >>> [call.operation.name for call in trace_layer(stack, node, "stack").nodes]
        ['first', 'second']
    """
    _check_masks(node, path)
    if getattr(layer, "quantization_mode", None) is not None:
        raise _not_traceable(path, "it is quantized")
    inference = _trace(layer, node, path, training=False)
    training = _trace(layer, node, path, training=True, change_weights=True)
    what = first_difference(inference, training, training=(False, True))
    if what is not None:
        raise _not_traceable(path, f"{what}, in training or with other weights")
    found = _trace(layer, node, path)
    if (what := first_difference(inference, found)) is not None:
        raise _not_traceable(path, f"{what}, if called without `training`")
    _check_weights(layer, found, path)
    if [each.dtype for each in found.outputs] != [each.dtype for each in node.outputs]:
        raise _not_traceable(path, "its outputs have another dtype than declared")
    return found


def holds_layers(operation: keras.Operation) -> bool:
    """Return whether an operation is a layer with sublayers.

    Example:
        >>> holds_layers(keras.layers.Dense(2))
        False
        >>> holds_layers(keras.layers.Bidirectional(keras.layers.LSTM(2)))
        True
    """
    return isinstance(operation, keras.Layer) and len(flatten_layers(operation)) > 1


class _RecordingScope(keras.StatelessScope):
    """A scope that records which variables were assigned and which losses added."""

    def __init__(
        self, state_mapping: Iterable[tuple[keras.Variable, Tensor]] = ()
    ) -> None:
        super().__init__(list(state_mapping), collect_losses=True)
        self.assigned: list[str] = []

    def add_update(self, update: tuple[keras.Variable, Tensor]) -> None:
        """Record the variable; called by Keras."""
        self.assigned.append(update[0].path)
        super().add_update(update)


def _trace(
    layer: keras.Layer,
    node: Node,
    path: str,
    training: bool | None = None,
    change_weights: bool = False,
) -> LayerGraph:
    given = node.arguments.keras_tensors
    inputs = [
        keras.Input(batch_shape=tensor.shape, dtype=_dtype(layer, tensor))
        for tensor in given
    ]
    values = {id(old): new for old, new in zip(given, inputs, strict=True)}
    args, kwargs = node.arguments.fill_in(values)
    recorded = kwargs.pop("training", None)
    training = recorded if training is None else training
    parameters = inspect.signature(layer.call).parameters
    if training is not None and "training" in parameters:
        kwargs["training"] = training
    changed = layer.weights if change_weights else ()
    scope = _RecordingScope(map(_other_value, changed))
    try:
        with call_context(layer, training):
            nodes, outputs = trace_calls(layer.call, args, kwargs, inputs, (), scope)
    except Exception as error:
        raise _not_traceable(
            path, f"its call fails on symbolic tensors: {error}"
        ) from error
    if scope.assigned:
        raise _not_traceable(path, f"it assigns variables: {scope.assigned}")
    if scope.losses:
        raise _not_traceable(path, "it adds losses of its own")
    outputs = keras.tree.flatten(outputs)
    needed = needed_calls(nodes, outputs)
    for each in nodes:
        if each not in needed and isinstance(each.operation, keras.Layer):
            raise _not_traceable(
                path, f"its outputs do not need {each.operation.name!r}"
            )
    return LayerGraph(inputs, outputs, needed)


def _other_value(variable: keras.Variable) -> tuple[keras.Variable, Tensor]:
    """Return a variable and a value other than its own."""
    value = keras.ops.convert_to_tensor(variable)
    if keras.backend.is_float_dtype(variable.dtype):
        return variable, keras.ops.cast(0.5 * value + 1, variable.dtype)
    if variable.dtype == "bool":
        return variable, keras.ops.logical_not(value)
    return variable, keras.ops.cast(1 - keras.ops.cast(value, "int32"), variable.dtype)


def _check_masks(node: Node, path: str) -> None:
    if any(mask_of(tensor) is not None for tensor in node.arguments.keras_tensors):
        raise _not_traceable(path, "it reads a mask")
    if any(mask_of(tensor) is not None for tensor in node.outputs):
        raise _not_traceable(path, "it computes a mask")


def _check_weights(layer: keras.Layer, found: LayerGraph, path: str) -> None:
    layers = [each.operation for each in found.nodes]
    layers = [each for each in layers if isinstance(each, keras.Layer)]
    if not layers:
        raise _not_traceable(path, "it calls no layers")
    reached = {id(weight) for each in layers for weight in each.weights}
    alone = [weight.path for weight in layer.weights if id(weight) not in reached]
    if alone:
        raise _not_traceable(path, f"it has weights of its own, {alone}")
    if read := reads_weights(found.nodes):
        raise _not_traceable(path, f"it reads weights of its sublayers, {read}")


def _dtype(layer: keras.Layer, tensor: SymbolicTensor) -> str:
    floating = keras.backend.is_float_dtype(tensor.dtype)
    return layer.input_dtype if layer.autocast and floating else tensor.dtype


def _not_traceable(path: str, reason: str) -> ValueError:
    return ValueError(
        f"The sublayers of {path!r} cannot be tapped. Received: a layer that cannot be "
        f"traced, because {reason}. Expected: a `call` that only calls layers, the "
        "same ones in training and in inference; move a branch on `training`, or code "
        "that reads weights, into a sublayer of its own, as in Dropout. Or tap "
        f"{path!r} itself, or a neighbouring layer."
    )
