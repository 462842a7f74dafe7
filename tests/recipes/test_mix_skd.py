"""MixSKD, against NumPy and against a plain Keras model with a loss of its own."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_selfdistill as ksd
from keras_selfdistill.recipes import MixSKD
from tests.conftest import marks_long_on, to_numpy

pytestmark = marks_long_on("jax", "tensorflow")

LOSS = "sparse_categorical_crossentropy"
CLASSES, T = 3, 2.0
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(8, 5)).astype("float32")
Y = np.arange(8) % CLASSES
ONE_HOT = np.eye(CLASSES)[Y]
SMOOTH = 0.7 * ONE_HOT + 0.3 * ONE_HOT[::-1]
WEIGHTS = np.linspace(0.0, 2.0, 8).astype("float32")


def shares(number):
    """Quantiles of Beta(½, ½), the arcsine distribution."""
    return np.sin(np.pi / 2 * (np.arange(number) + 0.5) / number) ** 2


def mix(samples):
    """Mix each sample with the next one, the last with the first."""
    pairs = zip(shares(len(samples)), samples, [*samples[1:], samples[0]], strict=True)
    return np.stack([share * one + (1 - share) * next_ for share, one, next_ in pairs])


MIXED = mix(X).astype("float32")


def build_base():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(6, "tanh", name="first"),
            layers.BatchNormalization(momentum=0.5),
            layers.Dense(4, "tanh", name="second"),
            layers.Dense(CLASSES, "softmax", name="end"),
        ]
    )


def wrapped(recipe=None, base=None, taps=("first",), loss=LOSS, rate=0.3):
    recipe = MixSKD(mixup_alpha=0.5, temperature=T) if recipe is None else recipe
    model = ksd.SelfDistiller(base or build_base(), list(taps), recipe, head="linear")
    model.compile(keras.optimizers.SGD(rate), loss)
    return model


def softmax(logits):
    raised = np.exp(logits.astype("float64"))
    return raised / raised.sum(axis=-1, keepdims=True)


def divergence(teacher, student):
    p, q = softmax(teacher / T), softmax(student / T)
    return T**2 * (p * np.log(p / q)).sum(axis=-1)


# With the labels of all samples but the third, whose label is ignored.
IGNORED = np.where(np.arange(8) == 2, -1, Y)


@pytest.mark.parametrize("labels", [Y, Y[:, None], SMOOTH, IGNORED])
def test_terms_follow_the_formulas(labels):
    sparse = keras.losses.SparseCategoricalCrossentropy(ignore_class=-1)
    loss = "categorical_crossentropy" if labels is SMOOTH else sparse
    recipe = MixSKD(
        mixup_alpha=0.5,
        temperature=T,
        mixed_label_weight=[0.5, 2.0],
        interpolation_weight={"exit_1": 3.0, "final": 0.25},
    )
    model = wrapped(recipe, loss=loss)
    model.base.layers[1].trainable = False  # Predicts as in training.
    model.compile("sgd", loss)
    network = model.exit_graph.training_network
    found, of_mixed = (network.predict(x, verbose=0)["exits"] for x in (X, MIXED))
    rows = SMOOTH if labels is SMOOTH else ONE_HOT.copy()
    rows[np.arange(8)[labels == -1] if labels is IGNORED else []] = 0
    hard, parts = 0.0, 0.0
    for name, u, w in (("exit_1", 0.5, 3.0), ("final", 2.0, 0.25)):
        mixture = of_mixed[name]["logits"]
        hard -= u * (mix(rows) * np.log(softmax(mixture))).sum(axis=-1)
        means = mix(found[name]["logits"])
        both = divergence(means, mixture) + divergence(mixture, means)
        parts += w * both
    logs = model.train_on_batch(X, labels, sample_weight=WEIGHTS, return_dict=True)
    assert logs["mixed_label_loss"] == pytest.approx((WEIGHTS * hard).mean(), rel=1e-4)
    expected = (WEIGHTS * parts).mean()
    assert logs["interpolation_loss"] == pytest.approx(expected, rel=1e-3)
    terms = ("label_loss", "mixed_label_loss", "interpolation_loss")
    assert logs["loss"] == pytest.approx(sum(logs[term] for term in terms), rel=1e-5)


class PlainLoss(keras.losses.Loss):
    """The public code's loss of a batch of samples and, behind them, mixtures."""

    def __init__(self, interpolation):
        super().__init__(reduction=None)
        self.interpolation = interpolation

    def call(self, rows, p):
        log_p = ops.log(p)  # Logits, up to a constant that no softmax sees.
        half = 8
        loss = -ops.sum(rows * log_p) / half
        share = ops.convert_to_tensor(shares(half)[:, None].astype("float32"))
        index = np.roll(np.arange(half), -1)
        z = log_p[:half]
        means = share * z + (1 - share) * ops.take(z, index, axis=0)
        for one, other in ((means, log_p[half:]), (log_p[half:], means)):
            teacher = ops.stop_gradient(ops.log_softmax(one / T))
            student = ops.log_softmax(other / T)
            kl = ops.sum(ops.exp(teacher) * (teacher - student))
            loss += self.interpolation * T**2 * kl / half
        return loss


