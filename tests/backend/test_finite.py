"""The finite check of many tensors against NumPy."""

import keras
import numpy as np
import pytest

from keras_selfdistill.backend.finite import all_finite
from tests.conftest import to_numpy

# JAX has no wider type, and warns.
WIDE = "float32" if keras.backend.backend() == "jax" else "float64"
SHAPES = [(3,), (), (2, 3), (0,), (5,), (2, 0), (1, 2, 2, 1)]


def tensors(dtypes):
    """Return tensors of all shapes with numbers below 0, 0 and above."""
    random = np.random.default_rng(0)
    return [
        keras.ops.cast(random.normal(size=shape), dtype)
        for shape, dtype in zip(SHAPES, dtypes, strict=True)
    ]


def replaced(tensor, value):
    """Return a tensor with another last value."""
    array = np.array(to_numpy(keras.ops.cast(tensor, "float32")))
    array.reshape(-1)[-1] = value
    return keras.ops.cast(array, tensor.dtype)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kinds", ["float32", "bfloat16", "several"])
def test_one_value_of_one_tensor_is_found(kinds, value):
    dtypes = [kinds] * len(SHAPES)
    if kinds == "several":
        dtypes = ["float16", "float32", WIDE, "int32", "float32", "bool", "uint8"]
    given = tensors(dtypes)
    assert bool(all_finite(given))
    for i, tensor in enumerate(given):
        if np.prod(tensor.shape, dtype=int) and "float" in str(tensor.dtype):
            others = [*given[:i], replaced(tensor, value), *given[i + 1 :]]
            assert not bool(all_finite(others)), SHAPES[i]


def test_values_do_not_overflow_a_narrow_type():
    assert bool(all_finite([keras.ops.full((9,), 6e4, "float16")]))


@pytest.mark.parametrize("shapes", [[], [(2, 2)], [(2,)], [(), ()]])
def test_tensors_of_one_kind(shapes):
    given = [keras.ops.ones(shape) for shape in shapes]
    assert bool(all_finite(iter([*given, keras.ops.ones((2,), "int32")])))
    if given:
        assert not bool(all_finite([*given[:-1], given[-1] / 0.0]))


def test_infinities_of_both_signs_do_not_cancel():
    signs = keras.ops.convert_to_tensor([np.inf, -np.inf])
    assert not bool(all_finite([signs, -signs, keras.ops.ones((2, 2))]))
