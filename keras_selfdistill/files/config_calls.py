"""A limit on the calls of layers that creating a config's models takes.

If a model calls an inner model twice, which calls another one twice, and so on, each
level doubles the calls, but adds little to the config.
"""

import keras

from keras_selfdistill.files.config_check import ConfigPath, resolve, where
from keras_selfdistill.utils.type_aliases import ConfigDict

# A model of 10,000 layers, each called when it is created, as a base, and in a wrapper.
_MOST = 30_000


def check_calls(config: object) -> None:
    """Refuse a config whose models call layers too often.

    A call of a nested model counts as the calls in it.

    Args:
        config: Config that has passed `check_config`.

    Raises:
        ValueError: There are too many calls, or objects that are said to be one object
            differ. The message names the field.

    Example:
        >>> inputs = keras.Input((4,))
        >>> model = keras.layers.ReLU()
        >>> for _ in range(14):
        ...     model = keras.Model(inputs, model(model(inputs)))
        >>> check_calls(keras.saving.serialize_keras_object(model))
        Traceback (most recent call last):
            ...
        ValueError: The config's models call layers too often. Received: more than \
30000 calls, at config.layers.1.config.layers.1. Expected: ...
    """
    _Calls().count(config, ())


class _Calls:
    """Counts calls of layers, and those of shared objects."""

    def __init__(self) -> None:
        self._total = 0
        self._shared: dict[object, int] = {}

    def count(self, value: object, path: ConfigPath) -> int:
        """Return how many calls one call of everything in a value takes."""
        if isinstance(value, dict):
            parts = sum(
                self.count(each, (*path, key))
                for key, each in value.items()
                if key != "inbound_nodes"
            )
            return (
                self._of_object(value, parts, path) if "class_name" in value else parts
            )
        if isinstance(value, (list, tuple)):
            return sum(self.count(each, (*path, i)) for i, each in enumerate(value))
        return 0

    def _of_object(self, config: ConfigDict, parts: int, path: ConfigPath) -> int:
        kind = resolve(config)
        is_operation = isinstance(kind, type) and issubclass(kind, keras.Operation)
        calls = parts + is_operation
        self._check_shared(config, calls, path)
        nodes = config.get("inbound_nodes")
        if isinstance(nodes, (list, tuple)):
            calls *= len(nodes)
        self._total += calls
        if self._total > _MOST:
            raise ValueError(
                "The config's models call layers too often. Received: more than "
                f"{_MOST} calls, at {where(path)}. Expected: at most {_MOST}, those of "
                "nested models included. For a file that you trust, use "
                "keras.saving.load_model."
            )
        return calls

    def _check_shared(self, config: ConfigDict, calls: int, path: ConfigPath) -> None:
        """Refuse a reference to an object with other calls: Keras uses the first."""
        identity = config.get("shared_object_id")
        if not isinstance(identity, (int, float, str)):
            return
        if self._shared.setdefault(identity, calls) != calls:
            raise ValueError(
                "Two configs of one object differ. Received: shared_object_id="
                f"{identity!r} at {where(path)}, with other layers than before."
            )
