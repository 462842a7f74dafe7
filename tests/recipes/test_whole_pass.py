"""The whole pass of the journal version and of TESKD against NumPy.

Base, heads and losses are written here once more, from the papers and their authors'
code, and share nothing with the package but the names of weights.
"""

import functools
import zlib

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from tests.conftest import marks_long_on, to_numpy

pytestmark = marks_long_on("jax", "tensorflow")

CLASSES, BATCH, WIDTH, LAST = 4, 4, 6, 2  # The base ends with 2×2 pixels.
STAGES = [("stage_1", 3, 1), ("stage_2", 4, 2), ("stage_3", 5, 1), ("stage_4", 6, 2)]
TAPS = [f"{stage}_out" for stage, _, _ in STAGES[:-1]]
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(BATCH, 8, 8, 3)).astype("float32")
LABELS = np.array([2, 0, 3, 0])


class Weights(dict):
    """Weights by name, each drawn where a pass first uses it."""

    training = True

    def __call__(self, name, *shape):
        if name not in self:
            normal = np.random.default_rng(zlib.crc32(name.encode())).normal
            layer, kind = name.split("/")
            if kind == "kernel":
                fan_in = np.prod(shape[:2] if "depthwise" in layer else shape[:-1])
                value = normal(scale=np.sqrt(2 / fan_in), size=shape)
            else:
                value = normal(kind in ("gamma", "moving_variance"), 0.2, shape)
            self[name] = value.astype("float32").astype("float64")
        assert self[name].shape == shape
        return self[name]


def bn_relu(weights, x, name):
    channels = x.shape[-1:]
    if weights.training:
        mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    else:
        mean = weights(f"{name}/moving_mean", *channels)
        variance = weights(f"{name}/moving_variance", *channels)
    x = (x - mean) / np.sqrt(variance + 1e-5) * weights(f"{name}/gamma", *channels)
    return np.maximum(x + weights(f"{name}/beta", *channels), 0)


def windows(x, stride):
    """Return the 3×3 windows of images that are padded alike on all sides."""
    x = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    found = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    return found[:, ::stride, ::stride]


def convolution(weights, x, width, stride, name):
    kernel = weights(f"{name}/kernel", 3, 3, x.shape[-1], width)
    x = np.einsum("nhwcij,ijcd->nhwd", windows(x, stride), kernel)
    return bn_relu(weights, x, f"{name}_bn")


def depthwise(weights, x, stride, name):
    kernel = weights(f"{name}/kernel", 3, 3, x.shape[-1], 1)
    return np.einsum("nhwcij,ijc->nhwc", windows(x, stride), kernel[..., 0])


def pointwise(weights, x, width, name):
    kernel = weights(f"{name}/kernel", x.shape[-1], width)
    return bn_relu(weights, x @ kernel, f"{name}_bn")


def dense(weights, x, units, name):
    kernel = weights(f"{name}/kernel", x.shape[-1], units)
    return x @ kernel + weights(f"{name}/bias", units)


def enlarge(x, size, align_corners):
    """Interpolate square images bilinearly, as PyTorch does."""
    old = x.shape[1]
    places = np.arange(size) * (old - 1) / (size - 1)
    if not align_corners:  # The centres of pixels; the border is repeated.
        places = (np.arange(size) + 0.5) * old / size - 0.5
    shares = [np.interp(places, np.arange(old), pixel) for pixel in np.eye(old)]
    return np.einsum("hi,wj,nhwc->nijc", shares, shares, x)


def separable(weights, x, width, stride, name):
    x = depthwise(weights, x, stride, f"{name}_depthwise1")
    x = pointwise(weights, x, x.shape[-1], f"{name}_pointwise1")
    x = depthwise(weights, x, 1, f"{name}_depthwise2")
    return pointwise(weights, x, width, f"{name}_pointwise2")


