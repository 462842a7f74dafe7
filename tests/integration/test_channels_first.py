"""Networks with channels first compute what those with channels last do."""

import contextlib

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from tests.conftest import long_on, to_numpy

TINY = {"width_multiplier": 0.125, "classes": 5}
RANDOM = np.random.default_rng(3)
IMAGES = RANDOM.normal(size=(6, 16, 16, 3)).astype("float32")
LABELS = np.arange(6) % 5


@contextlib.contextmanager
def image_format(name):
    """Build in the scope with a global image format."""
    before = keras.config.image_data_format()
    keras.config.set_image_data_format(name)
    try:
        yield
    finally:
        keras.config.set_image_data_format(before)


def first(images):
    return np.ascontiguousarray(np.moveaxis(images, -1, 1))


def copy_weights(source, target):
    """Copy by name: layers with channels first may come in another order."""
    for layer in source.layers:
        if layer.weights:
            target.get_layer(layer.name).set_weights(layer.get_weights())


@pytest.fixture
def pair():
    """The same wrapper twice, with channels last and with channels first."""
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    found = []
    for name, shape in (
        ("channels_last", (16, 16, 3)),
        ("channels_first", (3, 16, 16)),
    ):
        with image_format(name):
            base = ksd.networks.resnet18(input_shape=shape, **TINY)
        # Layers keep their format: wrapping needs no setting.
        found.append(ksd.SelfDistiller(base, 2, "byot"))
    last, other = found
    for layer in last.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.gamma.shape
            layer.set_weights([random.uniform(0.5, 1.5, shape) for _ in range(4)])
    copy_weights(last, other)
    for model in found:
        model.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
    return last, other


@long_on("jax", "tensorflow")
def test_a_step_and_the_exits_are_those_of_channels_last(pair):
    last, other = pair
    assert other.taps == last.taps
    assert str(ksd.profile(other)) == str(ksd.profile(last))

    def logits(model, images):
        exits = model.exit_graph.training_network(images)["exits"]
        return {name: to_numpy(each["logits"]) for name, each in exits.items()}

    expected, found = logits(last, IMAGES), logits(other, first(IMAGES))
    for name in last.exit_names:
        assert np.ptp(expected[name]) > 0.1
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4)
    before = {weight.path: to_numpy(weight.value) for weight in last.trainable_weights}
    losses = [
        model.train_on_batch(images, LABELS, return_dict=True)
        for model, images in ((last, IMAGES), (other, first(IMAGES)))
    ]
    assert float(losses[1]["loss"]) == pytest.approx(float(losses[0]["loss"]), rel=1e-5)
    stepped = {weight.path: to_numpy(weight.value) for weight in other.weights}
    for weight in last.weights:
        np.testing.assert_allclose(
            stepped[weight.path], to_numpy(weight.value), rtol=1e-3, atol=1e-4
        )
    # The step was one: every weight that is trained has moved.
    moved = [np.ptp(stepped[path] - value) > 0 for path, value in before.items()]
    assert all(moved)


@long_on("jax", "tensorflow")
def test_samples_exit_where_they_do_with_channels_last(pair):
    results = []
    for model, images in zip(pair, (IMAGES, first(IMAGES)), strict=True):
        fast = ksd.EarlyExit(model)
        scores = fast._cascade.observe(images, LABELS, 4).scores
        # Between two scores, so that rounding does not decide.
        fast.thresholds = [float(np.sort(each)[2:4].mean()) for each in scores.T]
        results.append(fast.predict(images, batch_size=4))
    last, other = results
    assert len(set(last.exits)) > 1
    assert list(other.exits) == list(last.exits)
    np.testing.assert_allclose(
        other.predictions, last.predictions, rtol=1e-4, atol=1e-5
    )


@pytest.mark.once
@pytest.mark.parametrize(
    "name",
    [
        "vgg19_bn",
        "wide_resnet20_8",
        "resnext29_8",
        pytest.param("pyramidnet101_240", marks=pytest.mark.long),
    ],
)
def test_every_family_is_built_wrapped_and_counted(name):
    profiles = []
    for each in ("channels_last", "channels_first"):
        with image_format(each):
            base = ksd.networks.NETWORKS[name](**TINY)
        profiles.append(str(ksd.profile(ksd.SelfDistiller(base, 2, "byot"))))
    assert profiles[0] == profiles[1]


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("channels_first", (32, 32, 3), "channels, height"),
        ("channels_last", (3, 32, 32), "height, width, channels"),
        ("channels_last", (3,), "height, width, channels"),
    ],
)
def test_a_shape_of_the_other_format_is_refused(name, shape, expected):
    with (
        image_format(name),
        pytest.raises(ValueError, match=rf"input_shape=.*; expected \({expected}"),
    ):
        ksd.networks.resnet18(input_shape=shape)


@pytest.mark.once
def test_pixels_are_predicted_with_channels_last_alone():
    """The base has to say where its classes are; its taps may lie either way."""

    def wrapped(*end):
        tap = keras.layers.Conv2D(4, 3, padding="same", name="tap")
        base = keras.Sequential([keras.Input((3, 8, 8)), tap, *end])
        return ksd.SelfDistiller(base, ["tap"], "byot", task="multiclass")

    with image_format("channels_first"):
        with pytest.raises(ValueError, match=r"Permute\(\(2, 3, 1\)\) before it"):
            wrapped(keras.layers.Conv2D(5, 1))
        end = keras.layers.Conv2D(5, 1, data_format="channels_last")
        model = wrapped(keras.layers.Permute((2, 3, 1)), end)
    assert model.output["exit_1"].shape == (None, 8, 8, 5)
