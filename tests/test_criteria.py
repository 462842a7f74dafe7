"""Criteria, on arrays and tensors, against formulas of one row at a time."""

import itertools

import keras
import numpy as np
import pytest

from keras_selfdistill import criteria

from .conftest import to_numpy

ROWS = np.random.default_rng(0).dirichlet(np.ones(5), size=(3, 40))
ROWS[0, 0] = [0.0, 0.0, 1.0, 0.0, 0.0]
ROWS[0, 1] = 0.2


def expected(name, number):
    """Scores of every sample at one exit, in plain Python."""
    found = []
    for i, row in enumerate(ROWS[number].tolist()):
        *_, second, first = sorted(row)
        likeliest = [exit_[i].argmax() for exit_ in ROWS[: number + 1]]
        agreed = 1
        while agreed <= number and likeliest[-agreed - 1] == likeliest[-1]:
            agreed += 1
        found.append(
            {
                "confidence": first,
                "margin": first - second,
                "entropy": 1 + sum(p * np.log(p) for p in row if p) / np.log(len(row)),
                "patience": agreed,
            }[name]
        )
    return found


@pytest.mark.parametrize("name", ["confidence", "margin", "entropy", "patience"])
@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_a_criterion_scores_arrays_and_tensors(name, kind):
    criterion, memory = criteria.get(name), {}
    for number, rows in enumerate(ROWS):
        given = rows
        if kind == "tensor":
            given = keras.ops.convert_to_tensor(rows, "float32")
        scores = criterion(given, memory)
        assert isinstance(scores, np.ndarray) == (kind == "array")
        precision = 1e-12 if kind == "array" else 1e-5
        np.testing.assert_allclose(
            to_numpy(scores), expected(name, number), atol=precision
        )
    if name == "patience":
        assert set(to_numpy(scores).tolist()) == {1.0, 2.0, 3.0}


def test_the_namespace_is_that_of_the_array():
    assert criteria.array_namespace(ROWS) is np
    xp = criteria.array_namespace(keras.ops.ones((2, 3)))
    assert xp.sort is keras.ops.sort
    random = np.random.default_rng(0)
    rows = random.integers(-2, 2, (50, 6))  # Of many equal numbers.
    axes = ({}, {"axis": 0}, {"axis": -1}, {"axis": -1, "keepdims": True})
    for dtype in ("float32", "int32", "uint8", "bool"):
        for name, options in itertools.product(("argmax", "argmin"), axes):
            typed = rows.astype(dtype)
            found = getattr(xp, name)(keras.ops.convert_to_tensor(typed), **options)
            expected = getattr(np, name)(typed, **options)
            np.testing.assert_array_equal(to_numpy(found), expected)
