"""Multiply-adds of a model's operations, from their shapes.

Counted are the layers that multiply by a kernel: convolutions of every kind, dense
layers and the models that hold them. Activations, normalisation, pooling and sums
count as zero, as is usual in the field.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from keras_selfdistill.classifier import PreActivation
from keras_selfdistill.flat import Renamed
from keras_selfdistill.graph import model_nodes

_FREE = (
    layers.BatchNormalization,
    layers.LayerNormalization,
    layers.GroupNormalization,
    layers.UnitNormalization,
    layers.RMSNormalization,
    layers.Normalization,
    layers.PReLU,
    layers.Embedding,
)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model costs.

    Args:
        parameters: Number of weights, trainable or not.
        multiply_adds: For one sample, of the layers whose cost is known.
        share: Multiply-adds as a share of the base's.
        unknown: Names of the layers whose cost is not known.
    """

    parameters: int
    multiply_adds: int
    share: float
    unknown: tuple[str, ...] = ()


def profile(model: Any) -> dict[str, Cost]:
    """Return the cost of each exit and the ensemble of a wrapper, shallow to deep.

    Each is the cost of the model that `exit_model` or `ensemble_model` returns, so
    `final` is the base alone. Exits that cannot be cut off are left out.

    Args:
        model: A `SelfDistiller`.

    Raises:
        ValueError: The base was built without a fixed input shape.

    Example:
        >>> import keras_selfdistill as ksd
        >>> base = ksd.networks.resnet18(width_multiplier=0.125, classes=10)
        >>> costs = ksd.profile(ksd.SelfDistiller(base, taps=1, recipe="byot"))
        >>> {name: round(cost.share, 2) for name, cost in costs.items()}
        {'exit_1': 0.54, 'final': 1.0, 'ensemble': 1.02}
    """
    names = model.exit_names if model.has_early_exits else ["final"]
    models = {name: model.exit_model(name) for name in names}
    models["final"] = model._graph.flat.model  # It knows the sizes in nested models.
    models["ensemble"] = model.ensemble_model()
    base_cost, _ = model_multiply_adds(models["final"])
    costs = {}
    for name, part in models.items():
        count, unknown = model_multiply_adds(part)
        share = count / base_cost if base_cost else float("nan")
        costs[name] = Cost(part.count_params(), count, share, unknown)
    return costs


def model_multiply_adds(model: Any) -> tuple[int, tuple[str, ...]]:
    """Return a functional model's multiply-adds, and the layers that are unknown.

    Example:
        >>> dense = keras.layers.Dense(8)
        >>> model_multiply_adds(keras.Sequential([keras.Input((4,)), dense]))
        (32, ())
    """
    nodes = model_nodes(model)
    counts = multiply_adds(nodes)
    unknown = [node.operation.name for node in nodes if counts[node] is None]
    return sum(count or 0 for count in counts.values()), tuple(unknown)


def multiply_adds(nodes: Sequence[Any]) -> dict[Any, int | None]:
    """Return the multiply-adds of each call in a functional graph, for one sample.

    Args:
        nodes: What `model_nodes` returned.

    Returns:
        The count of each node, `None` for a layer with weights whose cost is not known
        here.

    Raises:
        ValueError: A spatial size is unknown.

    Example:
        >>> inputs = keras.Input((8, 8, 3))
        >>> outputs = keras.layers.Conv2D(16, 3, padding="same")(inputs)
        >>> list(multiply_adds(model_nodes(keras.Model(inputs, outputs))).values())
        [0, 27648]
    """
    counts: dict[Any, int | None] = {}
    rows: dict[int, float] = {}  # Rows that one sample has in each tensor.
    for node in nodes:
        row = max((rows[id(tensor)] for tensor in node.input_tensors), default=1)
        count = _count(node.operation, node.input_tensors, node.outputs)
        counts[node] = None if count is None else round(count * row)
        if _reshapes_the_batch(node.operation):
            before, after = node.input_tensors[0].shape, node.outputs[0].shape
            row *= math.prod(before[1:]) / math.prod(after[1:])
        rows |= {id(tensor): row for tensor in node.outputs}
    return counts


def _reshapes_the_batch(operation):
    # `keras.ops.reshape`; the layer of this name leaves the batch axis alone.
    is_layer = isinstance(operation, keras.Layer)
    return type(operation).__name__ == "Reshape" and not is_layer


@functools.singledispatch
def _count(operation, inputs, outputs):
    if not isinstance(operation, keras.Layer) or isinstance(operation, _FREE):
        return 0
    # Vectors scale or shift, as in normalisation; only a matrix can be a kernel.
    vectors = all(len(weight.shape) < 2 for weight in operation.weights)
    return 0 if vectors else None


@_count.register(PreActivation)
def _count_before_activation(layer, inputs, outputs):
    return _count(layer.layer, inputs, outputs)


@_count.register(Renamed)
def _count_renamed(layer, inputs, outputs):
    return _count(layer.operation, inputs, outputs)


@_count.register(layers.Dense)
def _count_dense(layer, inputs, outputs):
    return _size(outputs[0].shape, layer) * inputs[0].shape[-1]


@_count.register(keras.Model)
def _count_model(model, inputs, outputs):
    if any(None in tensor.shape[1:] for tensor in model.inputs):
        return None  # Its own graph does not tell the sizes of this call.
    total, unknown = model_multiply_adds(model)
    return None if unknown else total


# Keras has no public base class for these: they are named one by one.
def _count_convolution(layer, inputs, outputs):
    positions = _size(_spatial(outputs[0].shape, layer), layer)
    channels = _channels(inputs[0].shape, layer) // layer.groups
    return positions * math.prod(layer.kernel_size) * channels * layer.filters


def _count_transposed(layer, inputs, outputs):
    positions = _size(_spatial(inputs[0].shape, layer), layer)
    channels = _channels(inputs[0].shape, layer)
    return positions * math.prod(layer.kernel_size) * channels * layer.filters


def _count_depthwise(layer, inputs, outputs):
    positions = _size(_spatial(outputs[0].shape, layer), layer)
    channels = _channels(inputs[0].shape, layer) * layer.depth_multiplier
    return positions * math.prod(layer.kernel_size) * channels


def _count_separable(layer, inputs, outputs):
    positions = _size(_spatial(outputs[0].shape, layer), layer)
    channels = _channels(inputs[0].shape, layer) * layer.depth_multiplier
    return positions * channels * (math.prod(layer.kernel_size) + layer.filters)


for _layer in (layers.Conv1D, layers.Conv2D, layers.Conv3D):
    _count.register(_layer, _count_convolution)
for _layer in (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose):
    _count.register(_layer, _count_transposed)
for _layer in (layers.DepthwiseConv1D, layers.DepthwiseConv2D):
    _count.register(_layer, _count_depthwise)
for _layer in (layers.SeparableConv1D, layers.SeparableConv2D):
    _count.register(_layer, _count_separable)


def _spatial(shape, layer):
    last = layer.data_format == "channels_last"
    return (None, *shape[1:-1]) if last else (None, *shape[2:])


def _channels(shape, layer):
    return shape[-1] if layer.data_format == "channels_last" else shape[1]


def _size(shape, layer):
    sizes = shape[1:]
    if None in sizes:
        raise ValueError(
            f"The cost of layer {layer.name!r} depends on a size that is not known. "
            f"Received: shape {tuple(shape)}. Expected: a base built with a fixed "
            "input shape, e.g. input_shape=(224, 224, 3)."
        )
    return math.prod(sizes)