def test_training_is_that_of_a_plain_model_on_samples_and_mixtures(tmp_path):
    """In one batch, also to batch normalisation."""
    recipe = MixSKD(mixup_alpha=0.5, temperature=T, interpolation_weight=0.7)
    model, plain = wrapped(recipe, taps=()), build_base()
    plain.compile(keras.optimizers.SGD(0.3), PlainLoss(0.7))
    both, rows = np.concatenate([X, MIXED]), np.concatenate([ONE_HOT, mix(ONE_HOT)])

    def train(model, epochs, **options):
        options |= {"batch_size": 8, "shuffle": False, "verbose": 0}
        model.fit(X, Y, epochs=epochs, **options)
        for _ in range(2):
            plain.train_on_batch(both, rows)
        for ours, theirs in zip(
            model.base.get_weights(), plain.get_weights(), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)

    train(model, 2)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.recipe == recipe
    train(loaded, 4, initial_epoch=2)


def mixtures_of_ones(number, recipe):
    """Mix samples that are zero but for a 1 each, in whose place is its share."""
    samples = np.eye(number, dtype="float32")
    return to_numpy(recipe.views(samples, training=True)[1])


@pytest.mark.once
@pytest.mark.parametrize(
    ("a", "distribution"),
    [
        (0.5, lambda x: 2 / np.pi * np.arcsin(np.sqrt(x))),
        (1.0, lambda x: x),
        (2.0, lambda x: 3 * x**2 - 2 * x**3),
        (3.0, lambda x: 10 * x**3 - 15 * x**4 + 6 * x**5),
    ],
)
def test_shares_are_the_quantiles_of_their_distribution(a, distribution):
    for number in (3, 8, 64):
        found = mixtures_of_ones(number, MixSKD(mixup_alpha=a))
        places = (np.arange(number) + 0.5) / number
        np.testing.assert_allclose(distribution(np.diag(found)), places, atol=5e-4)
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.once
def test_shares_of_the_default_have_the_variance_of_beta():
    share = np.diag(mixtures_of_ones(512, MixSKD()))
    assert share.mean() == pytest.approx(0.5, abs=1e-6)
    assert share.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=1e-3)


def test_evaluation_sees_no_mixtures():
    model = wrapped()
    expected = wrapped("deep_supervision", base=model.base)
    expected.set_weights(model.get_weights())
    logs, usual = (
        each.evaluate(X, Y, verbose=0, return_dict=True) for each in (model, expected)
    )
    assert logs == pytest.approx(usual)


def test_integer_images_in_a_dict_are_mixed_as_numbers():
    pixels = RANDOM.integers(0, 256, (8, 4, 4, 1), "uint8")
    image = keras.Input((4, 4, 1), name="image")
    x = layers.Conv2D(3, 3, name="tap")(layers.Rescaling(1 / 255)(image))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 1)(x))
    base = keras.Model({"image": image}, layers.Dense(CLASSES, "softmax")(x))
    logs = []
    for dtype in ("uint8", "float32"):
        model = wrapped(base=keras.models.clone_model(base), taps=["tap"])
        model.base.set_weights(base.get_weights())
        model.set_weights([0.1 + 0.0 * weight for weight in model.get_weights()])
        batch = {"image": pixels.astype(dtype)}
        logs.append(model.train_on_batch(batch, Y, return_dict=True))
    assert logs[0] == pytest.approx(logs[1])


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_stays_finite(policy, mixed_precision):
    mixed_precision(policy)
    model = wrapped()
    history = model.fit(X, Y, batch_size=5, epochs=2, verbose=0).history
    assert history["nonfinite_steps"] == [0, 0]
    assert history["mixed_label_loss"][1] < history["mixed_label_loss"][0]


def tokens(dtype):
    ids = keras.Input((4,), dtype=dtype)
    x = layers.Embedding(9, 5, name="words")(ids)
    x = layers.Dense(4, name="tap")(layers.Flatten()(x))
    return keras.Model(ids, layers.Dense(3, "softmax")(layers.Dense(4)(x)))


def pixels():
    image = keras.Input((4, 4, 1))
    x = layers.Conv2D(3, 1)(layers.Conv2D(3, 1, name="tap")(image))
    return keras.Model(image, layers.Conv2D(3, 1, activation="softmax")(x))


@pytest.mark.once
@pytest.mark.parametrize(
    ("build", "received"),
    [
        (lambda: tokens("int32"), "inputs of dtype int32"),
        (lambda: tokens("float32"), "an embedding, 'words'"),
        (pixels, r"outputs of shape \(None, 4, 4, 3\)"),
    ],
)
def test_what_cannot_be_mixed_is_refused(build, received):
    with pytest.raises(ValueError, match=f"MixSKD mixes .* a base with {received}"):
        ksd.SelfDistiller(build(), ["tap"], "mix_skd")


@pytest.mark.once
@pytest.mark.parametrize("field", ["mixed_label_weight", "interpolation_weight"])
def test_weights_of_other_exits_are_refused(field):
    with pytest.raises(ValueError, match=f"MixSKD.{field} does not fit"):
        wrapped(MixSKD(**{field: [1.0]}))
