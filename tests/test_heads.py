"""Heads against convolutions written out, and the shapes they reach."""

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from keras_selfdistill.heads import Bottleneck, Linear, Target

from .conftest import to_numpy


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


def test_channels_first_equals_channels_last():
    target = Target(width=10, spatial_shape=(2, 2), channels=8)
    last = keras.Input((8, 8, 6))
    first = keras.Input((6, 8, 8))
    models = [
        keras.Model(last, Bottleneck()(last, target, name="e")),
        keras.Model(
            first,
            Bottleneck()(first, Target(10, (2, 2), 8, "channels_first"), name="e"),
        ),
    ]
    models[1].set_weights(models[0].get_weights())
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 6)).astype("float32")
    np.testing.assert_allclose(
        models[1].predict(x.transpose(0, 3, 1, 2), verbose=0),
        models[0].predict(x, verbose=0),
        atol=1e-6,
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


@pytest.mark.parametrize("size", [(33, 47), (32, 32), (20, 9)])
def test_heads_fit_odd_images(size):
    base = (
        keras.applications.MobileNetV2(
            weights=None, input_shape=(*size, 3), classes=5, alpha=0.35
        )
        if min(size) >= 32
        else ksd.networks.resnet18(
            input_shape=(*size, 3), classes=5, width_multiplier=0.125
        )
    )
    model = ksd.SelfDistiller(base, 3, "byot")
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
