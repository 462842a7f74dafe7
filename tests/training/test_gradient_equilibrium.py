"""Gradient equilibrium is the paper's scaling at every branch, written out."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_selfdistill as ksd
from keras_selfdistill.training.gradients.equilibrium import exits_behind
from tests.conftest import to_numpy

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(12, 5)).astype("float32")
Y = np.arange(12) % 3
T, ALPHA = 2.0, 0.4
EAGER = keras.backend.backend() == "tensorflow"  # Where tracing takes its time.


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def build_base():
    keras.utils.set_random_seed(1)
    inputs = x = keras.Input((5,))
    for name in "abc":
        decay = keras.regularizers.L2(0.05)
        x = layers.Dense(6, "tanh", kernel_regularizer=decay, name=name)(x)
    return keras.Model(inputs, layers.Dense(3, name="end")(x))


def wrap(**options):
    # Of an undetached teacher, losses of shallow exits reach the last layers, too.
    recipe = ksd.recipes.BYOT(
        alpha=ALPHA, temperature=T, hint_weight=0.0, detach_teacher=False
    )
    return ksd.SelfDistiller(build_base(), ["a", "b"], recipe, head="linear", **options)


class Scaled(layers.Layer):
    """Multiplies the gradient, not the value."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def call(self, x):
        return self.factor * x + ops.stop_gradient((1 - self.factor) * x)


class Literal(keras.Model):
    """A model whose loss is written out: labels and soft targets of three exits."""

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        chosen = ops.one_hot(ops.cast(y, "int32"), 3)
        *shallow, final = y_pred
        losses = [-ops.sum(chosen * ops.log_softmax(final), axis=-1)]
        teacher = ops.log_softmax(final / T)
        for logits in shallow:
            label = -ops.sum(chosen * ops.log_softmax(logits), axis=-1)
            gap = teacher - ops.log_softmax(logits / T)
            soft = T**2 * ops.sum(ops.exp(teacher) * gap, axis=-1)
            losses.append((1 - ALPHA) * label + ALPHA * soft)
        return ops.mean(sum(losses)) + sum(self.losses)


def literal(model):
    """Return the layers of a wrapper with the paper's scaling at its branches."""
    inputs = x = keras.Input((5,))
    logits = []
    for k, tap in enumerate("ab", start=1):
        x = model.get_layer(tap)(x)
        head = Scaled(1 / (3 - k + 1))(x)
        for part in ("feature", "logits"):
            head = model.get_layer(f"exit_{k}_{part}")(head)
        logits.append(head)
        x = Scaled((3 - k) / (3 - k + 1))(x)
    for name in ("c", "end"):
        x = model.get_layer(name)(x)
    return Literal(inputs, [*logits, x])


def sgd(**options):
    return keras.optimizers.SGD(0.5, **options)


