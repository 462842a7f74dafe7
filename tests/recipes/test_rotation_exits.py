"""Rotation exits, against NumPy and against plain Keras training on all four views."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.recipes import RotationExits
from tests.conftest import marks_long_on

pytestmark = marks_long_on("jax", "tensorflow")

LOSS = "sparse_categorical_crossentropy"
CLASSES = 3
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(8, 6, 6, 2)).astype("float32")
Y = np.arange(8) % CLASSES
ONE_HOT = np.eye(CLASSES)[Y]
MIXED = 0.7 * ONE_HOT + 0.3 * ONE_HOT[::-1]
WEIGHTS = np.linspace(0.0, 2.0, 8).astype("float32")
# As the authors' code: the views of an image follow each other, and label and rotation
# are one of 4 · classes units, those of a class together.
VIEWS = np.stack([np.rot90(X, k, (1, 2)) for k in range(4)], axis=1)
VIEWS = VIEWS.reshape(-1, *X.shape[1:])
UNITS = np.stack([4 * Y + k for k in range(4)], axis=1).reshape(-1)


def build_base(size=6, channels=2):
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((size, size, channels)),
            layers.Conv2D(4, 3, padding="same", name="first"),
            layers.BatchNormalization(momentum=0.5),
            layers.ReLU(name="tap"),
            layers.Conv2D(5, 3, strides=2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(CLASSES, "softmax"),
        ]
    )


def wrapped(recipe=None, base=None, loss=LOSS, taps=("first", "tap"), **options):
    recipe = RotationExits() if recipe is None else recipe
    model = ksd.SelfDistiller(base or build_base(), list(taps), recipe, head="linear")
    # On JAX, steps that are not compiled compile each operation.
    eager = keras.backend.backend() != "jax"
    model.compile(keras.optimizers.SGD(0.5), loss, run_eagerly=eager, **options)
    return model


def fit(model, epochs=1, **options):
    options = {"batch_size": 4, "shuffle": False, "verbose": 0, **options}
    return model.fit(X, Y, epochs=epochs, **options).history


def tensors_of(model, images):
    return model.exit_graph.training_network.predict(images, verbose=0)["exits"]


def softmax(logits):
    raised = np.exp(logits.astype("float64"))
    return raised / raised.sum(axis=-1, keepdims=True)


def test_an_exit_predicts_the_marginal_of_class_and_rotation():
    model = wrapped()
    for name in ("exit_1", "exit_2"):
        found = tensors_of(model, X)[name]
        kernel, bias = model.get_layer(f"{name}_joint_logits").get_weights()
        kernel += RANDOM.normal(size=kernel.shape)
        bias += RANDOM.normal(size=bias.shape)
        model.get_layer(f"{name}_joint_logits").set_weights([kernel, bias])
        joint = softmax(found["feature"] @ kernel + bias)
        assert joint.shape == (8, 4 * CLASSES)
        marginal = np.stack(
            [joint[:, 4 * c : 4 * c + 4].sum(axis=1) for c in range(CLASSES)], axis=1
        )
        again = tensors_of(model, X)[name]
        np.testing.assert_allclose(again["output"], marginal, atol=1e-6)
        np.testing.assert_allclose(softmax(again["logits"]), marginal, atol=1e-6)


@pytest.mark.parametrize("labels", [Y, Y[:, None], MIXED], ids=["1d", "2d", "mixed"])
def test_losses_follow_the_formula(labels):
    kind = "Categorical" if labels is MIXED else "SparseCategorical"
    loss = getattr(keras.losses, f"{kind}Crossentropy")()
    recipe = RotationExits(alpha=[0.25, 0.5], temperature=2.0, final_label_weight=0.5)
    model = wrapped(recipe, loss=loss)
    upright = tensors_of(model, X)
    views = tensors_of(model, VIEWS)
    rows = MIXED if labels is MIXED else ONE_HOT
    joint, soft = 0.0, 0.0
    for name, alpha in (("exit_1", 0.25), ("exit_2", 0.5)):
        p = softmax(views[name]["joint"].reshape(-1, 4 * CLASSES))
        values = np.zeros(8)
        for image in range(8):
            for k in range(4):
                of_classes = p[4 * image + k, [4 * c + k for c in range(CLASSES)]]
                values[image] -= (rows[image] * np.log(of_classes)).sum() / 4
        joint += (1 - alpha) * values
        teacher, student = (softmax(upright[n]["logits"] / 2) for n in ("final", name))
        soft += alpha * 4 * (teacher * np.log(teacher / student)).sum(axis=-1)
    hard = -0.5 * (rows * np.log(softmax(upright["final"]["logits"]))).sum(axis=-1)
    for weights in (None, WEIGHTS):
        every = np.ones(8) if weights is None else weights
        logs = model.evaluate(X, labels, 8, 0, sample_weight=weights, return_dict=True)
        expected = {"joint_loss": joint, "soft_target_loss": soft, "label_loss": hard}
        for name, values in expected.items():
            assert logs[name] == pytest.approx((every * values).mean(), rel=1e-4), name
        assert logs["loss"] == pytest.approx(sum(logs[name] for name in expected))


def test_training_is_that_of_a_plain_model_on_all_views():
    """The authors' code in Keras: one batch of all views, its batch statistics too."""
    model, twin = wrapped(), wrapped()
    inputs = twin.exit_graph.inputs
    flat = {
        name: layers.Reshape((4 * CLASSES,), name=f"{name}_units")(each.joint)
        for name, each in twin.exit_graph.exits.items()
        if name != "final"
    }
    plain = keras.Model(inputs, {**flat, "final": twin.exit_graph.outputs["final"]})
    units = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    plain.compile(
        keras.optimizers.SGD(0.5), {**dict.fromkeys(flat, units), "final": LOSS}
    )
    ones = np.ones(len(VIEWS))
    first = np.tile([4.0, 0.0, 0.0, 0.0], 8)  # Their mean is that of one view.
    for _ in range(2):
        targets = {**dict.fromkeys(flat, UNITS), "final": np.repeat(Y, 4)}
        weights = {**dict.fromkeys(flat, ones), "final": first}
        plain.train_on_batch(VIEWS, targets, sample_weight=weights)
    before = model.get_weights()
    fit(model, 2, batch_size=8)
    for was, one, other in zip(
        before, model.get_weights(), twin.get_weights(), strict=True
    ):
        if one.dtype.kind == "f" and one.ndim:
            assert np.abs(one - was).max() > 1e-4
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_exits_alone_train_the_base_and_metrics_count_one_view():
    nothing = keras.optimizers.schedules.PolynomialDecay(0.0, 1, 0.0)
    recipe = RotationExits(final_label_weight=nothing)
    model = wrapped(recipe, metrics=["accuracy"])
    before = model.base.get_weights()
    predicted = model.predict(X, verbose=0)
    logs = model.evaluate(X, Y, verbose=0, return_dict=True)
    for name, key in (("final", "accuracy"), ("exit_1", "exit_1_accuracy")):
        share = (predicted[name].argmax(axis=-1) == Y).mean()
        assert logs[key] == pytest.approx(share)
    history = fit(model, 1)
    assert list(history)[-4:] == ["joint_loss", "label_loss", "loss", "nonfinite_steps"]
    moved = [
        np.abs(new - old).max() > 0
        for new, old in zip(model.base.get_weights(), before, strict=True)
    ]
    assert moved == [True] * 6 + [False] * 4  # Not what follows the last tap.


