"""Heads against convolutions written out, and the shapes they reach."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.heads import Bottleneck, Linear, Separable, Target, TopDown
from keras_selfdistill.heads.linear import Pointwise
from tests.conftest import small_base, to_numpy


@pytest.mark.parametrize(
    ("size", "last"),
    [((8, 8), (4, 4)), ((9, 14), (2, 4)), ((33, 47), (3, 3)), ((4, 4), (4, 4))],
)
def test_bottleneck_equals_convolutions(size, last):
    """A k×k convolution with stride k, computed here patch by patch in NumPy."""
    keras.utils.set_random_seed(0)
    tap = keras.Input((*size, 6))
    target = Target(width=10, spatial_shape=last, channels=8)
    feature = Bottleneck()(tap, target, name="e")
    model = keras.Model(tap, feature)
    x = np.random.default_rng(0).normal(size=(3, *size, 6)).astype("float32")

    def bn_relu(x):  # Fresh statistics: mean 0, variance 1.
        return np.maximum(x / np.sqrt(1 + 1e-5), 0)

    def kernel(name):
        return to_numpy(model.get_layer(f"e_{name}").kernel.value)

    stride = [int(np.ceil(s / n)) for s, n in zip(size, last, strict=True)]
    hidden = bn_relu(x @ kernel("reduce"))
    gaps = [-s % k for s, k in zip(size, stride, strict=True)]
    hidden = np.pad(hidden, [(0, 0), *[(g // 2, g - g // 2) for g in gaps], (0, 0)])
    weights = kernel("downsample").reshape(*stride, 2, 2)
    rows, columns = hidden.shape[1] // stride[0], hidden.shape[2] // stride[1]
    down = np.zeros((3, rows, columns, 2))
    for i in range(rows):
        for j in range(columns):
            patch = hidden[
                :,
                i * stride[0] : (i + 1) * stride[0],
                j * stride[1] : (j + 1) * stride[1],
            ]
            down[:, i, j] = np.einsum("nhwc,hwcd->nd", patch, weights)
    expected = bn_relu(bn_relu(down) @ kernel("expand")).mean(axis=(1, 2))
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-5)
    assert expected.max() > 0.1


@pytest.mark.parametrize(
    ("head", "positions"),
    [
        (Bottleneck(), ()),
        (Separable(), ()),
        (Separable(attention=True), ()),
        (TopDown(), ()),
        (TopDown(align_corners=False), ()),
        (Linear(), ()),
        (Pointwise(), (16, 16)),
    ],
    ids=repr,
)
def test_channels_first_equals_channels_last(head, positions):
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 6)).astype("float32")
    models = []
    for format_, shape in (("channels_last", (8, 8, 6)), ("channels_first", (6, 8, 8))):
        keras.utils.set_random_seed(0)
        tap = keras.Input(shape)
        end = layers.Conv2D(8, 4, strides=4, data_format=format_, name="end")(tap)
        target = Target(10, (2, 2), 8, format_, end, positions)
        models.append(keras.Model(tap, head.features({"e": tap}, target)["e"]))
    last, first = models
    for layer in last.layers:  # By name, as the order of the layers may differ.
        if layer.weights:
            first.get_layer(layer.name).set_weights(layer.get_weights())
    expected = to_numpy(last(x))
    assert expected.max() > 0.01
    np.testing.assert_allclose(
        to_numpy(first(x.transpose(0, 3, 1, 2))), expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(7,), (9, 7), (5, 6, 7), (3, 4, 5, 7)])
def test_the_linear_head_takes_any_rank(shape):
    keras.utils.set_random_seed(0)
    tap = keras.Input(shape)
    model = keras.Model(tap, Linear()(tap, Target(10, (), 10), name="e"))
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype("float32")
    kernel, bias = model.get_layer("e_feature").get_weights()
    pooled = x.reshape(3, -1, 7).mean(axis=1)
    np.testing.assert_allclose(
        model.predict(x, verbose=0), np.maximum(pooled @ kernel + bias, 0), atol=1e-5
    )


OTHER_SIZES = [(32, 32), (20, 9)]


@pytest.mark.once
@pytest.mark.parametrize("recipe", ["byot", "attention_byot", "teskd"])
@pytest.mark.parametrize(
    "size",
    [(33, 47), *(pytest.param(each, marks=pytest.mark.long) for each in OTHER_SIZES)],
)
def test_heads_fit_odd_images(size, recipe):
    base = (
        keras.applications.MobileNetV2(
            weights=None, input_shape=(*size, 3), classes=5, alpha=0.35
        )
        if min(size) >= 32
        else ksd.networks.resnet18(
            input_shape=(*size, 3), classes=5, width_multiplier=0.125
        )
    )
    model = ksd.SelfDistiller(base, 3, recipe)
    images = np.zeros((2, *size, 3), "float32")
    assert {o.shape for o in model.predict(images, verbose=0).values()} == {(2, 5)}


def test_a_users_own_head(batch, base):
    import dataclasses

    @keras.saving.register_keras_serializable(package="tests")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Pooled(ksd.heads.Head):
        activation: str = "relu"

        def __call__(self, tap, target, *, name, dtype=None):
            x = keras.layers.GlobalMaxPooling2D(name=f"{name}_max", dtype=dtype)(tap)
            return keras.layers.Dense(
                target.width, activation=self.activation, name=f"{name}_f", dtype=dtype
            )(x)

    model = ksd.SelfDistiller(base, ["out_1"], "byot", head=Pooled(activation="tanh"))
    copy = ksd.SelfDistiller.from_config(model.get_config())
    assert copy.get_layer("exit_1_f").activation is keras.activations.tanh
    assert copy.predict(batch[0], verbose=0)["exit_1"].shape == (16, 4)


def kernels(model):
    """Return every kernel of a model by its layer's name."""
    return {
        layer.name: to_numpy(layer.kernel.value)
        for layer in model.layers
        if hasattr(layer, "kernel")
    }


