"""The wrapper against the same exits as a plain Keras model by hand, case by case.

The product of the tables in `cases` has millions of cases. The suite runs a fixed
random sample: ten cases are the same on every backend, the others differ, over 300
together; most are on PyTorch, where one takes a tenth of the time. The long tests run,
on each backend, as many as it takes until any two values that may meet have met, about
600; only where the tests of TensorFlow start those of JAX, a tenth of them is run. A
failing case is named in full, with all that differs.
"""

import itertools
import os
import random

import keras
import pytest

from .cases import (
    DTYPES,
    ENDS,
    FORMS,
    LOSSES,
    METRICS,
    OPTIONS,
    PLACES,
    REDUCTIONS,
)
from .comparison import differences
from .sampling import covering, draw, excluded, pairs, sample

# IoU asks for integers of 64 bits.
pytestmark = pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64")
# What a case takes differs: eager PyTorch is quick, and XLA compiles for seconds.
QUICK = {"torch": 276, "tensorflow": 12, "jax": 4}
SHARED = 10
TENTHS = int(os.environ.get("KSD_TENTHS", "10"))  # Of the sample; CI runs one.


def quick(backend):
    """Return the cases of the ordinary suite on a backend."""
    own = sample(f"3 on {backend}", QUICK[backend], backend)
    return list(dict.fromkeys(sample("shared", SHARED, backend) + own))


@pytest.mark.parametrize("case", quick(keras.backend.backend()), ids=str)
def test_a_wrapper_trains_as_the_model_by_hand(case):
    found = differences(case)
    if found:
        pytest.fail("\n".join([str(case), *found]), pytrace=False)


@pytest.mark.long
@pytest.mark.parametrize("part", range(TENTHS))
def test_wrappers_train_as_the_models_by_hand_where_any_two_values_meet(part):
    found = {str(case): differences(case) for case in covering()[part::10]}
    failed = [line for name, each in found.items() if each for line in (name, *each)]
    if failed:
        pytest.fail("\n".join(failed), pytrace=False)


@pytest.mark.long
@pytest.mark.once
@pytest.mark.parametrize("backend", QUICK)
def test_any_two_values_that_may_meet_do(backend):
    met = {pair for case in covering(backend) for pair in pairs(case)}
    source = random.Random("any other seed")
    for case in (draw(source) for _ in range(50_000)):
        assert excluded(case, backend) or pairs(case) <= met, case


@pytest.mark.once
def test_the_sample_holds_everything_that_the_tables_hold():
    cases = [case for backend in QUICK for case in quick(backend)]
    assert len(set(cases)) >= 300
    assert {(each.end, each.place) for each in cases} == {
        *itertools.product(ENDS, PLACES)
    }
    assert {(each.kind, each.form) for each in cases} == _pairs(FORMS)
    assert {(each.kind, each.loss) for each in cases} == _pairs(LOSSES)
    metrics = {(each.kind, metric) for each in cases for metric in each.metrics}
    assert metrics == _pairs(METRICS)
    assert {each.reduction for each in cases} == {*REDUCTIONS}
    assert {each.dtype for each in cases} == {*DTYPES}
    for option, values in OPTIONS.items():
        assert {getattr(each, option) for each in cases} == {*values}, option


def _pairs(table):
    return {(kind, value) for kind, values in table.items() for value in values}