def test_deployed_exits_predict_what_the_wrapper_does(tmp_path):
    model = wrapped()
    fit(model)
    expected = model.predict(X, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.recipe == model.recipe
    for each in (model, loaded):
        fit(each, 2, initial_epoch=1)
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    model.load_weights(tmp_path / "m.keras")
    for name in model.exit_names:
        found = model.exit_model(name).predict(X, verbose=0)
        np.testing.assert_allclose(found, expected[name], atol=1e-6)
    scores = expected["exit_1"].max(axis=-1)
    threshold = float(np.sort(scores)[3:5].mean())  # Half of them exit here.
    ksd.EarlyExit(model, thresholds=[threshold, 0.0]).save(tmp_path / "early.keras")
    early = ksd.EarlyExit.load(tmp_path / "early.keras")
    result = early.predict(X)
    first = scores >= threshold
    assert result.exits.tolist() == np.where(first, "exit_1", "exit_2").tolist()
    outputs = np.where(first[:, None], expected["exit_1"], expected["exit_2"])
    np.testing.assert_allclose(result.predictions, outputs, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_stays_finite(policy, mixed_precision):
    mixed_precision(policy)
    model = wrapped()
    assert model.exit_graph.exits["exit_1"].joint.dtype == "float32"
    history = fit(model, 2)
    assert history["nonfinite_steps"] == [0, 0]
    assert history["joint_loss"][1] < history["joint_loss"][0]


def image_base(shape, *first, end="softmax"):
    return keras.Sequential(
        [
            keras.Input(shape),
            *first,
            layers.Conv2D(2, 3, data_format="channels_last", name="tap"),
            layers.GlobalAveragePooling2D(data_format="channels_last"),
            layers.Dense(CLASSES, end),
        ]
    )


def two_inputs():
    images = [keras.Input((6, 6, 2)), keras.Input((6, 6, 2))]
    x = layers.Conv2D(2, 3, name="tap")(layers.Add()(images))
    return keras.Model(images, layers.Dense(3, "softmax")(layers.Flatten()(x)))


CHANNELS_FIRST = {"padding": "same", "data_format": "channels_first"}
REFUSED = {
    "oblong": (lambda: image_base((6, 8, 2)), r"\(None, 6, 8, 2\). Expected: one"),
    "unknown": (lambda: image_base((None, None, 2)), "with a known size"),
    "channels_first": (
        lambda: image_base((6, 6, 6), layers.Conv2D(6, 3, **CHANNELS_FIRST)),
        "channels last",
    ),
    "table": (
        lambda: keras.Sequential(
            [
                keras.Input((5,)),
                layers.Dense(4, name="tap"),
                layers.Dense(4),
                layers.Dense(3, "softmax"),
            ]
        ),
        r"turns images. Received: a base whose inputs have shape \(None, 5\)",
    ),
    "two inputs": (two_inputs, r"\(None, 6, 6, 2\), \(None, 6, 6, 2\). Expected: one"),
    "labels": (
        lambda: image_base((6, 6, 2), end="sigmoid"),
        "one class for each sample. Received: '.*' of task 'multilabel'",
    ),
    "pixels": (
        lambda: keras.Sequential(
            [
                keras.Input((None, None, 2)),
                layers.Conv2D(4, 3, padding="same", name="tap"),
                layers.Conv2D(3, 1, activation="softmax"),
            ]
        ),
        r"one class for each sample.*shape \(None, None, None, 3\)",
    ),
}


@pytest.mark.once
@pytest.mark.parametrize("kind", REFUSED)
def test_bases_whose_images_cannot_be_turned_are_refused(kind):
    build, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        ksd.SelfDistiller(build(), ["tap"], "rotation_exits")


@pytest.mark.once
def test_what_can_be_turned_is_not_refused():
    permuted = image_base((2, 6, 6), layers.Permute((2, 3, 1)))
    with pytest.raises(ValueError, match="turns images"):
        ksd.SelfDistiller(permuted, ["tap"], "rotation_exits")
    first = layers.Permute((3, 1, 2))
    last = [
        layers.MaxPooling2D(2, data_format="channels_first"),
        layers.Permute((2, 3, 1)),
    ]
    ksd.SelfDistiller(image_base((8, 8, 2), first, *last), ["tap"], "rotation_exits")
    images = keras.Input((6, 6, 2), name="image")
    base = build_base()
    by_name = keras.Model({"image": images}, base(images))
    model = wrapped(base=by_name, taps=[f"{base.name}/first"])
    options = {"batch_size": 8, "verbose": 0, "return_dict": True}
    found = model.evaluate({"image": X}, Y, **options)
    expected = wrapped(base=base, taps=["first"])
    expected.set_weights(model.get_weights())
    assert found == pytest.approx(expected.evaluate(X, Y, **options))


@pytest.mark.once
def test_without_taps_nothing_would_be_turned():
    with pytest.raises(ValueError, match="trains exits at taps, and there is none"):
        ksd.SelfDistiller(build_base(), 0, "rotation_exits")
