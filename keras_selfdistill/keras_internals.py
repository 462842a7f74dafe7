"""What is read of Keras that Keras does not publish: one small function for each."""

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
