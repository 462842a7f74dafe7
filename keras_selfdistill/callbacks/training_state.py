"""The state of a training in a checkpoint, and checks that it fits a model."""

from collections.abc import Iterable
from typing import Any

import keras

from keras_selfdistill.backend.random_state import is_random_state
from keras_selfdistill.callbacks.checkpoints import Checkpoint
from keras_selfdistill.files.archive import check_fields
from keras_selfdistill.utils.type_aliases import Check, Tensor


def state_variables(model: keras.Model) -> list[keras.Variable]:
    """Return the variables that training changes, without those of metrics.

    Args:
        model: Compiled model with a built optimizer.
    """
    # Not model.weights, which does not include seeds.
    return [*model.variables, *model.optimizer.variables]


def assign(variables: Iterable[keras.Variable], arrays: Iterable[Tensor]) -> None:
    """Assign arrays to variables.

    Args:
        variables: Variables of the model.
        arrays: One array for each variable.
    """
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def signature(model: keras.Model) -> dict[str, Any]:
    """Return the JSON-compatible properties of a model that a checkpoint must match.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> signature(model)["variables"]
        [['kernel', [2, 1], 'float32'], ['bias', [1], 'float32']]
    """
    # Names without layer names, which Keras numbers: "kernel", not "dense_1/kernel".
    weights = [[v.name, list(v.shape), v.dtype] for v in model.variables]
    optimizer = [[list(v.shape), v.dtype] for v in model.optimizer.variables]
    kind = type(model.optimizer).__name__
    return {
        "backend": keras.backend.backend(),
        "variables": weights,
        "optimizer": [kind, *optimizer],
    }


def check_content(checkpoint: Checkpoint) -> None:
    """Check that a checkpoint has the fields that `Resume` saves.

    Args:
        checkpoint: A checkpoint, which may be untrusted.

    Raises:
        ValueError: A field is missing, unknown, or not valid.
    """
    try:
        check_fields(checkpoint.about, _SCHEMA)
    except ValueError as error:
        raise ValueError(f"it is not a checkpoint of Resume: {error}") from error


_SCHEMA: dict[str, Check] = {
    "backend": lambda value: isinstance(value, str),
    "variables": lambda value: isinstance(value, list),
    "optimizer": lambda value: isinstance(value, list),
    "random_at_epoch_begin": is_random_state,
    "random_now": lambda value: value is None or is_random_state(value),
}


def check_backend(checkpoint: Checkpoint) -> None:
    """Check that a checkpoint was written on the backend in use.

    Args:
        checkpoint: A checkpoint, which may be untrusted.

    Raises:
        ValueError: It was not, or it is not a checkpoint of `Resume`.
    """
    check_content(checkpoint)
    theirs, ours = checkpoint.about["backend"], keras.backend.backend()
    if theirs != ours:
        raise ValueError(f"it was written on backend {theirs}, not {ours}")


def check_model(checkpoint: Checkpoint, model: keras.Model) -> None:
    """Check that a checkpoint fits a model and the backend in use.

    Args:
        checkpoint: A checkpoint, which may be untrusted.
        model: Compiled model with a built optimizer.

    Raises:
        ValueError: It does not, or it is not a checkpoint of `Resume`.
    """
    check_backend(checkpoint)
    for key, ours in signature(model).items():
        theirs = checkpoint.about[key]
        if ours != theirs:
            raise ValueError(f"it is of another model: {_difference(theirs, ours)}")
    expected = [(tuple(v.shape), v.dtype) for v in state_variables(model)]
    found = [(each.shape, each.dtype.name) for each in checkpoint.arrays]
    if found[: len(expected)] != expected:
        raise ValueError("its arrays do not match the variables that it lists")


def _difference(theirs: Any, ours: Any) -> str:
    """Describe the first difference between two values of a signature."""
    if len(theirs) != len(ours):
        return f"{len(theirs)} variables, expected {len(ours)}"
    pairs = zip(theirs, ours, strict=True)
    return next(f"{one}, expected {other}" for one, other in pairs if one != other)
