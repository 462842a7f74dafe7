"""A user's own loss terms and their state, without a change of the package."""

import copy
import dataclasses

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_selfdistill as ksd
from keras_selfdistill.utils.schedules import Scalar
from tests.conftest import long_on, marks_long_on, to_numpy

# A network is traced for each.
pytestmark = marks_long_on("tensorflow")

LOSS = "sparse_categorical_crossentropy"
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(12, 5)).astype("float32")
Y = np.arange(12) % 3
WEIGHTS = np.linspace(0.0, 2.0, 12).astype("float32")


RISING = keras.optimizers.schedules.PolynomialDecay(0.0, 4, 0.8)


# What a user writes: PS-KD's soft targets of the previous epoch, and a relational loss.
def distances(feature):
    gaps = ops.expand_dims(feature, 0) - ops.expand_dims(feature, 1)
    return ops.sqrt(ops.sum(gaps**2, axis=-1) + 1e-6)


@keras.saving.register_keras_serializable(package="mine")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PastAndRelations(ksd.recipes.DeepSupervision):
    extra_term_names = ("past_loss", "relation_loss")
    past: Scalar = RISING
    relations: float = 0.1

    def make_state(self, base):
        return keras.models.clone_model(base)

    def on_epoch_begin(self, epoch, state, base):
        state.set_weights(base.get_weights())

    def extra_terms(self, labels, exits, state, *, inputs, training):
        crossentropy = keras.losses.categorical_crossentropy
        past = crossentropy(state(inputs), exits["final"]["output"])
        final = ops.stop_gradient(distances(exits["final"]["feature"]))
        gap = ops.abs(distances(exits["exit_1"]["feature"]) - final)
        relations = self.relations * ops.mean(gap, axis=-1)
        return {"past_loss": self.past * past, "relation_loss": relations}


def build_base():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(6, "tanh", name="first"),
            layers.Dense(4, "tanh", name="second"),
            layers.Dense(3, "softmax", name="end"),
        ]
    )


def build(recipe=None, compile=True, **options):
    recipe = PastAndRelations() if recipe is None else recipe
    model = ksd.SelfDistiller(build_base(), ["first"], recipe, head="linear")
    if compile:
        model.compile(keras.optimizers.SGD(0.5), LOSS, **options)
    return model


def fit(model, epochs=1, **options):
    options = {"batch_size": 6, "shuffle": False, "verbose": 0, **options}
    return model.fit(X, Y, epochs=epochs, **options).history


def assert_same_weights(ours, theirs):
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_values_follow_the_formulas_and_sample_weights():
    model = build(PastAndRelations(past=0.7, relations=0.2))
    noise = np.random.default_rng(1)
    model.teacher.set_weights(
        [w + noise.normal(size=w.shape) for w in model.teacher.get_weights()]
    )
    logs = model.evaluate(
        X, Y, sample_weight=WEIGHTS, batch_size=12, verbose=0, return_dict=True
    )
    exits = model.exit_graph.training_network.predict(X, verbose=0)["exits"]
    past = model.teacher.predict(X, verbose=0)
    value = -(past * np.log(exits["final"]["output"])).sum(axis=-1)
    assert logs["past_loss"] == pytest.approx(0.7 * (WEIGHTS * value).mean(), rel=1e-5)
    far = [
        np.sqrt(((f[None] - f[:, None]) ** 2).sum(axis=-1) + 1e-6)
        for f in (exits["exit_1"]["feature"], exits["final"]["feature"])
    ]
    value = np.abs(far[0] - far[1]).mean(axis=-1)
    expected = 0.2 * (WEIGHTS * value).mean()
    assert logs["relation_loss"] == pytest.approx(expected, rel=1e-4)
    parts = ("label_loss", "past_loss", "relation_loss")
    assert logs["loss"] == pytest.approx(sum(logs[part] for part in parts), rel=1e-5)


