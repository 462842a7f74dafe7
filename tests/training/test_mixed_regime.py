"""The base first, then all exits: by two calls of `fit`, not by weights of 0."""

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from tests.conftest import to_numpy

pytestmark = pytest.mark.once
LOSS = "sparse_categorical_crossentropy"
RATE, DECAY, STEPS = 0.1, 0.05, 2


def sgd():
    return keras.optimizers.SGD(RATE, weight_decay=DECAY)


def fit(model, batch):
    """Train two steps and return the loss of the epoch."""
    x, y = batch
    options = {"batch_size": len(x) // STEPS, "shuffle": False, "verbose": 0}
    return model.fit(x, y, **options).history["loss"][0]


def of_exits(model):
    """Return the weights of the heads by path."""
    return {
        w.path: to_numpy(w).copy() for w in model.weights if w.path.startswith("exit_")
    }


def test_exits_join_a_base_that_learned_alone(base, batch):
    base.compile(sgd(), LOSS)
    alone = fit(base, batch)
    expected = base.predict(batch[0], verbose=0)
    model = ksd.SelfDistiller(base, ["out_1", "out_2"], "byot")
    np.testing.assert_array_equal(model.predict(batch[0], verbose=0)["final"], expected)
    moving = {path: w for path, w in of_exits(model).items() if "moving_mean" in path}
    assert len(moving) >= 2
    assert not any(each.any() for each in moving.values())  # As new as can be.
    before = [base.get_weights(), *of_exits(model).values()]
    model.compile(sgd(), LOSS)
    together = fit(model, batch)
    assert alone != together
    assert model.optimizer is not base.optimizer
    assert any(map(np.any, map(np.subtract, base.get_weights(), before[0])))
    changed = zip(of_exits(model).values(), before[1:], strict=True)
    assert all(np.any(new != old) for new, old in changed)


def test_weights_of_zero_train_the_base_alone_but_do_not_spare_the_heads(base, batch):
    """Why the how-to page advises against a schedule that begins at 0."""
    nothing = keras.optimizers.schedules.PiecewiseConstantDecay([STEPS], [0.0, 1.0])
    other = keras.models.clone_model(base)
    other.set_weights(base.get_weights())
    other.compile(sgd(), LOSS)
    recipe = ksd.recipes.DeepSupervision(exit_weight=nothing)
    model = ksd.SelfDistiller(base, ["out_1", "out_2"], recipe)
    model.compile(sgd(), LOSS)
    before = of_exits(model)
    assert fit(model, batch) == pytest.approx(fit(other, batch), rel=1e-5)
    for found, wanted in zip(base.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    left = (1 - RATE * DECAY) ** STEPS
    for path, weight in of_exits(model).items():
        if "moving" in path:
            assert np.any(weight != before[path])
        else:
            np.testing.assert_allclose(weight, left * before[path], rtol=1e-5)