def fresh_bn_relu(x):
    """Batch normalisation with mean 0 and variance 1, then ReLU."""
    return np.maximum(x / np.sqrt(1 + 1e-5), 0)


def depthwise(x, kernel, stride):
    """A depthwise 3×3 convolution, padded alike on all sides, written out."""
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    rows, columns = (-(-size // stride) for size in x.shape[1:3])
    out = np.zeros((len(x), rows, columns, x.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            window = padded[:, i * stride : i * stride + 3, j * stride : j * stride + 3]
            out[:, i, j] = np.einsum("nhwc,hwc->nc", window, kernel[..., 0])
    return out


def separable_block(x, kernel, name, stride):
    x = depthwise(x, kernel[f"{name}_depthwise1"], stride)
    x = fresh_bn_relu(x @ kernel[f"{name}_pointwise1"])
    x = depthwise(x, kernel[f"{name}_depthwise2"], 1)
    return fresh_bn_relu(x @ kernel[f"{name}_pointwise2"])


def bilinear(x, factor, size):
    """Enlarge between centres of pixels, the border repeated; crop to the size."""

    def along(x, axis):
        old = x.shape[axis]
        at = np.clip((np.arange(old * factor) + 0.5) / factor - 0.5, 0, old - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, old - 1)
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        share = (at - low).reshape(shape)
        return x.take(low, axis) * (1 - share) + x.take(high, axis) * share

    return along(along(x, 1), 2)[:, : size[0], : size[1]]


def aligned(x, factor, size):
    """Interpolate from corner to corner; the factor follows from the size."""

    def along(x, axis, new):
        at = [i * (x.shape[axis] - 1) / (new - 1) for i in range(new)]
        rows = []
        for place in at:
            low = min(int(place), x.shape[axis] - 2)
            pair = x.take([low, low + 1], axis)
            shares = np.reshape([1 + low - place, place - low], (2,))
            rows.append(np.tensordot(pair, shares, axes=([axis], [0])))
        return np.stack(rows, axis)

    return along(along(x, 1, size[0]), 2, size[1])


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize(
    ("size", "last", "widths"),
    [
        ((8, 8), (4, 4), [10]),
        ((16, 16), (4, 4), [12, 10]),
        ((9, 13), (3, 5), [12, 10]),  # A ratio of 3: two halvings.
        ((4, 4), (4, 4), [10]),
    ],
)
def test_separable_equals_convolutions(attention, size, last, widths):
    keras.utils.set_random_seed(0)
    tap = keras.Input((*size, 6))
    target = Target(width=10, spatial_shape=last, channels=8)
    head = Separable(attention=attention)
    model = keras.Model(tap, head(tap, target, name="e"))
    x = np.random.default_rng(0).normal(size=(3, *size, 6)).astype("float32")
    kernel = kernels(model)
    expected = x
    if attention:
        mask = separable_block(x, kernel, "e_attention_block", 2)
        # A fresh normalisation would do nothing to what a ReLU has passed.
        beta = np.linspace(-0.2, 0.1, 6, dtype="float32")
        model.get_layer("e_attention_bn").beta.assign(beta)
        mask = np.maximum(mask / np.sqrt(1 + 1e-5) + beta, 0)
        expected = x / (1 + np.exp(-bilinear(mask, 2, size)))
    for i, width in enumerate(widths, start=1):
        stride = 1 if size == last else 2
        expected = separable_block(expected, kernel, f"e_block{i}", stride)
        assert expected.shape[-1] == width
    expected = expected.mean(axis=(1, 2))
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-5)
    assert expected.max() > 0.01


@pytest.mark.parametrize(
    ("sizes", "last"), [([(8, 8), (4, 4)], (2, 2)), ([(9, 13), (5, 7)], (3, 4))]
)
@pytest.mark.parametrize("align_corners", [True, False])
def test_top_down_equals_its_description(sizes, last, align_corners):
    keras.utils.set_random_seed(0)
    names = ["exit_1", "exit_2"]
    taps = {n: keras.Input((*size, 6)) for n, size in zip(names, sizes, strict=True)}
    end = keras.Input((*last, 8))
    target = Target(width=10, spatial_shape=last, channels=8, spatial=end)
    head = TopDown(align_corners=align_corners)
    features = head.features(taps, target)
    assert list(features) == names
    model = keras.Model([*taps.values(), end], list(features.values()))
    random = np.random.default_rng(0)
    arrays = [
        random.normal(size=(3, *tensor.shape[1:])).astype("float32")
        for tensor in model.inputs
    ]
    kernel = kernels(model)
    above = fresh_bn_relu(arrays[-1] @ kernel["exit_2_top_lateral"])
    expected = {}
    for name, x in reversed(list(zip(names, arrays[:2], strict=True))):
        lateral = fresh_bn_relu(x @ kernel[f"{name}_lateral"])
        factor = -(-x.shape[1] // above.shape[1])
        # As published: interpolation first, convolution second.
        interpolate = aligned if align_corners else bilinear
        up = interpolate(above, factor, x.shape[1:3]) @ kernel[f"{name}_up"]
        up = fresh_bn_relu(up)
        both = np.concatenate([up + lateral, up], axis=-1)
        above = fresh_bn_relu(both @ kernel[f"{name}_fuse"])
        stride = [-(-s // n) for s, n in zip(x.shape[1:3], last, strict=True)]
        gaps = [-s % k for s, k in zip(x.shape[1:3], stride, strict=True)]
        padded = np.pad(above, [(0, 0), *[(g // 2, g - g // 2) for g in gaps], (0, 0)])
        rows, columns = (s // k for s, k in zip(padded.shape[1:3], stride, strict=True))
        patches = padded.reshape(3, rows, stride[0], columns, stride[1], 10)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(3, rows * columns, -1)
        student = fresh_bn_relu(patches @ kernel[f"{name}_downsample"])
        student = fresh_bn_relu(student @ kernel[f"{name}_expand"])
        expected[name] = student.mean(axis=1)
    for name, actual in zip(names, model.predict(arrays, verbose=0), strict=True):
        np.testing.assert_allclose(actual, expected[name], atol=1e-5)
        assert expected[name].max() > 0.01


@pytest.mark.once
def test_top_down_heads_saved_before_aligned_the_centres():
    config = keras.saving.serialize_keras_object(TopDown())
    assert keras.saving.deserialize_keras_object(config) == TopDown()
    config["config"] = {}  # As it was written before there was a choice.
    found = keras.saving.deserialize_keras_object(config)
    assert found == TopDown(align_corners=False)
    with pytest.raises(TypeError, match="align_corners must be True or False"):
        TopDown(align_corners=1)


@pytest.mark.once
def test_an_ensemble_of_top_down_exits_is_saved(tmp_path):
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 3))
    model = ksd.SelfDistiller(small_base(), ["stem_relu", "out_1"], "teskd")
    ensemble = model.ensemble_model()
    ensemble.save(tmp_path / "m.keras")
    loaded = ksd.load_model(tmp_path / "m.keras")
    expected = ensemble.predict(x, verbose=0)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-6)
