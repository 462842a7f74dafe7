"""Check, on a random batch, that a base's output is the activation of its logits."""

import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import ops

from keras_selfdistill.graph.ends.pre_activation import ActivationNotCalledError
from keras_selfdistill.graph.ends.twins import Twins
from keras_selfdistill.graph.nodes import run_other_operations
from keras_selfdistill.utils.keras_internals import flatten_layers
from keras_selfdistill.utils.type_aliases import SymbolicTensor, Tensor

_HALVES = ("float16", "bfloat16")
_BATCH_SIZE, _UNKNOWN_SIZE = 2, 16  # Of the batch, and of any other unknown axis.
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

    Args:
        inputs: Symbolic tensors from which both are computed.
        logits: Symbolic logits.
        output: Symbolic output.
        activation: Activation to check, a function of one tensor.
        large: Whether large numbers are compared, too: a clip or a floor may do nothing
            to small ones.

    Raises:
        ValueError: The layers in between do not run on random inputs.

    Example:
        >>> inputs = keras.Input((4,))
        >>> logits = keras.layers.Dense(3)(inputs)
        >>> output = keras.layers.Softmax()(logits)
        >>> softmax, sigmoid = keras.activations.softmax, keras.activations.sigmoid
        >>> [agrees([inputs], logits, output, each) for each in (softmax, sigmoid)]
        [True, False]
    """
    unique = list({id(tensor): tensor for tensor in inputs}.values())
    runs = [_Run(keras.Function(unique, tensor)) for tensor in (logits, output)]
    random = np.random.default_rng(0)
    drawn = [_random_input(tensor, random) for tensor in unique]
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


class _Run(keras.layers.Layer):
    """A function as a layer, whose call passes `training` to the layers inside."""

    def __init__(self, function: keras.Function) -> None:
        super().__init__(autocast=False)
        self._function = function
        self._twins = Twins()
        # The layers themselves may be running in other threads.
        run_other_operations(function, lambda operation: self._twins.of(operation))
        self.built = True

    def call(self, values: Sequence[Tensor], training: bool | None = None) -> Tensor:
        return self._function(values)

    def layers_inside(self) -> list[keras.Layer]:
        """Return all layers, sublayers included."""
        return [
            each
            for operation in self._function.operations
            if isinstance(operation, keras.Layer)
            for each in flatten_layers(operation)
        ]

    def weights_to_draw(self) -> list[keras.Variable]:
        """Return the float variables that may take any positive value.

        Those that a quantized layer does not train may not: an int4 kernel stores the
        indices of its groups as floats.
        """
        layers = self.layers_inside()
        encoded = {
            id(each)
            for layer in layers
            if layer.quantization_mode is not None
            for each in layer.non_trainable_variables
        }
        return [
            each
            for layer in layers
            for each in layer.variables
            if keras.backend.is_float_dtype(each.dtype) and id(each) not in encoded
        ]

    def precision(self) -> float:
        """Return the tolerance of the least precise layer, when `result` runs it."""
        halves = [each for each in self.layers_inside() if _is_half(each)]
        return 1e-5 if all(map(_runs_in_float32, halves)) else 2e-2

    def result(
        self,
        values: Sequence[Tensor],
        weights: Sequence[tuple[keras.Variable, Tensor]],
        training: bool | None,
    ) -> Tensor:
        """Return the function's result for values, with other weights."""
        inside = self.layers_inside()
        self._twins = Twins()
        # Rounded to half precision, different functions may look alike.
        for layer in filter(_runs_in_float32, inside):
            self._twins.of(layer).dtype_policy = "float32"
        scope = keras.StatelessScope(state_mapping=weights, collect_losses=True)
        try:
            with scope:
                return self(values, training=training)
        except ActivationNotCalledError:
            raise
        # A user's layers may raise anything on unexpected values.
        except Exception as error:
            raise ValueError(
                "The last layers of the base do not run on a random batch. Received: "
                f"layers {[each.name for each in inside]}, which raise "
                f"{type(error).__name__}: {error}. Expected: layers that run on any "
                "numbers. Wrap the model without them."
            ) from error


def _is_half(layer: keras.Layer) -> bool:
    return layer.compute_dtype in _HALVES


def _runs_in_float32(layer: keras.Layer) -> bool:
    """Return whether a layer in half precision can be run in float32."""
    policy = layer.dtype_policy  # A map belongs to several layers.
    shared = isinstance(policy, keras.dtype_policies.DTypePolicyMap)
    return _is_half(layer) and layer.quantization_mode is None and not shared


def _as_array(tensor: Tensor) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor), "float32")


def _random_input(tensor: SymbolicTensor, random: np.random.Generator) -> Tensor:
    shape = [size or _UNKNOWN_SIZE for size in tensor.shape]
    shape[0] = tensor.shape[0] or _BATCH_SIZE
    if not keras.backend.is_float_dtype(tensor.dtype):
        # For a mask, `True`: nothing is padding.
        return ops.full(shape, tensor.dtype == "bool", tensor.dtype)
    # Scaled, so that sums of products stay where a softmax tells them apart.
    dtype = "float32" if tensor.dtype in _HALVES else tensor.dtype
    return _as_tensor(random.normal(size=shape) / math.sqrt(shape[-1]), dtype)


def _random_weight(variable: keras.Variable, random: np.random.Generator) -> Tensor:
    # Above 0, as variances and scales are.
    return _as_tensor(random.uniform(0.5, 1.5, tuple(variable.shape)), variable.dtype)


def _scaled(tensor: Tensor, scale: float) -> Tensor:
    """Return a tensor of floats times a number, others and for 1 as it is."""
    if scale == 1 or not keras.backend.is_float_dtype(tensor.dtype):
        return tensor
    return tensor * scale


def _as_tensor(values: np.ndarray, dtype: str) -> Tensor:
    tensor = ops.convert_to_tensor(values.astype("float32"))
    # JAX would compile even a cast to the same dtype.
    return tensor if dtype == "float32" else ops.cast(tensor, dtype)
