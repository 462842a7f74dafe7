"""Layers that recover logits: the input of an activation, or from probabilities."""

from typing import Any, Self

import keras
from keras import layers, ops

from keras_selfdistill.utils.config import PACKAGE
from keras_selfdistill.utils.type_aliases import (
    ConfigDict,
    Shape,
    SymbolicTensor,
    Tensor,
)


class ActivationNotCalledError(ValueError):
    """A layer's `call` did not call its `activation`."""


@keras.saving.register_keras_serializable(package=PACKAGE)
class PreActivation(layers.Layer):
    """The input of a layer's activation, computed with the layer's own weights.

    It recovers exact logits from a layer such as `Dense(10, activation="softmax")`. The
    logarithm of the probabilities would not: they underflow to 0 for logits 100 apart.

    The layer runs as usual, its activation and losses included. A model that uses the
    pre-activation must therefore not run the layer a second time.

    Args:
        layer: A built layer with an `activation` attribute; shared, not copied.

    Raises:
        ActivationNotCalledError: The layer's `call` does not call its activation.

    Example:
        >>> import numpy as np
        >>> identity = keras.initializers.Identity()
        >>> dense = keras.layers.Dense(2, "softmax", kernel_initializer=identity)
        >>> dense.build((None, 2))
        >>> logits = PreActivation(dense)(np.array([[80.0, -80.0]]))
        >>> keras.ops.convert_to_numpy(logits).tolist()
        [[80.0, -80.0]]
    """

    def __init__(self, layer: keras.Layer, **kwargs: Any) -> None:
        # Not the layer's policy, by which Keras would take this one for quantised.
        kwargs.setdefault("dtype", layer.compute_dtype)
        super().__init__(autocast=False, **kwargs)
        self.layer = layer
        self.built = layer.built
        self.supports_masking = True

    def call(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer and return the input of its activation."""
        given: list[Tensor] = []
        activation = self.layer.activation or keras.activations.linear

        def recorded(values: Tensor) -> Tensor:
            given.append(values)
            return activation(values)

        # A copy that shares all attributes but the activation: replacing that of the
        # layer itself, even for a moment, would affect other threads.
        twin = object.__new__(type(self.layer))
        before = dict(self.layer.__dict__)
        twin.__dict__.update(before, activation=recorded)
        # By its `__call__`, which runs quantised weights, masks and regularizers, too.
        twin(inputs, *args, **kwargs)
        self.layer.__dict__.update(
            (name, value)
            for name, value in twin.__dict__.items()
            if name != "activation" and before.get(name, before) is not value
        )
        if not given:
            raise ActivationNotCalledError(
                f"The layer does not call its activation. Received: {self.layer.name!r}"
                f" ({type(self.layer).__name__}). Expected: a layer such as Dense."
            )
        return given[-1]

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> SymbolicTensor:
        """Return the spec of the layer's own output; activations keep it."""
        # Tracing `call` instead would leave something in JAX for every wrapper.
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_mask(
        self, inputs: Tensor, previous_mask: Tensor | None = None
    ) -> Tensor | None:
        """Return the layer's mask."""
        if not self.layer.supports_masking:
            return None
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self) -> ConfigDict:
        """Return the arguments that make an equal layer."""
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer}

    @classmethod
    def from_config(cls, config: ConfigDict) -> Self:
        """Make the layer from what `get_config` returned."""
        config = dict(config)
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        return cls(layer, **config)

    def build(self, input_shape: Shape) -> None:
        """Build the layer inside."""
        if not self.layer.built:
            self.layer.build(input_shape)


@keras.saving.register_keras_serializable(package=PACKAGE)
class LogitsOfProbabilities(layers.Layer):
    """Logits whose softmax or sigmoid are the given probabilities.

    For bases whose logits cannot be found, such as those that resize a softmax.
    Probabilities rounded to 0 (for the sigmoid also to 1) get the logits of the nearest
    number that is not.

    Args:
        activation: `"softmax"`: probabilities sum to 1 along the last axis.
            `"sigmoid"`: each is independent.

    Example:
        >>> import numpy as np
        >>> logits = LogitsOfProbabilities("sigmoid")(np.array([[0.5, 0.75]]))
        >>> keras.ops.convert_to_numpy(logits).round(3).tolist()
        [[0.0, 1.0989999771118164]]
    """

    def __init__(self, activation: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if activation not in ("softmax", "sigmoid"):
            raise ValueError(
                "There are no logits for this activation. Received: activation="
                f"{activation!r}. Expected: 'softmax' or 'sigmoid'."
            )
        self.activation = activation
        self.supports_masking = True

    def call(self, inputs: Tensor) -> Tensor:
        """Return logits of the inputs' shape."""
        # The smallest number that is not flushed to 0, and the largest below 1.
        smallest, precision = (1e-37, 2.0**-24)
        if self.activation == "softmax":
            return ops.log(ops.maximum(inputs, smallest))
        inputs = ops.clip(inputs, smallest, 1 - precision)
        return ops.log(inputs) - ops.log1p(-inputs)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the inputs' shape."""
        return input_shape

    def get_config(self) -> ConfigDict:
        """Return the arguments that make an equal layer."""
        return {**super().get_config(), "activation": self.activation}
