"""Which activation an operation computes, and whether that is Keras' own."""

from collections.abc import Callable
from typing import TypeAlias

import keras
from keras import layers

from keras_selfdistill.utils.type_aliases import Tensor

Activation: TypeAlias = Callable[[Tensor], Tensor]

# Activations before which a regression has no other numbers than after.
_NOT_NUMBERS = (None, "linear", "softmax")
_PROBABILITIES = ("softmax", "sigmoid")


def activation_name(operation: keras.Operation) -> str | None:
    """Return the name of an operation's activation, `None` if it has none.

    The operation is a layer, or an activation itself such as `keras.ops.softmax`.

    Example:
        >>> activation_name(keras.layers.Dense(2, activation="relu"))
        'relu'
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


def activation_of(operation: keras.Operation) -> Activation:
    """Return the activation function of an operation that has one.

    For probabilities it is Keras' own of that name, which the operation may not be: see
    `computes_keras_activation`.

    Example:
        >>> activation_of(keras.layers.Dense(2, activation="relu")).__name__
        'relu'
    """
    name = activation_name(operation)
    if name not in _PROBABILITIES and isinstance(operation, keras.Layer):
        return operation.activation
    return getattr(keras.activations, str(name))


def computes_keras_activation(operation: keras.Operation) -> bool:
    """Return whether `activation_of` is what the operation applies, not a namesake.

    A user's function may be the same on a random batch and clip other numbers.

    Example:
        >>> def softmax(x):
        ...     return keras.ops.softmax(keras.ops.clip(x, -3, 3))
        >>> ours, theirs = (keras.layers.Activation(f) for f in (softmax, "softmax"))
        >>> computes_keras_activation(ours), computes_keras_activation(theirs)
        (False, True)
    """
    name = activation_name(operation)
    if name not in _PROBABILITIES:  # The operation's own function is taken.
        return True
    if isinstance(operation, layers.Softmax) or not isinstance(operation, keras.Layer):
        return is_of_keras(operation)
    activation = operation.activation
    if isinstance(activation, layers.Softmax):
        return is_of_keras(activation)
    return any(activation is getattr(at, name) for at in (keras.activations, keras.ops))


def is_of_keras(operation: keras.Operation) -> bool:
    """Return whether an operation and its activation are Keras' own, not a user's.

    Example:
        >>> class Clipped(keras.layers.Dense):
        ...     pass
        >>> is_of_keras(keras.layers.Dense(2)), is_of_keras(Clipped(2))
        (True, False)
        >>> is_of_keras(keras.layers.Dense(2, activation=lambda x: x))
        False
    """
    activation = getattr(operation, "activation", None)
    parts = (operation,) if activation is None else (operation, activation)
    return all(each.__module__.split(".")[0] == keras.__name__ for each in parts)


def separates_logits(name: str | None, task: str | None) -> bool:
    """Return whether an activation of this name separates logits and output.

    Args:
        name: Name of the activation, `None` if there is none.
        task: Requested task, as in `decide_task`.

    Example:
        >>> separates_logits("tanh", None), separates_logits("tanh", "regression")
        (False, True)
    """
    return name in _PROBABILITIES or (task == "regression" and name not in _NOT_NUMBERS)
