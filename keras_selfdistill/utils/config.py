"""Frozen configuration objects that Keras can serialise, and their shorthand names."""

import dataclasses
import difflib
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import keras

from keras_selfdistill.utils.type_aliases import ConfigDict

PACKAGE = "keras_selfdistill"


class Config:
    """Serialisation of a frozen dataclass of plain values and Keras objects.

    Example:
        >>> import dataclasses
        >>> @dataclasses.dataclass(frozen=True)
        ... class Point(Config):
        ...     x: int
        >>> Point.from_config(Point(3).get_config())
        Point(x=3)
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse a subclass that lacks `@dataclass`: its fields would be ignored.

        Raises:
            TypeError: The class is not decorated.
        """
        own = [
            name
            for name, annotation in inspect.get_annotations(cls).items()
            if "ClassVar" not in str(annotation)
        ]
        if own and "__dataclass_fields__" not in vars(cls):
            raise TypeError(
                f"{cls.__name__} has fields that would be ignored. Received: a class "
                f"with {own} that is not a dataclass itself. Expected: the decorator "
                "@dataclasses.dataclass(frozen=True, kw_only=True) on it."
            )
        return super().__new__(cls)

    def get_config(self) -> ConfigDict:
        """Return the fields, from which `from_config` makes an equal object."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
        }

    @classmethod
    def from_config(cls, config: ConfigDict) -> Self:
        """Make an object from what `get_config` returned."""
        return cls(
            **{
                name: keras.saving.deserialize_keras_object(value)
                if isinstance(value, (dict, list))
                else value
                for name, value in config.items()
            }
        )


def resolve(
    identifier: Any,
    argument: str,
    kind: type,
    shorthands: Mapping[str, Callable[[], Any]],
) -> Any:
    """Return the object given, or a default object of the class with a name.

    Args:
        identifier: A name, or an object of class `kind`.
        argument: Name of the argument, for error messages.
        kind: Class of the objects.
        shorthands: Mapping of names to classes without required arguments.

    Raises:
        ValueError: No class has this name.
        TypeError: `identifier` is neither a name nor of class `kind`.

    Example:
        >>> type(resolve("plain", "recipe", Config, {"plain": Config})).__name__
        'Config'
    """
    if isinstance(identifier, kind):
        return identifier
    names = ", ".join(repr(name) for name in shorthands)
    expected = f"Expected one of {names}, or a {kind.__name__} object."
    if isinstance(identifier, type) and issubclass(identifier, kind):
        expected = f"Expected an object of this class: {identifier.__name__}()."
    if not isinstance(identifier, str):
        raise TypeError(
            f"`{argument}` must be a name or a {kind.__name__} object. Received: "
            f"{argument}={identifier!r} of type {type(identifier).__name__}. {expected}"
        )
    if identifier not in shorthands:
        raise ValueError(
            f"Unknown {argument}. Received: {argument}={identifier!r}. {expected}"
            f"{did_you_mean(identifier, shorthands)}"
        )
    return shorthands[identifier]()


def check_choice(argument: str, value: Any, choices: Iterable[Any]) -> None:
    """Refuse a value that is none of some strings and constants.

    Args:
        argument: Name of the argument, for the error message.
        value: What was passed.
        choices: Strings, booleans or `None`.

    Raises:
        ValueError: The value is none of them.

    Example:
        >>> check_choice("freeze", "base", ["base", None])
    """
    choices = list(choices)
    text = isinstance(value, str)
    if not any(value == each if text else value is each for each in choices):
        raise ValueError(
            f"Unknown `{argument}`. Received: {argument}={value!r}. Expected: "
            f"{' or '.join(map(repr, choices))}."
        )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence with the nearest of the known names, or an empty string.

    Example:
        >>> did_you_mean("bjot", ["byot", "deep_supervision"])
        " Did you mean 'byot'?"
        >>> did_you_mean("BYOT", ["byot", "deep_supervision"])
        " Did you mean 'byot'?"
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3)
    near = near or [each for each in known if each.lower() == name.lower()]
    if not near:
        return ""
    offers = [repr(each) for each in near]
    return f" Did you mean {' or '.join(offers)}?"


def unknown_name(kind: str, identifier: Any, module: types.ModuleType) -> ValueError:
    """Return the error for an unknown name of a loss or metric of Keras.

    Example:
        >>> error = unknown_name("loss", "hinge_los", keras.losses)
        >>> "Did you mean 'hinge" in str(error)
        True
    """
    names = [name for name in dir(module) if not name.startswith("_")]
    near = did_you_mean(str(identifier), ["accuracy", "crossentropy", *names])
    return ValueError(
        f"Unknown {kind}. Received: {identifier!r}. Expected: a name in "
        f"{module.__name__}, a function of "
        f"(y_true, y_pred), or an object of class {kind.capitalize()}.{near}"
    )


def is_of_keras(kind: type) -> bool:
    """Tell a class that Keras defines from one that a user or another package does.

    Example:
        >>> is_of_keras(keras.layers.Dense), is_of_keras(Config)
        (True, False)
    """
    return kind.__module__.partition(".")[0] == "keras"


def for_any_backend(config: Any) -> Any:
    """Return a config whose optimizers have their public names.

    On PyTorch, Keras' optimizers are subclasses in a private module. Keras writes its
    name into files, which other backends cannot read.

    Example:
        >>> for_any_backend({"optimizer": {
        ...     "module": "keras.backend.torch.optimizers", "class_name": "SGD"}})
        {'optimizer': {'module': 'keras.optimizers', 'class_name': 'SGD'}}
    """
    if isinstance(config, dict):
        config = {key: for_any_backend(each) for key, each in config.items()}
        package, *parts = str(config.get("module")).split(".")
        published = hasattr(keras.optimizers, str(config.get("class_name")))
        if package == "keras" and "optimizers" in parts and published:
            config["module"] = "keras.optimizers"
    elif isinstance(config, (list, tuple)):
        config = [for_any_backend(each) for each in config]
    return config
