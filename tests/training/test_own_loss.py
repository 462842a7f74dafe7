"""An overridden `compute_loss` is what `fit` trains; a wrapper is not half cloned."""

import copy

import keras
import numpy as np
import pytest
from keras import ops

import keras_selfdistill as ksd
from tests.conftest import marks_long_on, to_numpy

pytestmark = marks_long_on("jax")

LOSS = "sparse_categorical_crossentropy"


def base():
    keras.utils.set_random_seed(3)
    stack = [keras.layers.Dense(5, "tanh", name="tap"), keras.layers.Dense(5, "relu")]
    end = keras.layers.Dense(3, "softmax", name="classes", bias_regularizer="l2")
    return keras.Sequential([keras.Input((4,)), *stack, end])


X = np.random.default_rng(2).normal(size=(6, 4)).astype("float32")
Y = np.arange(6) % 3


class Doubled(ksd.SelfDistiller):
    def compute_loss(self, x, y, y_pred, sample_weight, training=True):
        return 2.0 * super().compute_loss(x, y, y_pred, sample_weight, training)


class Older(ksd.SelfDistiller):
    """As written for versions of Keras that do not say whether the model trains."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return 2.0 * super().compute_loss(x, y, y_pred, sample_weight)


class Mixed(ksd.SelfDistiller):
    def compute_loss(self, x, y, y_pred, sample_weight, training=True):
        losses = [
            super(Mixed, self).compute_loss(x, each, y_pred, sample_weight, training)
            for each in (y, 2 - y)
        ]
        return 0.25 * losses[0] + 0.75 * losses[1]


class Own(ksd.SelfDistiller):
    def compute_loss(self, x, y, y_pred, sample_weight, training=True):
        del x, sample_weight, training
        return ops.mean(ops.square(y_pred["exit_1"][:, 0] - ops.cast(y, "float32")))


class Changed(ksd.SelfDistiller):
    def compute_loss(self, x, y, y_pred, sample_weight, training=True):
        halved = {name: output / 2 for name, output in y_pred.items()}
        return super().compute_loss(x, y, halved, sample_weight, training)


class PerSample(ksd.SelfDistiller):
    def compute_loss(self, x, y, y_pred, sample_weight, training=True):
        return ops.max(y_pred["final"], axis=-1)


def wrapped(kind, rate=0.1, recipe="byot", **options):
    model = kind(base(), ["tap"], recipe, head="linear")
    model.compile(keras.optimizers.SGD(rate), LOSS, metrics=["accuracy"], **options)
    return model


def stepped(model):
    logs = model.fit(X, Y, batch_size=6, epochs=2, verbose=0, shuffle=False).history
    return logs, [to_numpy(v.value) for v in model.trainable_variables]


@pytest.mark.parametrize("kind", [Doubled, Older])
def test_twice_the_loss_is_twice_the_learning_rate(kind):
    plain, own = wrapped(ksd.SelfDistiller, rate=0.2), wrapped(kind)
    own.set_weights(plain.get_weights())
    (logs, weights), (own_logs, own_weights) = stepped(plain), stepped(own)
    for expected, found in zip(weights, own_weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert own_logs.keys() == logs.keys()
    doubled = [2 * loss for loss in logs["loss"]]
    assert own_logs["loss"] == pytest.approx(doubled, rel=1e-4)
    assert own_logs["label_loss"] == pytest.approx(logs["label_loss"], rel=1e-4)
    evaluated = own.evaluate(X, Y, verbose=0, return_dict=True)
    expected = plain.evaluate(X, Y, verbose=0, return_dict=True)
    assert evaluated["loss"] == pytest.approx(2 * expected["loss"], rel=1e-4)
    assert int(to_numpy(own._step.value)) == 2


def test_terms_of_several_calls_are_not_logged():
    model, plain = (
        wrapped(kind, run_eagerly=True) for kind in (Mixed, ksd.SelfDistiller)
    )
    plain.set_weights(model.get_weights())
    losses = [plain.evaluate(X, y, verbose=0, return_dict=True) for y in (Y, 2 - Y)]
    expected = 0.25 * losses[0]["loss"] + 0.75 * losses[1]["loss"]
    logs = model.train_on_batch(X, Y, return_dict=True)
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)
    assert not any(name.endswith("_loss") for name in logs)
    assert "accuracy" in logs
    assert int(to_numpy(model._step.value)) == 1


def test_a_loss_without_the_recipe():
    model = wrapped(Own, run_eagerly=True)
    outputs = to_numpy(model(X)["exit_1"])
    logs = model.evaluate(X, Y, verbose=0, return_dict=True)
    by_hand = np.square(outputs[:, 0] - Y).mean()
    assert logs["loss"] == pytest.approx(by_hand, rel=1e-5)
    assert "label_loss" not in logs


@pytest.mark.parametrize(
    ("kind", "message"), [(Changed, "changed `y_pred`"), (PerSample, "scalar.*shape")]
)
def test_what_cannot_be_a_loss_is_refused(kind, message):
    model = wrapped(kind, run_eagerly=True)
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(X, Y)
    assert model._batch.now is None


@pytest.mark.once
@pytest.mark.parametrize("compiled", [False, True])
def test_a_wrapper_is_not_cloned_to_a_plain_model(compiled):
    model = ksd.SelfDistiller(base(), ["tap"], "byot", head="linear")
    if compiled:
        model.compile("sgd", LOSS)
    for options in ({}, {"clone_function": lambda layer: layer}):
        with pytest.raises(TypeError, match=r"copy\.deepcopy.*from_config"):
            keras.models.clone_model(model, **options)
    again = copy.deepcopy(model)
    new = type(model).from_config(model.get_config())
    assert type(again) is type(new) is ksd.SelfDistiller
    for name, output in model.predict(X, verbose=0).items():
        np.testing.assert_array_equal(again.predict(X, verbose=0)[name], output)
    plain = keras.models.clone_model(model.final_model())
    assert plain.count_params() == model.base.count_params()
    assert keras.models.clone_model(keras.Sequential([keras.Input((4,)), model]))
