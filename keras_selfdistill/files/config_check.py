"""The names that a config may contain: Keras' own objects and registered ones.

Keras resolves the names in a config by importing them; its safe mode refuses those
known to be dangerous. This module is an allowlist instead: every name that is not known
to be harmless is refused before any object is created.
"""

import functools
import reprlib
import sys
from collections.abc import Sequence
from typing import Any

import keras

from keras_selfdistill.utils.type_aliases import ConfigDict

# Public classes of Keras that no config may name, and why.
REFUSED = {
    "keras.layers.Lambda": "it runs code from the file",
    "keras.layers.TFSMLayer": "it runs a graph from a path",
    "keras.layers.TorchModuleWrapper": "it is a pickle",
    "keras.layers.JaxLayer": "it runs code from the file",
    "keras.layers.FlaxLayer": "it runs code from the file",
    "keras.InputSpec": "configs of models never contain one",
}
_CODE = frozenset(
    name.rpartition(".")[2] for name in REFUSED if name.startswith("keras.layers.")
)
# Values that Keras writes like objects; their names are not resolved.
_VALUES = frozenset(
    f"__{name}__"
    for name in ("keras_tensor", "tensor", "numpy", "bytes", "slice", "ellipsis")
)
_KINDS = (
    keras.Operation,  # Also layers and models.
    keras.DTypePolicy,
    keras.constraints.Constraint,
    keras.distillation.DistillationLoss,
    keras.initializers.Initializer,
    keras.losses.Loss,
    keras.metrics.Metric,
    keras.optimizers.Optimizer,
    keras.optimizers.OptimizerMap,
    keras.optimizers.schedules.LearningRateSchedule,
    keras.quantizers.QuantizationConfig,
    keras.quantizers.Quantizer,
    keras.random.SeedGenerator,
    keras.regularizers.Regularizer,
)
_FUNCTIONS = ("activations", "losses", "metrics", "ops", "regularizers")
ConfigPath = Sequence[str | int]  # Keys and indices from the top of a config.
_DEEPEST = 200  # Levels of nesting; nested models take six each.
_LARGEST = 2**31 - 1  # Limit on integers; no size is larger.
_IDENTITIES = ("seed", "shared_object_id")  # Integers that are not sizes.


def check_config(config: object, *, code: bool = False) -> None:
    """Refuse a config that names anything but components of models.

    Allowed are layers, operations, losses and other classes of Keras that are already
    loaded, and objects registered with Keras. Nothing is imported for the check.

    Args:
        config: Config of a model, as read from a file.
        code: Whether layers that contain code are left to Keras' safe mode.

    Raises:
        ValueError: Another name is used, a vocabulary is a path, or a number is too
            large for a size. The message names the field.

    Example:
        >>> dense = keras.layers.Dense(2, name="logits")
        >>> check_config(keras.saving.serialize_keras_object(dense))
        >>> shell = {"module": "os", "class_name": "function", "config": "system"}
        >>> check_config({"activation": shell})
        Traceback (most recent call last):
            ...
        ValueError: The config names no component of a model. Received: 'system' of \
module 'os' at activation. Expected: ...
    """
    _check(config, [], code)


def resolve(config: ConfigDict) -> Any:
    """Return the class or function that a config names, without importing anything.

    Args:
        config: Config of an object; it has a field `"class_name"`.

    Returns:
        The object registered under the name, or else Keras' own; `None` if there is
        neither, or for a value such as a tensor.

    Example:
        >>> resolve({"module": "keras.layers", "class_name": "Dense"}).__name__
        'Dense'
    """
    name = config["class_name"]
    is_function = name == "function"
    named = config.get("config") if is_function else name
    # The field that Keras reads; another one could hide what it imports.
    key = named if is_function else config.get("registered_name", name)
    known = keras.saving.get_registered_object(key) if isinstance(key, str) else None
    if known is not None:
        return known
    found = _keras_symbol(config.get("module"), named, is_function)
    return found if (callable(found) if is_function else _is_block(found)) else None


