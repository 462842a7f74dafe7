"""Twins of layers: copies that share the variables, and nothing that a call sets."""

import types
from typing import Any

import keras

from keras_selfdistill.graph.nodes import run_other_operations

_PLAIN = (str, int, float, types.NoneType, types.FunctionType)  # Most attributes.


class Twins:
    """Twins of layers, functions and all layers inside, one for each.

    Whatever is set on a twin, or by calling it, leaves its original alone, which other
    threads may be running. Its variables are those of the original, so that
    `keras.StatelessScope` is needed to keep what is assigned to them away from it.

    Example:
        >>> dense = keras.layers.Dense(2, dtype="mixed_float16")
        >>> dense.build((None, 3))
        >>> twin = Twins().of(dense)
        >>> twin.dtype_policy = "float32"
        >>> twin.kernel is dense.kernel, dense.compute_dtype
        (True, 'float16')
    """

    def __init__(self) -> None:
        self._twins: dict[int, Any] = {}

    def of(self, operation: keras.Operation) -> Any:
        """Return the twin of a layer or function; other operations have no state."""
        if not self._has_twin(operation):
            return operation
        if id(operation) not in self._twins:
            twin = self._twins[id(operation)] = object.__new__(type(operation))
            for name, value in vars(operation).items():
                vars(twin)[name] = self._inside(value)
            if isinstance(operation, keras.Function):
                run_other_operations(twin, self.of)
        return self._twins[id(operation)]

    def _has_twin(self, thing: object) -> bool:
        return isinstance(thing, (keras.Layer, keras.Function))

    def _inside(self, value: Any) -> Any:
        """Return an attribute's value, with twins in place of layers."""
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, types.MethodType) and self._has_twin(value.__self__):
            return types.MethodType(value.__func__, self.of(value.__self__))
        if isinstance(value, dict):
            made = {key: self._inside(each) for key, each in value.items()}
            changed = any(made[key] is not each for key, each in value.items())
            return made if changed else value
        if isinstance(value, (list, tuple)):
            items = [self._inside(each) for each in value]
            if all(a is b for a, b in zip(items, value, strict=True)):
                return value  # As it is, of a kind of its own.
            return items if isinstance(value, list) else tuple(items)
        return self.of(value)
