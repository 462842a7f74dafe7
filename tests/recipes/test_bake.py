"""BAKE, against NumPy and against plain Keras training on targets from NumPy."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_selfdistill as ksd
from keras_selfdistill.recipes import BAKE
from tests.conftest import marks_long_on
from tests.training.test_extra_terms import X, Y, assert_same_weights, build_base

pytestmark = marks_long_on("jax", "tensorflow")

ONE_HOT = np.eye(3)[Y]
T, OMEGA = 2.0, 0.7
WEIGHTS = np.linspace(0.0, 2.0, 12).astype("float32")


def wrapped(recipe=None, taps=(), base=None):
    recipe = BAKE(omega=OMEGA, temperature=T) if recipe is None else recipe
    base = build_base() if base is None else base
    model = ksd.SelfDistiller(base, list(taps), recipe, head="linear")
    model.compile(keras.optimizers.SGD(0.3), "sparse_categorical_crossentropy")
    return model


def softmax(logits):
    raised = np.exp(logits.astype("float64"))
    return raised / raised.sum(axis=-1, keepdims=True)


def targets(p, features):
    """Mix each prediction with those of similar samples, again and again."""
    number = len(p)
    similar = np.zeros((number, number))
    for i in range(number):
        for j in range(number):
            if i != j:
                norms = np.linalg.norm(features[i]) * np.linalg.norm(features[j])
                similar[i, j] = np.exp(features[i] @ features[j] / norms)
    similar /= similar.sum(axis=1, keepdims=True)
    q = p
    for _ in range(200):
        q = OMEGA * similar @ q + (1 - OMEGA) * p
    return q


def divergence(target, logits):
    return T**2 * (target * np.log(target / softmax(logits / T))).sum(axis=-1)


def test_the_term_follows_the_formula():
    recipe = BAKE(omega=OMEGA, temperature=T, ensemble_weight=[0.5, 2.0])
    model = wrapped(recipe, ["first"])
    found = model.exit_graph.training_network.predict(X, verbose=0)["exits"]
    final = {key: value.astype("float64") for key, value in found["final"].items()}
    target = targets(softmax(final["logits"] / T), final["feature"])
    np.testing.assert_allclose(target.sum(axis=-1), 1)
    values = 0.5 * divergence(target, found["exit_1"]["logits"])
    values += 2.0 * divergence(target, found["final"]["logits"])
    logs = model.evaluate(X, Y, 12, 0, sample_weight=WEIGHTS, return_dict=True)
    expected = (WEIGHTS * values).mean()
    assert expected > 0.01
    assert logs["batch_ensemble_loss"] == pytest.approx(expected, rel=1e-4)
    total = logs["label_loss"] + logs["batch_ensemble_loss"]
    assert logs["loss"] == pytest.approx(total, rel=1e-5)


class PlainLoss(keras.losses.Loss):
    """Crossentropy of labels, and T² · KL(target ‖ p at T); both lie side by side."""

    def call(self, rows, p):
        log_p = ops.log(p)
        label = -ops.sum(rows[:, :3] * log_p, axis=-1)
        target = rows[:, 3:]
        log_q = ops.log_softmax(log_p / T)
        return label + 0.8 * T**2 * ops.sum(target * (ops.log(target) - log_q), axis=-1)


def test_training_is_that_on_targets_of_the_batch(tmp_path):
    recipe = BAKE(omega=OMEGA, temperature=T, ensemble_weight=0.8)
    model, plain = wrapped(recipe), build_base()
    plain.compile(keras.optimizers.SGD(0.3), PlainLoss())
    feature = keras.Model(plain.inputs, plain.layers[-2].output)

    def train(model, epochs, **options):
        options |= {"batch_size": 6, "shuffle": False, "verbose": 0}
        model.fit(X, Y, epochs=epochs, **options)
        for half in (slice(6), slice(6, 12)):
            p, f = (np.array(m.predict(X[half], verbose=0)) for m in (plain, feature))
            target = targets(softmax(np.log(p) / T), f.astype("float64"))
            plain.train_on_batch(X[half], np.concatenate([ONE_HOT[half], target], 1))
        assert_same_weights(model.base, plain)

    train(model, 1)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.recipe == recipe
    train(loaded, 2, initial_epoch=1)


def test_certain_predictions_and_a_sample_alone_have_finite_losses():
    model = wrapped(taps=["first"])
    kernel, bias = model.base.layers[-1].get_weights()
    model.base.layers[-1].set_weights([kernel, bias + np.array([1e4, 0, 0])])
    logs = model.train_on_batch(X, Y * 0, return_dict=True)
    assert logs["nonfinite_steps"] == 0
    assert np.isfinite(logs["batch_ensemble_loss"])
    alone = wrapped()  # It is its own target.
    logs = alone.train_on_batch(X[:1], Y[:1], return_dict=True)
    assert logs["batch_ensemble_loss"] == pytest.approx(0, abs=1e-6)
    assert logs["nonfinite_steps"] == 0


@pytest.mark.once
def test_bases_with_several_features_for_a_sample_are_refused():
    image = keras.Input((4, 4, 1))
    x = layers.Conv2D(3, 1)(layers.Conv2D(3, 1, name="tap")(image))
    base = keras.Model(image, layers.Conv2D(3, 1, activation="softmax")(x))
    with pytest.raises(ValueError, match=r"BAKE compares .* \(None, 4, 4, 3\)"):
        ksd.SelfDistiller(base, ["tap"], "bake")


@pytest.mark.once
def test_weights_of_other_exits_are_refused():
    with pytest.raises(ValueError, match=r"BAKE\.ensemble_weight does not fit"):
        wrapped(BAKE(ensemble_weight=[1.0]), ["first"])