def attention_features(weights, taps, end):
    """The journal version: each tap times its mask, then blocks that halve its size."""
    features = {}
    for name, x in taps.items():
        mask = separable(weights, x, x.shape[-1], 2, f"{name}_attention_block")
        mask = bn_relu(weights, mask, f"{name}_attention_bn")
        mask = enlarge(mask, x.shape[1], align_corners=False)
        x = x / (1 + np.exp(-mask))
        halvings = int(np.log2(x.shape[1] // LAST))
        for i in range(1, halvings + 1):
            width = WIDTH if i == halvings else 2 * x.shape[-1]
            x = separable(weights, x, width, 2, f"{name}_block{i}")
        features[name] = x.mean(axis=(1, 2))
    return features


def top_down_features(weights, taps, end):
    """TESKD: students fused from the end down, each with convolutions of its own."""
    above = pointwise(weights, end, WIDTH, f"{list(taps)[-1]}_top_lateral")
    features = {}
    for name, tap in reversed(taps.items()):
        lateral = pointwise(weights, tap, WIDTH, f"{name}_lateral")
        up = enlarge(above, tap.shape[1], align_corners=True)
        up = pointwise(weights, up, WIDTH, f"{name}_up")
        both = np.concatenate([up + lateral, up], axis=-1)
        above = pointwise(weights, both, WIDTH, f"{name}_fuse")
        k = tap.shape[1] // LAST
        kernel = weights(f"{name}_downsample/kernel", k * k * WIDTH, WIDTH)
        kernel = kernel.reshape(k, k, WIDTH, WIDTH)
        patches = above.reshape(BATCH, LAST, k, LAST, k, WIDTH)
        x = np.einsum("nhiwjc,ijcd->nhwd", patches, kernel)
        x = bn_relu(weights, x, f"{name}_downsample_bn")
        x = pointwise(weights, x, WIDTH, f"{name}_expand")
        features[name] = x.mean(axis=(1, 2))
    return features


def forward(weights, features_of):
    """Return the feature and the logits of every exit, shallow to deep."""
    x, images = IMAGES.astype("float64"), []
    for stage, width, stride in STAGES:
        x = convolution(weights, x, width, stride, stage)
        images.append(x)
    *taps, end = images
    taps = {f"exit_{i}": tap for i, tap in enumerate(taps, start=1)}
    features = features_of(weights, taps, end)
    exits = {
        name: (
            features[name],
            dense(weights, features[name], CLASSES, f"{name}_logits"),
        )
        for name in taps
    }
    feature = end.mean(axis=(1, 2))
    final = dense(weights, feature, CLASSES, "predictions")
    return exits | {"final": (feature, final)}


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def crossentropy(rows, logits):
    return -(rows * log_softmax(logits)).sum(axis=-1).mean()


def attention_byot(weights, exits, detached):
    """TPAMI 2021, with the constants of its authors' code; its teacher is detached."""
    label, soft, hint = 0.0, 0.0, 0.0
    rows, temperature = np.eye(CLASSES)[LABELS], 3
    feature, logits = detached
    targets = np.exp(log_softmax(logits / temperature))
    for name in ("exit_1", "exit_2", "exit_3"):
        label += 0.7 * crossentropy(rows, exits[name][1])
        soft += 0.3 * crossentropy(targets, exits[name][1] / temperature)
    for name in ("exit_1", "exit_2"):  # Not the second-deepest, which is exit_3.
        adapted = dense(weights, exits[name][0], WIDTH, f"{name}_adapter")
        norms = np.sqrt(((adapted - feature) ** 2).sum(axis=-1))
        hint += 0.03 * np.sqrt(128) * norms.mean()
    label += crossentropy(rows, exits["final"][1])
    return {"label_loss": label, "soft_target_loss": soft, "hint_loss": hint}


def teskd(weights, exits, detached):
    """arXiv 2110.00329: the feature of the teacher is detached, its logits are not."""
    label, soft, hint = 0.0, 0.0, 0.0
    rows, temperature = np.eye(CLASSES)[LABELS], 4
    targets = log_softmax(exits["final"][1] / temperature)
    for name in ("exit_1", "exit_2", "exit_3"):
        feature, logits = exits[name]
        label += 0.2 * crossentropy(rows, logits)
        gap = targets - log_softmax(logits / temperature)
        soft += 0.8 * temperature**2 * (np.exp(targets) * gap).sum(axis=-1).mean()
        hint += 1e-7 * 128 * ((feature - detached[0]) ** 2).sum(axis=-1).mean()
    label += 0.2 * crossentropy(rows, exits["final"][1])
    return {"label_loss": label, "soft_target_loss": soft, "hint_loss": hint}


CASES = {
    "attention_byot": (attention_features, attention_byot),
    "teskd": (top_down_features, teskd),
}


def make_wrapper(recipe, weights):
    """Return a compiled wrapper with these weights, and no others to train."""
    x = image = keras.Input(IMAGES.shape[1:])
    for stage, width, stride in STAGES:
        x = layers.ZeroPadding2D(1)(x)
        x = layers.Conv2D(width, 3, stride, use_bias=False, name=stage)(x)
        x = layers.BatchNormalization(epsilon=1e-5, name=f"{stage}_bn")(x)
        x = layers.ReLU(name=f"{stage}_out")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(CLASSES, activation="softmax", name="predictions")(x)
    model = ksd.SelfDistiller(keras.Model(image, x), TAPS, recipe)
    model.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy")
    trained = {name for name in weights if "/moving_" not in name}
    assert {each.path for each in model.trainable_variables} == trained
    for variable in model.weights:
        if variable.path in weights:
            variable.assign(weights[variable.path])
    return model


def exits_in_training(model):
    """Return the tensors of every exit in training mode; no variable changes."""
    network = model.exit_graph.training_network
    call = functools.partial(network.stateless_call, training=True)
    if keras.backend.backend() == "jax":  # Else it compiles every operation alone.
        import jax

        call = jax.jit(call)
    values = [
        [each.value for each in variables]
        for variables in (network.trainable_variables, network.non_trainable_variables)
    ]
    return call(*values, IMAGES)[0]["exits"]


@pytest.mark.parametrize("recipe", CASES)
def test_the_whole_pass_and_its_gradients_follow_the_paper(recipe):
    features_of, losses = CASES[recipe]
    weights = Weights()
    expected = {}
    for training in (False, True):
        weights.training = training
        exits = forward(weights, features_of)
        terms = losses(weights, exits, exits["final"])
        expected[training] = terms | {"loss": sum(terms.values())}
    model = make_wrapper(recipe, weights)
    found = exits_in_training(model)
    assert list(found) == list(exits)
    for name, (feature, logits) in exits.items():
        assert (feature > 0.1).any(axis=0).all(), "a unit that tests nothing"
        for key, value in (("feature", feature), ("logits", logits)):
            actual = to_numpy(found[name][key])
            np.testing.assert_allclose(actual, value, rtol=1e-5, atol=1e-5)
    for training, step in ((False, model.test_on_batch), (True, model.train_on_batch)):
        logs = step(IMAGES, LABELS, return_dict=True)
        for name, value in expected[training].items():
            assert float(logs[name]) == pytest.approx(value, rel=1e-5), name

    def loss_at(name, value):
        moved = Weights(weights | {name: value})
        return sum(losses(moved, forward(moved, features_of), exits["final"]).values())

    # The step's gradient of each weight, along a direction through all its elements.
    for variable in model.trainable_variables:
        name, value = variable.path, weights[variable.path]
        ahead = np.random.default_rng(1).choice([-1.0, 1.0], value.shape)
        ahead /= np.linalg.norm(ahead)
        change = loss_at(name, value + 1e-6 * ahead)
        change -= loss_at(name, value - 1e-6 * ahead)
        slope = ((value - to_numpy(variable)) * ahead).sum()  # The rate is 1.
        assert slope == pytest.approx(change / 2e-6, rel=1e-4, abs=1e-5), name