OPTIMIZERS = {
    "clipped": lambda: sgd(momentum=0.9, clipnorm=0.05),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(
        sgd(global_clipnorm=0.1, gradient_accumulation_steps=2)
    ),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_is_the_papers_scaling_at_every_branch(optimizer):
    reference, ours = wrap(), wrap(gradient_equilibrium=True)
    ours.set_weights(reference.get_weights())
    expected = literal(reference)
    expected.compile(OPTIMIZERS[optimizer](), LOSS, run_eagerly=EAGER)
    eagerly = EAGER and optimizer != "scaled"
    ours.compile(OPTIMIZERS[optimizer](), LOSS, run_eagerly=eagerly)
    wanted, found = (
        model.fit(X, Y, batch_size=6, shuffle=False, verbose=0).history["loss"]
        for model in (expected, ours)
    )
    assert found == pytest.approx(wanted, rel=1e-5)  # Regularisers count once.
    pairs = zip(ours.trainable_weights, reference.trainable_weights, strict=True)
    for found, wanted in pairs:
        np.testing.assert_allclose(to_numpy(found), to_numpy(wanted), atol=1e-5)


@pytest.mark.once
def test_exits_behind_a_weight_are_those_that_its_graph_leads_to():
    inputs = keras.Input((4,))
    stem = layers.Dense(4, name="stem")(inputs)
    twice = layers.Dense(4, name="twice")
    left = layers.Dense(4, name="left")(twice(stem))
    right = layers.Dense(4, name="right")(stem)  # Beside the way to the first exit.
    both = layers.Add(name="both")([left, right])
    last = twice(layers.Dense(4, name="last")(both))
    outputs = layers.Dense(3, "softmax", name="end")(last)
    base = keras.Model(inputs, outputs)
    model = ksd.SelfDistiller(base, ["left", "both"], head="linear")
    found = {
        variable.path: exits
        for variable, exits in exits_behind(model.exit_graph)
        if variable.path.endswith("kernel")
    }
    every, deep = {0, 1, 2}, {1, 2}
    assert found == {
        "stem/kernel": every,
        "twice/kernel": every,  # By its first call.
        "left/kernel": every,
        "right/kernel": deep,
        "last/kernel": {2},
        "end/kernel": {2},
    }


@pytest.mark.once
def test_exits_whose_heads_read_the_whole_base_lie_behind_all_of_it(base):
    model = ksd.SelfDistiller(base, ["out_1", "out_2"], "teskd")
    found = {variable.path: exits for variable, exits in exits_behind(model.exit_graph)}
    assert found.pop("predictions/kernel") == found.pop("predictions/bias") == {2}
    assert set(map(len, found.values())) == {3}


def build_words(optimizer, **options):
    keras.utils.set_random_seed(1)
    base = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(9, 3, name="words"),
            layers.GlobalAveragePooling1D(name="mean"),
            layers.Dense(4, "relu", name="hidden"),
            layers.Dense(3, "softmax", name="end"),
        ],
        name="base",
    )
    model = ksd.SelfDistiller(
        base, ["mean"], "deep_supervision", head="linear", **options
    )
    loss = "sparse_categorical_crossentropy"
    model.compile(optimizer, loss, log_gradients=True, run_eagerly=EAGER)
    return model


def trained_words(optimizer, **options):
    """Return by how much one step changed the weights, and its logs."""
    model = build_words(optimizer, **options)
    before = model.get_weights()
    words = np.arange(24).reshape(6, 4) % 9
    logs = model.train_on_batch(words, np.arange(6) % 3, return_dict=True)
    changes = zip(model.weights, model.get_weights(), before, strict=True)
    return {w.path: new - old for w, new, old in changes if w.trainable}, logs


def test_sparse_gradients_are_divided_and_logged_as_they_are_used():
    plain, logs = trained_words(sgd())
    divided, found = trained_words(sgd(), gradient_equilibrium=True)
    for path, change in plain.items():
        share = 2 if "words" in path else 1
        np.testing.assert_allclose(divided[path], change / share, atol=1e-7)
        assert abs(change).max() > 1e-4
    names = "section_1_gradient", "section_2_gradient"
    ratios = [logs[name] / found[name] for name in names]
    assert ratios == pytest.approx([2.0, 1.0], rel=1e-5)


def test_adam_undoes_it():
    plain, divided = (
        trained_words(keras.optimizers.Adam(0.1, epsilon=1e-12), **options)[0]
        for options in ({}, {"gradient_equilibrium": True})
    )
    for path, change in plain.items():
        np.testing.assert_allclose(divided[path], change, atol=1e-4)


def test_it_is_saved_and_a_wrapper_of_before_has_it_not(tmp_path):
    model = build_words("sgd", gradient_equilibrium=True)
    model.save(tmp_path / "wrapper.keras")
    loaded = keras.saving.load_model(tmp_path / "wrapper.keras")
    config = loaded.get_config()
    assert config["gradient_equilibrium"] is True
    assert loaded.compiled
    before = {k: v for k, v in config.items() if k != "gradient_equilibrium"}
    restored = ksd.SelfDistiller.from_config(before)
    assert restored.get_config()["gradient_equilibrium"] is False


@pytest.mark.once
def test_a_number_is_refused():
    with pytest.raises(ValueError, match=r"gradient_equilibrium=0\.5"):
        wrap(gradient_equilibrium=0.5)
