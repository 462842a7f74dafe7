"""What a file may name: Keras' own building blocks and what the user registered.

Keras resolves the names in a config by importing them, and in its safe mode refuses
what it knows to be dangerous. This is the other way round: what is not known to be
harmless is refused, before anything is made from it.
"""

import functools
import reprlib
import sys
from typing import Any

import keras

# Public classes of Keras with a config that no file may name, and why.
REFUSED = {
    "keras.layers.Lambda": "it is code of the file",
    "keras.layers.TFSMLayer": "it runs a graph from a path",
    "keras.layers.TorchModuleWrapper": "it is a pickle",
    "keras.layers.JaxLayer": "it is code of the file",
    "keras.layers.FlaxLayer": "it is code of the file",
    "keras.InputSpec": "code makes it; no config of a model holds one",
}
_CODE = frozenset(
    name.rpartition(".")[2] for name in REFUSED if name.startswith("keras.layers.")
)
# Values that Keras writes as objects, with nothing to resolve.
_VALUES = frozenset(
    f"__{name}__"
    for name in ("keras_tensor", "tensor", "numpy", "bytes", "slice", "ellipsis")
)
_KINDS = (
    keras.Operation,  # Also layers, models and every other step of a graph.
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
_DEEPEST = 200  # Levels of nesting; models in models take six each.
_LARGEST = 2**31 - 1  # Of integers; no size is larger.
_IDENTITIES = ("seed", "shared_object_id")  # Integers that are no sizes.


def check_config(config: Any, *, code: bool = False) -> None:
    """Refuse a config that names what a model is not made of.

    Allowed are layers, operations, losses and the like of Keras that are loaded
    already, and what is registered with Keras. Nothing is imported to find out.

    Args:
        config: Of a model, as it stands in a file.
        code: Whether layers that carry code are left to Keras' safe mode.

    Raises:
        ValueError: Something else is named, a vocabulary is a path, or a number is too
            large for a size. The message names the field.

    Example:
        >>> dense = keras.layers.Dense(2, name="answers")
        >>> check_config(keras.saving.serialize_keras_object(dense))
        >>> shell = {"module": "os", "class_name": "function", "config": "system"}
        >>> check_config({"activation": shell})
        Traceback (most recent call last):
            ...
        ValueError: The config names what no model is made of. Received: 'system' of \
module 'os' at activation. Expected: ...
    """
    _check(config, [], code)


def resolve(config: dict[str, Any]) -> Any:
    """Return the class or function that an object of a config names.

    Nothing is imported to find it.

    Args:
        config: Config of an object; it has a field `"class_name"`.

    Returns:
        What is registered under the name, or else Keras' own; `None` where it is
        neither, or a value such as a tensor.

    Example:
        >>> resolve({"module": "keras.layers", "class_name": "Dense"}).__name__
        'Dense'
    """
    name = config["class_name"]
    is_function = name == "function"
    named = config.get("config") if is_function else name
    # By the field that Keras goes by; the other would hide what it imports.
    key = named if is_function else config.get("registered_name", name)
    known = keras.saving.get_registered_object(key) if isinstance(key, str) else None
    if known is not None:
        return known
    found = _keras_symbol(config.get("module"), named, is_function)
    return found if (callable(found) if is_function else _is_block(found)) else None


def _check(value, path, code):
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


def _is_name(value, path):
    return path[-1:] and path[-1] in _IDENTITIES and value.bit_length() <= 64


def _check_nodes(nodes, path):
    """Refuse calls of layers on values, which would be computed, in any size."""
    if not isinstance(nodes, (list, tuple)) or not all(
        isinstance(node, dict) and _holds_tensor(node) for node in nodes
    ):
        raise ValueError(
            f"A layer is called on no output of another. Received: {where(path)} "
            f"{reprlib.repr(nodes)}."
        )


def _holds_tensor(value):
    if isinstance(value, dict):
        is_tensor = value.get("class_name") == "__keras_tensor__"
        return is_tensor or any(map(_holds_tensor, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_holds_tensor, value))


def _check_object(config, path, code):
    """Refuse an object of a config that is made by anything but a block of models."""
    name = config["class_name"]
    if isinstance(name, str) and name in _VALUES:
        return
    named = config.get("config") if name == "function" else name
    if not code and (
        (isinstance(named, str) and named in _CODE)
        or name in ("__lambda__", "__typespec__")
    ):
        raise ValueError(
            f"The config holds code. Received: {name!r} at {where(path)}. Expected: a "
            "model of layers whose configs are data."
        )
    if code and name == "__lambda__":
        return
    _check_vocabulary(config, path)
    if resolve(config) is None:
        raise ValueError(
            "The config names what no model is made of. Received: "
            f"{reprlib.repr(named)} of module {reprlib.repr(config.get('module'))} at "
            f"{where(path)}. Expected: a layer, loss or the like of Keras, or what is "
            "registered by keras.saving.register_keras_serializable; import the "
            "package that registers it."
        )


def _keras_symbol(module, name, is_function):
    """Return what Keras would find under a name, `None` where it had to import."""
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
    if parts[:1] == ["src"]:
        _let_keras_load_optimizers()
        return getattr(sys.modules.get(module), name, None)
    found = keras
    for part in parts:
        found = getattr(found, part, None)
    return getattr(found, name, None)


@functools.cache
def _let_keras_load_optimizers():
    """Make one, with which Keras loads those of PyTorch; files name them by module."""
    if keras.backend.backend() == "torch":
        keras.optimizers.SGD()


def _is_block(thing):
    return isinstance(thing, type) and issubclass(thing, _KINDS)


def _check_vocabulary(config, path):
    """Refuse words that are to be read from a file of the loading machine."""
    fields = config.get("config")
    words = fields.get("vocabulary") if isinstance(fields, dict) else None
    if isinstance(words, str):
        raise ValueError(
            "The config names a file to be read. Received: vocabulary="
            f"{reprlib.repr(words)} at {where(path)}. Expected: the words."
        )


def where(path: list) -> str:
    """Return the place of a field in a config, for errors."""
    return ".".join(map(str, path)) or "its top"