def test_training_is_that_on_mixed_labels():
    """CE(y, p) + w · CE(past, p) = (1 + w) · CE((y + w · past) / (1 + w), p)."""
    weight = 0.6
    nothing = keras.optimizers.schedules.PolynomialDecay(0.0, 1, 0.0)
    recipe = PastAndRelations(past=weight, relations=0.0, exit_weight=nothing)
    model = build(recipe)
    reference = build_base()
    rate = 0.5 * (1 + weight)
    reference.compile(keras.optimizers.SGD(rate), "categorical_crossentropy")
    seen = []
    remember = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(model.base.get_weights())
    )
    fit(model, 2, callbacks=[remember])
    for _ in range(2):
        past = reference.predict(X, verbose=0)
        mixed = (np.eye(3)[Y] + weight * past) / (1 + weight)
        reference.fit(X, mixed, batch_size=6, shuffle=False, verbose=0)
    assert_same_weights(model.base, reference)
    for one, other in zip(model.teacher.get_weights(), seen[0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_terms_are_logged_scheduled_and_switched_off_by_a_warm_up():
    model = build(PastAndRelations())
    warm_up = ksd.callbacks.LabelWarmUp(1)
    history = fit(model, 3, callbacks=[warm_up], validation_data=(X, Y))
    assert history["past_loss"][0] == history["relation_loss"][0] == 0.0
    assert history["val_relation_loss"][1] > 0.0
    # The share grows for four steps, two of an epoch: 0.4 and 0.6, then 0.8.
    assert 0.0 < history["past_loss"][1] < history["past_loss"][2]
    fields = [key for key in history if key.endswith("_loss") and key[:3] != "val"]
    assert fields == ["label_loss", "past_loss", "relation_loss"]


@long_on("jax")
def test_evaluation_may_leave_a_term_out():
    class InTraining(PastAndRelations):
        def extra_terms(self, labels, exits, state, *, inputs, training):
            both = super().extra_terms(
                labels, exits, state, inputs=inputs, training=training
            )
            return both if training else {"past_loss": both["past_loss"]}

    history = fit(build(InTraining(), run_eagerly=True), validation_data=(X, Y))
    assert "relation_loss" in history
    assert "val_past_loss" in history
    assert "val_relation_loss" not in history


def test_the_state_is_saved_and_copied(tmp_path):
    model = build()
    fit(model, 2)
    model.save(tmp_path / "model.keras")
    copies = [keras.saving.load_model(tmp_path / "model.keras"), copy.deepcopy(model)]
    # One more epoch in two halves: only the first begins it.
    fit(model, 3, initial_epoch=2)
    for other in copies:
        assert other.recipe.past.get_config() == model.recipe.past.get_config()
        fit(other, 3, initial_epoch=2)
        assert_same_weights(other, model)
    fresh = ksd.SelfDistiller.from_config(model.get_config())
    assert fresh.teacher.count_params() == model.teacher.count_params()
    assert not fresh.teacher.trainable_variables


def test_a_resumed_training_keeps_the_past_of_its_epoch(tmp_path):
    class Killed(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.optimizer.iterations == 3:  # In the middle of epoch 2.
                raise KeyboardInterrupt

    whole = build()
    fit(whole, 3)
    resume = ksd.callbacks.Resume(tmp_path, save_freq=1)
    with pytest.raises(KeyboardInterrupt):
        fit(build(), 3, callbacks=[resume, Killed()])
    other = build()
    fit(other, 3, callbacks=[ksd.callbacks.Resume(tmp_path, save_freq=1)])
    assert_same_weights(other, whole)


def test_who_teaches_is_public():
    assert build(ksd.recipes.BYOT(), compile=False).teacher is None
    model = build(compile=False)
    assert model.teacher is model.recipe_state
    model.trainable = True
    assert not model.teacher.trainable_variables
    other = build_base()
    model = ksd.SelfDistiller(build_base(), ["first"], "byot", teacher=other)
    assert model.teacher is other


def with_terms(names=("own_loss",), state=None, terms=None):
    class Own(ksd.recipes.DeepSupervision):
        extra_term_names = names

        def make_state(self, base):
            return state(base) if state else None

        def extra_terms(self, labels, exits, state, *, inputs, training):
            return terms

    return Own()


@pytest.mark.once
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["own_loss"]}, "must be a tuple"),
        ({"names": ("hint_loss",)}, "no other term has"),
        ({"state": lambda base: base}, "must not share weights"),
        ({"state": lambda base: 3}, "must return a keras.Layer"),
        ({"state": lambda base: layers.Dense(2)}, "unbuilt layer"),
    ],
)
def test_a_wrong_state_is_refused_before_training(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build(with_terms(**options))


@pytest.mark.once
@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"other_loss": np.ones(12)}, "must return a mapping of names"),
        (np.ones(12), "must return a mapping of names"),
        ({"own_loss": np.ones(())}, "one value for each sample"),
        ({"own_loss": np.ones(11)}, "one value for each sample"),
    ],
)
def test_wrong_terms_are_refused(terms, message):
    model = build(with_terms(terms=terms), run_eagerly=True)
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(X, Y)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_assigned_state_follows_the_steps():
    """A term may count, and the count is not kept by a step that is not finite."""

    class Count(layers.Layer):
        def __init__(self):
            super().__init__()
            self.count = self.add_weight(initializer="zeros", aggregation="sum")
            self.built = True

    class Counting(ksd.recipes.DeepSupervision):
        extra_term_names = ("count_loss",)

        def make_state(self, base):
            return Count()

        def extra_terms(self, labels, exits, state, *, inputs, training):
            if training:
                state.count.assign_add(1.0)
            zeros = ops.zeros_like(exits["final"]["output"][:, 0])
            return {"count_loss": zeros + state.count}

    model = build(Counting())
    assert fit(model, 2)["count_loss"] == [1.5, 3.5]
    assert to_numpy(model.recipe_state.count) == 4.0
    assert model.teacher is None


@pytest.mark.once
@pytest.mark.parametrize(
    "name",
    [
        "accuracy",
        "exit_1_accuracy",
        "ensemble_accuracy",
        "final_accuracy",
        "nonfinite_steps",
        "section_1_gradient",
        "learning_rate",
        "val_past_loss",
    ],
)
def test_names_of_other_logs_are_refused(name):
    model = build(with_terms(names=(name,)), compile=False)
    with pytest.raises(ValueError, match=f"names of other logs.*{name}"):
        model.compile("sgd", LOSS, metrics=["accuracy"], log_gradients=True)
    assert not model.compiled
