"""Criteria: confidence scores of an exit's predictions.

A criterion is written once and runs twice: `EarlyExit.predict` calls it with NumPy
arrays, and `EarlyExit.export` with tensors, so that an exported file scores by itself.
In `predict`, the sections themselves compute `Confidence` of outputs with softmax.
`array_namespace` gives the functions for either, as in the array API standard:

    def odds(probabilities):
        xp = ksd.criteria.array_namespace(probabilities)
        ordered = xp.sort(probabilities, axis=-1)
        return ordered[:, -1] / (ordered[:, -1] + ordered[:, -2])
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_selfdistill.utils.config import PACKAGE, Config, resolve
from keras_selfdistill.utils.type_aliases import ConfigDict, Tensor

# A criterion's arrays, one row per sample, passed from one exit to the next.
Memory = dict[str, Tensor]


def array_namespace(array: Tensor) -> Any:
    """Return the module of functions for an array: `numpy`, or `keras.ops`.

    A criterion is exportable if it uses what both have under one name: `max`, `sum`,
    `sort`, `argmax`, `where`, `log`, `equal`, `ones_like` and many more.

    Args:
        array: NumPy array or tensor of the backend.

    Example:
        >>> rows = np.array([[0.7, 0.2, 0.1]])
        >>> array_namespace(rows) is np
        True
        >>> tensor = keras.ops.convert_to_tensor(rows)
        >>> array_namespace(tensor).argmax is np.argmax
        False
    """
    return np if isinstance(array, np.ndarray) else _TENSOR_FUNCTIONS


class _TensorFunctions:
    """`keras.ops`, but for what exporters of TensorFlow cannot convert."""

    def __getattr__(self, name: str) -> Callable[..., Tensor]:
        return getattr(keras.ops, name)

    def argmax(
        self, x: Tensor, axis: int | None = None, keepdims: bool = False
    ) -> Tensor:
        return self._first_of(x, keras.ops.max, axis, keepdims)

    def argmin(
        self, x: Tensor, axis: int | None = None, keepdims: bool = False
    ) -> Tensor:
        return self._first_of(x, keras.ops.min, axis, keepdims)

    def _first_of(
        self,
        x: Tensor,
        extreme: Callable[..., Tensor],
        axis: int | None,
        keepdims: bool,
    ) -> Tensor:
        # Keras tells -0.0 from 0.0 by the bits of floats, which neither ONNX nor LiteRT
        # nor OpenVINO has an operation for. Of integers it does not.
        found = keras.ops.equal(x, extreme(x, axis=axis, keepdims=True))
        return keras.ops.argmax(
            keras.ops.cast(found, "int32"), axis=axis, keepdims=keepdims
        )


_TENSOR_FUNCTIONS = _TensorFunctions()


class Criterion(Config):
    """Base class of criteria; subclass it as a frozen dataclass."""

    def __call__(self, probabilities: Tensor, memory: Memory) -> Tensor:
        """Return the confidence scores of samples at one exit.

        Args:
            probabilities: Probabilities, shape `(samples, classes)`: a NumPy array in
                float64, or in an exported file a tensor in float32.
            memory: Arrays with one row per sample, empty at the first exit. Arrays
                stored in it are passed to the next exit, for the remaining samples.
                Their names must not depend on the probabilities.

        Returns:
            Scores, shape `(samples,)`; higher means more confident. A sample exits if
            its score reaches the exit's threshold.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__.")


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Confidence(Criterion):
    """The largest probability.

    Example:
        >>> Confidence()(np.array([[0.7, 0.2, 0.1]]), {}).tolist()
        [0.7]
    """

    def __call__(self, probabilities: Tensor, memory: Memory) -> Tensor:
        """Return the scores, from 1 / classes to 1."""
        return array_namespace(probabilities).max(probabilities, axis=-1)


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Margin(Criterion):
    """The largest probability minus the second largest.

    Example:
        >>> Margin()(np.array([[0.75, 0.25, 0.0]]), {}).tolist()
        [0.5]
    """

    def __call__(self, probabilities: Tensor, memory: Memory) -> Tensor:
        """Return the scores, from 0 to 1."""
        ordered = array_namespace(probabilities).sort(probabilities, axis=-1)
        return ordered[:, -1] - ordered[:, -2]


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Entropy(Criterion):
    """One minus the entropy, normalised by the largest possible entropy.

    Example:
        >>> Entropy()(np.array([[0.5, 0.5], [1.0, 0.0]]), {}).tolist()
        [0.0, 1.0]
    """

    def __call__(self, probabilities: Tensor, memory: Memory) -> Tensor:
        """Return the scores, from 0 (uniform) to 1 (certain)."""
        xp = array_namespace(probabilities)
        safe = xp.where(probabilities > 0, probabilities, 1.0)  # 0 · log 0 is 0.
        entropy = -xp.sum(probabilities * xp.log(safe), axis=-1)
        return 1.0 - entropy / float(np.log(probabilities.shape[-1]))


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Patience(Criterion):
    """The number of consecutive exits, this one included, that predict the same class.

    With a threshold of 2, a sample exits as soon as two exits agree in a row. As in
    PABEE (Zhou et al., NeurIPS 2020, arXiv 2006.04152), whose counter is lower by 1.

    Example:
        >>> memory = {}
        >>> rows = [np.array([[0.9, 0.1]]), np.array([[0.6, 0.4]])]
        >>> [Patience()(row, memory).tolist() for row in rows]
        [[1.0], [2.0]]
    """

    def __call__(self, probabilities: Tensor, memory: Memory) -> Tensor:
        """Return the scores, from 1 to the number of exits so far."""
        xp = array_namespace(probabilities)
        classes = xp.argmax(probabilities, axis=-1)
        agreed = xp.ones_like(probabilities[:, 0])
        if memory:
            same = xp.equal(classes, memory["class"])
            agreed = xp.where(same, memory["agreed"] + 1.0, agreed)
        memory["class"], memory["agreed"] = classes, agreed
        return agreed


