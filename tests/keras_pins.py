"""Tests of private names of Keras, which say what a newer Keras has changed."""

import functools
from collections.abc import Callable
from typing import Any

import keras

PINNED: list[Any] = []


def pins(*functions: Callable, of: str) -> Callable[[Callable], Callable]:
    """Decorate a test of functions that read a private name of Keras.

    Args:
        functions: Functions of `utils/keras_internals.py` or `graph/nodes.py`.
        of: What they read, and its file in Keras.
    """
    PINNED.extend(functions)
    readers = ", ".join(f"{each.__module__}.{each.__name__}" for each in functions)

    def decorate(test):
        @functools.wraps(test)
        def pinned(*args, **kwargs):
            try:
                return test(*args, **kwargs)
            except Exception as error:
                raise AssertionError(
                    f"Keras {keras.__version__} has changed {of}: {error!r}. Mend "
                    f"{readers}, and nothing else."
                ) from error

        return pinned

    return decorate
