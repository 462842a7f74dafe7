"""What is read of Keras that Keras does not publish: one small function for each."""

from typing import Any

from keras.src.backend.common.global_state import get_global_attribute


def writes_legacy_format() -> bool:
    """Tell whether Keras is asking for a config for a legacy `.h5` file.

    Its own models read the same attribute; nothing public tells a model what its config
    is for.

    Example:
        >>> writes_legacy_format()
        False
    """
    return bool(get_global_attribute("use_legacy_config", False))


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