@dataclasses.dataclass(frozen=True)
class FromFunction(Criterion):
    """A criterion from a user's function.

    Args:
        function: Function from probabilities, shape `(samples, classes)`, to scores,
            shape `(samples,)`; higher means more confident. A function of NumPy arrays
            alone works in `predict`; to be exported, it must take tensors, too: see
            `array_namespace`. To be saved, it must be registered with
            `keras.saving.register_keras_serializable`.

    Example:
        >>> FromFunction(lambda rows: rows[:, 0])(np.array([[0.3, 0.7]]), {}).tolist()
        [0.3]
    """

    function: Callable[[Tensor], Tensor]

    def __call__(self, probabilities: Tensor, memory: Memory) -> Tensor:
        """Return the function's scores."""
        return self.function(probabilities)


_SHORTHANDS = {
    "confidence": Confidence,
    "margin": Margin,
    "entropy": Entropy,
    "patience": Patience,
}


def get(identifier: "str | Criterion | Callable") -> Criterion:
    """Return the criterion with a name, from a function, or the one given.

    Args:
        identifier: `"confidence"`, `"margin"`, `"entropy"`, `"patience"`, a function
            as in `FromFunction`, or a `Criterion`.

    Raises:
        ValueError: No criterion has this name.
        TypeError: `identifier` is not a string, a function or a `Criterion`.

    Example:
        >>> get("margin")
        Margin()
    """
    is_class = isinstance(identifier, type)
    if callable(identifier) and not is_class and not isinstance(identifier, Criterion):
        return FromFunction(identifier)
    return resolve(identifier, "criterion", Criterion, _SHORTHANDS)


def to_config(criterion: Criterion) -> ConfigDict:
    """Return a config from which `from_config` makes an equal criterion.

    Raises:
        ValueError: The criterion's function or class is not registered.

    Example:
        >>> to_config(Margin())
        {'registered_name': 'keras_selfdistill>Margin', 'config': {}}
    """
    function = criterion.function if isinstance(criterion, FromFunction) else None
    thing = function or type(criterion)
    name = keras.saving.get_registered_name(thing)
    if keras.saving.get_registered_object(name) is not thing:
        raise ValueError(
            "A custom criterion must be registered to be saved, because files contain "
            f"its name, not its code. Received: {thing!r}. Expected: the decorator "
            "@keras.saving.register_keras_serializable(package='mine') on it."
        )
    return {
        "registered_name": name,
        "config": None if function else criterion.get_config(),
    }


def from_config(config: ConfigDict) -> Criterion:
    """Make a criterion from what `to_config` returned.

    Raises:
        ValueError: No criterion is registered under the name.

    Example:
        >>> from_config(to_config(Patience()))
        Patience()
    """
    name, fields = config["registered_name"], config["config"]
    # Looked up among registered objects only: a file must not choose what is imported.
    thing = keras.saving.get_registered_object(name)
    is_class = isinstance(thing, type) and issubclass(thing, Criterion)
    is_function = callable(thing) and not isinstance(thing, type)
    if not (is_class if fields is not None else is_function):
        raise ValueError(
            f"The file's criterion is not registered. Received: {name!r}. Import or "
            "define it before loading, registered under the same package and name."
        )
    return FromFunction(thing) if fields is None else thing.from_config(fields)
