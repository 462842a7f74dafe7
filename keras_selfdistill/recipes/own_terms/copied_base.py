"""A copy of a base that predicts beside it, with weights of its own."""

import keras

from keras_selfdistill.graph.ends.base_end import find_logits
from keras_selfdistill.graph.flatten import flatten
from keras_selfdistill.graph.nodes import input_structure, unrecorded
from keras_selfdistill.utils.type_aliases import Tensor, TensorStructure


class CopiedBase(keras.Model):
    """The logits of a copy of a base of one class for each sample or position.

    Args:
        base: The base, which is copied.
        recipe: Name of the recipe that needs the copy, for the error.
        name: Name of the model.

    Attributes:
        copied: The copy, whose weights are in the order of the base's.

    Raises:
        ValueError: The base cannot be cloned.

    Example:
        >>> base = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> copy = CopiedBase(base, recipe="PastSelf", name="past")
        >>> copy(keras.ops.ones((4, 2))).shape == (4, 3)
        True
    """

    def __init__(self, base: keras.Model, *, recipe: str, name: str):
        # With autocast, float inputs such as ids would be rounded before any layer.
        super().__init__(name=name, autocast=False)
        self.copied = _copy(base, recipe)
        flat = flatten(self.copied).model
        with unrecorded(flat):
            logits = find_logits(flat, "multiclass")
        self.network = keras.Model(input_structure(flat), logits)
        self.built = True

    def call(self, inputs: TensorStructure) -> Tensor:
        """Return the logits, shape `(batch, classes)`."""
        return self.network(inputs, training=False)


def _copy(base: keras.Model, recipe: str) -> keras.Model:
    """Return a copy of a model with weights of its own."""
    try:
        copied = keras.models.clone_model(base)
        copied.set_weights(base.get_weights())
    except Exception as error:  # Whatever the code of a layer raises.
        raise ValueError(
            f"{recipe} needs a copy of the base, which clone_model could not make. "
            f"Received: base {base.name!r} ({type(error).__name__}: {error}). "
            "Expected: layers with a get_config() that returns all their arguments, "
            "registered by @keras.saving.register_keras_serializable()."
        ) from error
    return copied
