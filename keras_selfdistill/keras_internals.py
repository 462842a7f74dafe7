"""What is read of Keras beyond its public names, each with the reason.

A new Keras that changes one of them breaks this file and its tests.
"""

from typing import Any


def value_without_autocast(variable: Any) -> Any:
    """Return a variable's value in its own dtype, also inside of a layer's call.

    There, `variable.value` is cast to the layer's compute dtype, and Keras' scope that
    turns this off is not public.

    Example:
        >>> import keras
        >>> value_without_autocast(keras.Variable([1.0, 2.0])).shape == (2,)
        True
    """
    return variable._value
