"""KerasTuner searches over wrappers as over any Keras model."""

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from tests.conftest import miss, to_numpy

try:
    import keras_tuner
except ImportError:
    keras_tuner = None


@pytest.fixture
def hypermodel():
    """A `HyperModel` that chooses the recipe and one of its constants."""
    if keras_tuner is None:
        miss("keras_tuner is not installed")

    class Wrapped(keras_tuner.HyperModel):
        def build(self, hp):
            inputs = keras.Input((6,))
            x = keras.layers.Dense(8, activation="relu", name="hidden")(inputs)
            x = keras.layers.Dense(8, activation="relu")(x)
            outputs = keras.layers.Dense(3, activation="softmax")(x)
            recipe = ksd.recipes.BYOT(alpha=hp.Float("alpha", 0.1, 0.9))
            model = ksd.SelfDistiller(keras.Model(inputs, outputs), ["hidden"], recipe)
            model.compile(
                keras.optimizers.SGD(hp.Choice("rate", [0.01, 0.1])),
                "sparse_categorical_crossentropy",
                metrics=["accuracy"],
                run_eagerly=True,
            )
            return model

    return Wrapped()


@pytest.mark.long
@pytest.mark.once
# KerasTuner 1.4.8 names threads by methods that Python deprecates.
@pytest.mark.filterwarnings("ignore:(currentThread|getName):DeprecationWarning")
def test_a_search_returns_the_best_wrapper(hypermodel, tmp_path):
    random = np.random.default_rng(0)
    x = random.normal(size=(24, 6)).astype("float32")
    y = np.argmax(x[:, :3], axis=1)
    options = {"objective": "val_loss", "max_trials": 2, "seed": 1}
    tuner = keras_tuner.RandomSearch(hypermodel, directory=tmp_path, **options)
    tuner.search(x[:16], y[:16], validation_data=(x[16:], y[16:]), verbose=0)
    losses = [trial.score for trial in tuner.oracle.trials.values()]
    assert len(losses) == 2

    # With the constants and the weights of the better trial.
    (best,) = tuner.get_best_models()
    assert type(best) is ksd.SelfDistiller
    (values,) = tuner.get_best_hyperparameters()
    assert best.recipe.alpha == values["alpha"]
    found = best.evaluate(x[16:], y[16:], verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(min(losses), rel=1e-5)

    # Another process, after a kill, goes on where this one was.
    again = keras_tuner.RandomSearch(hypermodel, directory=tmp_path, **options)
    (loaded,) = again.get_best_models()
    for one, other in zip(loaded.weights, best.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))