def _check(value: object, path: ConfigPath, code: bool) -> None:
    if len(path) > _DEEPEST:
        raise ValueError(
            f"The config is nested too deeply. Received: more than {_DEEPEST} levels, "
            f"at {where(path[:8])}…."
        )
    if isinstance(value, dict):
        if "class_name" in value:
            _check_object(value, path, code)
        for key, each in value.items():
            if key == "inbound_nodes":
                _check_nodes(each, [*path, key])
            _check(each, [*path, key], code)
    elif isinstance(value, (list, tuple)):
        for i, each in enumerate(value):
            _check(each, [*path, i], code)
    elif isinstance(value, int) and abs(value) > _LARGEST and not _is_name(value, path):
        raise ValueError(
            "A number of the config is too large for a size. Received: "
            f"{reprlib.repr(value)} at {where(path)}. Expected: at most {_LARGEST}."
        )


def _is_name(value: int, path: ConfigPath) -> bool:
    is_identity = bool(path) and path[-1] in _IDENTITIES
    return is_identity and value.bit_length() <= 64


def _check_nodes(nodes: object, path: ConfigPath) -> None:
    """Refuse calls of layers on values, which Keras would compute, in any size."""
    if not isinstance(nodes, (list, tuple)) or not all(
        isinstance(node, dict) and _holds_tensor(node) for node in nodes
    ):
        raise ValueError(
            f"A layer is not called on a symbolic tensor. Received: {where(path)} "
            f"{reprlib.repr(nodes)}."
        )


def _holds_tensor(value: object) -> bool:
    if isinstance(value, dict):
        is_tensor = value.get("class_name") == "__keras_tensor__"
        return is_tensor or any(map(_holds_tensor, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_holds_tensor, value))


def _check_object(config: ConfigDict, path: ConfigPath, code: bool) -> None:
    """Refuse a config of an object that is not a component of models."""
    name = config["class_name"]
    if isinstance(name, str) and name in _VALUES:
        return
    named = config.get("config") if name == "function" else name
    if not code and (
        (isinstance(named, str) and named in _CODE)
        or name in ("__lambda__", "__typespec__")
    ):
        raise ValueError(
            f"The config contains code. Received: {name!r} at {where(path)}. Expected: "
            "a model of layers whose configs are data."
        )
    if code and name == "__lambda__":
        return
    _check_vocabulary(config, path)
    if resolve(config) is None:
        raise ValueError(
            "The config names no component of a model. Received: "
            f"{reprlib.repr(named)} of module {reprlib.repr(config.get('module'))} at "
            f"{where(path)}. Expected: a layer, loss or other class of Keras, or an "
            "object registered by keras.saving.register_keras_serializable; import the "
            "package that registers it."
        )


def _keras_symbol(module: object, name: object, is_function: bool) -> Any:
    """Return the object that Keras finds under a name, `None` if it would import it."""
    if not (isinstance(module, str) and isinstance(name, str)):
        return None
    package, *parts = module.split(".")
    if is_function:
        if module != "builtins" and (package != "keras" or len(parts) != 1):
            return None
        places = _FUNCTIONS if module == "builtins" else parts
        functions = (
            getattr(getattr(keras, each), name, None)
            for each in places
            if each in _FUNCTIONS
        )
        return next((each for each in functions if each is not None), None)
    if package != "keras":
        return None
    if module not in sys.modules:
        _let_keras_load_optimizers()
    return getattr(sys.modules.get(module), name, None)


@functools.cache
def _let_keras_load_optimizers() -> None:
    """Create one, so that Keras loads its PyTorch optimizers; configs name them."""
    if keras.backend.backend() == "torch":
        keras.optimizers.SGD()


def _is_block(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, _KINDS)


def _check_vocabulary(config: ConfigDict, path: ConfigPath) -> None:
    """Refuse a vocabulary that would be read from a file of the loading machine."""
    fields = config.get("config")
    words = fields.get("vocabulary") if isinstance(fields, dict) else None
    if isinstance(words, str):
        raise ValueError(
            "The config names a file to read. Received: vocabulary="
            f"{reprlib.repr(words)} at {where(path)}. Expected: a list of words."
        )


def where(path: ConfigPath) -> str:
    """Return the position of a field in a config, for error messages."""
    return ".".join(map(str, path)) or "its top"
