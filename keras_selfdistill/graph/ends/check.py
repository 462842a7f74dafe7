"""Check, on a random batch, that a base's output is the activation of its logits."""

import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import ops

from keras_selfdistill.graph.ends.pre_activation import ActivationNotCalledError
from keras_selfdistill.graph.ends.run import HALVES, Run
from keras_selfdistill.graph.ends.sizes import batch_shapes
from keras_selfdistill.utils.type_aliases import SymbolicTensor, Tensor

# Factors of inputs and weights that make probabilities nearly 0 and nearly 1.
_LARGE = (8.0, -8.0)


def agrees(
    inputs: Sequence[SymbolicTensor],
    logits: SymbolicTensor,
    output: SymbolicTensor,
    activation: Callable[[Tensor], Tensor],
    *,
    large: bool = False,
) -> bool:
    """Return whether an output is the activation of logits, in inference and training.

    Both are computed in each mode from random inputs and random weights, because the
    base's own weights may be zeros, which hide a difference. Each runs from the same
    state, so that layers of both draw the same random numbers. The base is not changed.
    If the tensors are very large, `batch_shapes` shortens them.

    Args:
        inputs: Symbolic tensors from which both are computed.
        logits: Symbolic logits.
        output: Symbolic output.
        activation: Activation to check, a function of one tensor.
        large: Whether large numbers are compared, too: a clip or a floor may do nothing
            to small ones.

    Raises:
        ValueError: The layers in between do not run on random inputs, or are too large
            for it.

    Example:
        >>> inputs = keras.Input((4,))
        >>> logits = keras.layers.Dense(3)(inputs)
        >>> output = keras.layers.Softmax()(logits)
        >>> softmax, sigmoid = keras.activations.softmax, keras.activations.sigmoid
        >>> [agrees([inputs], logits, output, each) for each in (softmax, sigmoid)]
        [True, False]
    """
    unique = list({id(tensor): tensor for tensor in inputs}.values())
    runs = [Run(keras.Function(unique, tensor)) for tensor in (logits, output)]
    random = np.random.default_rng(0)
    drawn = [
        _random_input(tensor.dtype, shape, random)
        for tensor, shape in zip(unique, batch_shapes(unique, runs), strict=True)
    ]
    variables = {id(each): each for run in runs for each in run.weights_to_draw()}
    initial = [(each, _random_weight(each, random)) for each in variables.values()]
    tolerance = max(run.precision() for run in runs)
    for scale in (1.0, *(_LARGE if large else ())):
        values = [_scaled(each, scale) for each in drawn]
        weights = [(each, _scaled(value, abs(scale))) for each, value in initial]
        for training in (False, True):
            try:
                found, expected = (
                    run.result(values, weights, training) for run in runs
                )
            except ActivationNotCalledError:
                return False
            found, expected = _as_array(activation(found)), _as_array(expected)
            if not _are_equal(found, expected, tolerance, large=scale != 1):
                return False
    return True


def _are_equal(
    found: np.ndarray, expected: np.ndarray, tolerance: float, *, large: bool
) -> bool:
    """Return whether two outputs are equal within rounding."""
    if found.shape != expected.shape:
        return False
    if not large:
        # Probabilities of many classes are small numbers.
        absolute = tolerance * float(np.abs(expected).mean())
        return np.allclose(found, expected, rtol=tolerance, atol=absolute)
    known = np.isfinite(expected)  # Such numbers may overflow.
    found, expected = found[known], expected[known]
    # The activation multiplies the rounding error of large logits by their size.
    relative = max(tolerance, 1e-3)
    smallest = 1e-30 if tolerance < relative else 1e-6
    return np.allclose(found, expected, rtol=relative, atol=smallest) and np.allclose(
        1 - found, 1 - expected, rtol=relative, atol=tolerance
    )


def _as_array(tensor: Tensor) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor), "float32")


def _random_input(
    dtype: str, shape: Sequence[int], random: np.random.Generator
) -> Tensor:
    if not keras.backend.is_float_dtype(dtype):
        # For a mask, `True`: nothing is padding.
        return ops.full(shape, dtype == "bool", dtype)
    # Scaled, so that sums of products stay where a softmax tells them apart.
    values = random.standard_normal(shape, "float32") / np.float32(math.sqrt(shape[-1]))
    return _as_tensor(values, "float32" if dtype in HALVES else dtype)


def _random_weight(variable: keras.Variable, random: np.random.Generator) -> Tensor:
    # Above 0, as variances and scales are.
    values = random.random(tuple(variable.shape), "float32") + np.float32(0.5)
    return _as_tensor(values, variable.dtype)


def _scaled(tensor: Tensor, scale: float) -> Tensor:
    """Return a tensor of floats times a number, others and for 1 as it is."""
    if scale == 1 or not keras.backend.is_float_dtype(tensor.dtype):
        return tensor
    return tensor * scale


def _as_tensor(values: np.ndarray, dtype: str) -> Tensor:
    tensor = ops.convert_to_tensor(values)
    # JAX would compile even a cast to the same dtype.
    return tensor if dtype == "float32" else ops.cast(tensor, dtype)
