"""Layers that flattening adds: a renamed operation, a cast tensor with its mask."""

from typing import Any, Self

import keras

from keras_selfdistill.graph.nodes import producer
from keras_selfdistill.utils.config import PACKAGE
from keras_selfdistill.utils.keras_internals import mask_of, set_mask
from keras_selfdistill.utils.type_aliases import (
    ConfigDict,
    Shape,
    SymbolicTensor,
    Tensor,
    TensorStructure,
)


@keras.saving.register_keras_serializable(package=PACKAGE)
class Renamed(keras.Layer):
    """An operation under a unique name, where two nested models share layer names.

    Args:
        operation: Layer or operation; shared, not copied.

    Example:
        >>> layer = keras.layers.Flatten(name="flatten")
        >>> outputs = Renamed(layer, name="inner")(keras.Input((4, 2)))
        >>> outputs.shape
        (None, 8)
    """

    def __init__(self, operation: keras.Operation, **kwargs: Any) -> None:
        # Not the operation's policy, by which Keras would take this for quantised.
        kwargs.setdefault("dtype", getattr(operation, "compute_dtype", None))
        super().__init__(autocast=False, **kwargs)
        self.operation = operation
        self.supports_masking = getattr(operation, "supports_masking", False)
        self.built = getattr(operation, "built", True)

    def build(self, input_shape: Shape) -> None:
        """Build the operation."""
        self.operation.build(input_shape)

    def call(self, *args: Any, **kwargs: Any) -> TensorStructure:
        """Call the operation."""
        return self.operation(*args, **kwargs)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> TensorStructure:
        """Return what the operation would."""
        return self.operation.compute_output_spec(*args, **kwargs)

    def compute_mask(
        self, inputs: Tensor, previous_mask: Tensor | None = None
    ) -> Tensor | None:
        """Return the operation's mask."""
        if isinstance(self.operation, keras.Layer):
            return self.operation.compute_mask(inputs, previous_mask)
        return previous_mask

    def get_config(self) -> ConfigDict:
        """Return the arguments that make an equal layer."""
        operation = keras.saving.serialize_keras_object(self.operation)
        return {**super().get_config(), "operation": operation}

    @classmethod
    def from_config(cls, config: ConfigDict) -> Self:
        """Make the layer from what `get_config` returned."""
        config = dict(config)
        operation = keras.saving.deserialize_keras_object(config.pop("operation"))
        return cls(operation, **config)


@keras.saving.register_keras_serializable(package=PACKAGE)
class WithMask(keras.Layer):
    """A cast that keeps the mask it is called with.

    Replaces the inputs of a nested model: Keras keeps their masks there, which
    `keras.ops.cast` would drop.

    Args:
        to: Dtype of the output.

    Example:
        >>> steps, mask = keras.Input((5, 2)), keras.Input((5,), dtype="bool")
        >>> WithMask("float16")(steps, mask=mask).dtype
        'float16'
    """

    def __init__(self, to: str, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.to = keras.backend.standardize_dtype(to)
        self.built = True

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> TensorStructure:
        """Cast, and attach the mask, to a tensor that nothing else reads."""
        outputs = keras.ops.cast(inputs, self.to)
        if mask is None:
            return outputs
        if outputs is inputs:  # As of the same dtype; others may read it otherwise.
            outputs = keras.ops.copy(inputs)
        set_mask(outputs, mask)
        return outputs

    def compute_output_spec(
        self, inputs: Tensor, mask: Tensor | None = None
    ) -> TensorStructure:
        """Return the spec of the output: the inputs' shape, the new dtype."""
        return keras.KerasTensor(inputs.shape, self.to)

    def compute_mask(
        self, inputs: Tensor, previous_mask: Tensor | None = None
    ) -> Tensor | None:
        """Return the mask as it is."""
        return previous_mask

    def get_config(self) -> ConfigDict:
        """Return the arguments that make an equal layer."""
        return {**super().get_config(), "to": self.to}


def original(operation: keras.Operation) -> keras.Operation:
    """Return the operation that a `Renamed` layer wraps, or the one given.

    Example:
        >>> dense = keras.layers.Dense(2)
        >>> original(Renamed(dense)) is original(dense) is dense
        True
    """
    return operation.operation if isinstance(operation, Renamed) else operation


def masked_as(
    tensor: SymbolicTensor, output: SymbolicTensor, name: str
) -> SymbolicTensor:
    """Return a symbolic tensor, without its mask where an output has none.

    Keras leaves no padding out of the loss of an output without mask, such as what
    `keras.ops.softmax` makes of masked logits.

    Args:
        tensor: Symbolic tensor of floats.
        output: Symbolic tensor whose mask decides.
        name: Name of the operation that drops the mask.

    Example:
        >>> steps = keras.layers.Masking()(keras.Input((5, 2)))
        >>> output = keras.ops.softmax(steps)
        >>> mask_of(masked_as(steps, output, "unmasked")) is None
        True
    """
    if mask_of(tensor) is None or mask_of(output) is not None:
        return tensor
    # Not `keras.ops.copy`: on TensorFlow, that takes the mask along.
    tensor = keras.ops.multiply(tensor, 1.0)
    producer(tensor).operation.name = name
    return tensor


def as_inner_input(
    tensor: SymbolicTensor, mask: SymbolicTensor | None, dtype: str, name: str
) -> SymbolicTensor:
    """Return an input of a nested model as Keras passes it on: cast, with its mask.

    Args:
        tensor: Symbolic tensor of the outer model.
        mask: Mask that the call names; by default that of the tensor.
        dtype: Dtype of the nested model's input.
        name: Path of the input.

    Example:
        >>> as_inner_input(keras.Input((2,)), None, "float16", "nested_0").dtype
        'float16'
    """
    name = _layer_name(name)
    mask = mask_of(tensor) if mask is None else mask
    if mask is not None:
        # Also for equal dtypes: a loaded wrapper needs its layers in the same order.
        return WithMask(dtype, name=f"{name}_mask")(tensor, mask=mask)
    if tensor.dtype == dtype:
        return tensor
    cast = keras.ops.cast(tensor, dtype)
    producer(cast).operation.name = f"{name}_cast"
    return cast


def regularized(
    operation: keras.Operation, outputs: list[SymbolicTensor], name: str
) -> list[SymbolicTensor]:
    """Return the outputs of a flattened layer, with its own activity loss.

    Args:
        operation: Layer that was flattened.
        outputs: Its symbolic outputs.
        name: Path of the layer that adds the loss.

    Example:
        >>> outputs = [keras.Input((2,))]
        >>> regularized(keras.layers.Dense(2), outputs, "dense_activity") is outputs
        True
    """
    regularizer = getattr(operation, "activity_regularizer", None)
    if regularizer is None:
        return outputs
    identity = keras.layers.Identity(
        activity_regularizer=regularizer,
        autocast=False,
        dtype=operation.dtype_policy,
        name=_layer_name(name),
    )
    return [identity(tensor) for tensor in outputs]


def _layer_name(path: str) -> str:
    """Return a name that TensorFlow takes for a scope."""
    return path.replace("/", "_").replace("@", "_call_")
