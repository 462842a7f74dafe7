"""Multiply-adds of Keras' own operations (`keras.ops`), from their shapes."""

import inspect
import math
import string
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import keras

from keras_selfdistill.costs.free_operations import FREE_OPERATIONS
from keras_selfdistill.utils.config import is_of_keras
from keras_selfdistill.utils.type_aliases import SymbolicTensor

# Arguments of an operation's call by name.
Arguments: TypeAlias = Mapping[str, Any]


def is_primitive(operation: keras.Operation) -> bool:
    """Return whether an operation is one of Keras' own, not a layer or a user's.

    Example:
        >>> is_primitive(keras.layers.Dense(2))
        False
    """
    others = (keras.Layer, keras.Function)
    own = isinstance(operation, keras.Operation) and not isinstance(operation, others)
    return own and is_of_keras(type(operation))


def count_operation(
    operation: keras.Operation,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    output: SymbolicTensor,
) -> int | None:
    """Return the multiply-adds of one call of one of Keras' own operations.

    Args:
        operation: Operation for which `is_primitive` is true.
        args: Positional arguments of the call; tensors may be symbolic.
        kwargs: Keyword arguments of the call.
        output: First output, a symbolic tensor with known sizes.

    Returns:
        The count; 0 for the names in `FREE_OPERATIONS`, `None` if unknown.

    Raises:
        ValueError: A size is unknown.
    """
    kind = type(operation).__name__
    rule = _RULES.get(kind)
    if rule is None:
        return 0 if kind in FREE_OPERATIONS else None
    given = inspect.signature(operation.call).bind(*args, **kwargs).arguments
    return rule(operation, given, output)


def size(tensor: Any, name: str) -> int:
    """Return the number of a tensor's elements.

    Args:
        tensor: Any object with a shape.
        name: Name of the operation, for the error message.

    Raises:
        ValueError: A size is unknown.

    Example:
        >>> size(keras.KerasTensor((1, 8, 8, 3)), "conv")
        192
    """
    if None in tensor.shape:
        raise ValueError(
            f"The cost of layer {name!r} depends on an unknown size. "
            f"Received: shape {tuple(tensor.shape)}. Expected: a base built with a "
            "fixed input shape, e.g. input_shape=(224, 224, 3)."
        )
    return math.prod(tensor.shape)


def _matmul(
    operation: keras.Operation, given: Arguments, output: SymbolicTensor
) -> int:
    return size(output, operation.name) * _shape(given["x1"])[-1]


def _contraction(
    operation: keras.Operation, given: Arguments, output: SymbolicTensor
) -> int:
    """Every axis belongs to one factor and the output, or to both and is summed."""
    factors = list(given.values())[:2]
    # (a·k) · (k·b) · (a·b) = (a·k·b)², with a, b and k the axes' sizes multiplied.
    sizes = [math.prod(_shape(factor)) for factor in factors]
    product = math.isqrt(math.prod(sizes) * size(output, operation.name))
    return product if product > size(output, operation.name) else 0


def _einsum(
    operation: keras.Operation, given: Arguments, output: SymbolicTensor
) -> int | None:
    factors = given["operands"]
    if len(factors) < 2:
        return 0
    if len(factors) > 2:
        return None  # Each backend chooses the order of the products.
    for factor in factors:
        size(factor, operation.name)
    return einsum_macs(operation.subscripts, *map(_shape, factors))


def einsum_macs(subscripts: str, *shapes: tuple[int, ...]) -> int:
    """Return the multiply-adds of an einsum of two tensors, 0 if nothing is summed.

    Example:
        >>> einsum_macs("...a,ab->...b", (2, 5, 3), (3, 4))
        120
        >>> einsum_macs("ab,ab->ab", (2, 5), (2, 5))
        0
    """
    terms, arrow, result = subscripts.replace(" ", "").partition("->")
    if not arrow:
        result = "".join(each for each in terms if terms.count(each) == 1)
    free = [letter for letter in string.ascii_letters if letter not in subscripts]
    sizes: dict[str, int] = {}
    for term, shape in zip(terms.split(","), shapes, strict=True):
        dots = len(shape) - len(term.replace("...", ""))
        letters = term.replace("...", "".join(free[:dots][::-1]))
        for letter, length in zip(letters, shape, strict=True):
            sizes[letter] = max(length, sizes.get(letter, 1))
    summed = sizes.keys() - set(result) - set(free)
    return math.prod(sizes.values()) if summed else 0


def _conv(operation: keras.Operation, given: Arguments, output: SymbolicTensor) -> int:
    return size(output, operation.name) * math.prod(_shape(given["kernel"])[:-1])


def _depthwise_conv(
    operation: keras.Operation, given: Arguments, output: SymbolicTensor
) -> int:
    return size(output, operation.name) * math.prod(_shape(given["kernel"])[:-2])


def _separable_conv(
    operation: keras.Operation, given: Arguments, output: SymbolicTensor
) -> int:
    depthwise, pointwise = map(
        _shape, (given["depthwise_kernel"], given["pointwise_kernel"])
    )
    positions = size(output, operation.name) // pointwise[-1]
    return positions * (math.prod(depthwise) + math.prod(pointwise))


def _conv_transpose(
    operation: keras.Operation, given: Arguments, output: SymbolicTensor
) -> int:
    kernel = _shape(given["kernel"])
    return size(given["inputs"], operation.name) * math.prod(kernel[:-1])


def _attention(
    operation: keras.Operation, given: Arguments, output: SymbolicTensor
) -> int:
    batch, length, heads, width = given["query"].shape
    *_, of_value = given["value"].shape
    pairs = keras.KerasTensor((batch, length, given["key"].shape[1], heads))
    return size(pairs, operation.name) * (width + of_value)


def _average(
    operation: keras.Operation, given: Arguments, output: SymbolicTensor
) -> int:
    weighted = given.get("weights") is not None
    return size(given["x"], operation.name) if weighted else 0


def _cross(operation: keras.Operation, given: Arguments, output: SymbolicTensor) -> int:
    return 2 * size(output, operation.name)


def _grayscale(
    operation: keras.Operation, given: Arguments, output: SymbolicTensor
) -> int:
    before, after = (size(x, operation.name) for x in (given["images"], output))
    return before if before > after else 0


_RULES = {
    "Average": _average,
    "Cross": _cross,
    "RGBToGrayscale": _grayscale,
    "Matmul": _matmul,
    "Dot": _contraction,
    "Inner": _contraction,
    "Tensordot": _contraction,
    "Vdot": _contraction,
    "Einsum": _einsum,
    "Conv": _conv,
    "DepthwiseConv": _depthwise_conv,
    "SeparableConv": _separable_conv,
    "ConvTranspose": _conv_transpose,
    "DotProductAttention": _attention,
}


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(getattr(tensor, "shape", ()))
