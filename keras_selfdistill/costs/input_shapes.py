"""Shapes for inputs with unknown sizes, such as the length of a text."""

import numbers
from collections.abc import Sequence
from typing import Any

import keras

from keras_selfdistill.costs.counting import Shapes, model_macs
from keras_selfdistill.graph.nodes import input_structure
from keras_selfdistill.utils.type_aliases import (
    InputShape,
    SymbolicTensor,
    Tensor,
    TensorStructure,
)

# Values for unknown sizes if only shares of the total matter, in the order of trial:
# some models have a maximum length, others a minimum.
_NOMINAL = (256, 64, 16, 4, 4096, 65536)


def given_shapes(model: keras.Model, input_shape: InputShape) -> Shapes:
    """Return the input shapes for which to count a model, as given by the user.

    Args:
        model: Functional or built Sequential model.
        input_shape: Shape of one sample, without the batch, in the structure of the
            model's inputs; `None` if the model has no unknown size.

    Raises:
        ValueError: Sizes are unknown and no shape was given, or the shape does not fit
            the model's inputs.

    Example:
        >>> inputs = keras.Input((None, 3))
        >>> model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
        >>> list(given_shapes(model, (10, 3)).values())
        [(10, 3)]
    """
    structure = input_structure(model)
    expected = keras.tree.map_structure(lambda each: tuple(each.shape[1:]), structure)
    if input_shape is None:
        if any(None in each.shape[1:] for each in model.inputs):
            raise ValueError(
                "Multiply-adds depend on unknown sizes of the inputs. Received: "
                f"no `input_shape`, and model {model.name!r} with inputs of shape "
                f"{expected}. Expected: the shape of one sample without `None`, such "
                f"as input_shape={_filled(structure)}."
            )
        return {}
    shapes: dict[int, tuple[int, ...]] = {}

    def take(tensor: SymbolicTensor, shape: InputShape) -> None:
        if not _fits(tensor, shape):
            raise ValueError
        shapes[id(tensor)] = tuple(map(int, shape))

    try:
        keras.tree.map_structure_up_to(structure, take, structure, input_shape)
    except (TypeError, ValueError):
        raise ValueError(
            f"`input_shape` does not fit the model's inputs. Received: "
            f"input_shape={input_shape!r}. Expected: positive integers in place of "
            f"`None` in {expected}."
        ) from None
    return shapes


def shapes_of(model: keras.Model, arrays: Sequence[Tensor]) -> Shapes:
    """Return the input shapes of a batch, for which to count a model.

    Args:
        model: Functional or built Sequential model.
        arrays: Arrays with a batch axis, one for each of the model's inputs.
    """
    return {
        id(tensor): tuple(array.shape[1:])
        for tensor, array in zip(model.inputs, arrays, strict=True)
    }


def nominal_shapes(model: keras.Model) -> Shapes:
    """Return input shapes for shares of a model's multiply-adds.

    Example:
        >>> inputs = keras.Input((None, 3))
        >>> model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
        >>> list(nominal_shapes(model).values())
        [(256, 3)]
    """
    if not any(None in each.shape[1:] for each in model.inputs):
        return {}
    found = []
    for size in _NOMINAL:
        shapes = {id(each): _filled(each, size) for each in model.inputs}
        try:
            unknown = model_macs(model, shapes).unknown
        except ValueError as refused:
            error = refused
            continue
        if not unknown:
            return shapes
        found.append((len(unknown), shapes))
    if found:
        return min(found, key=lambda pair: pair[0])[1]
    raise ValueError(
        "Multiply-adds depend on unknown sizes of the inputs. Received: model "
        f"{model.name!r} with inputs of shape {[each.shape for each in model.inputs]}, "
        f"which does not accept any of the sizes {_NOMINAL}. Expected: a base "
        "built with a fixed input shape, e.g. input_shape=(224, 224, 3)."
    ) from error


def _filled(tensors: TensorStructure, size: int = _NOMINAL[0]) -> Any:
    return keras.tree.map_structure(
        lambda each: tuple(size if axis is None else axis for axis in each.shape[1:]),
        tensors,
    )


def _fits(tensor: SymbolicTensor, shape: InputShape) -> bool:
    expected = tensor.shape[1:]
    return len(shape) == len(expected) and all(
        isinstance(given, numbers.Integral)
        and int(given) > 0
        and known in (None, given)
        for given, known in zip(shape, expected, strict=True)
    )
