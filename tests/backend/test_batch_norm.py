"""The fused batch normalisation against Keras' own."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.backend.batch_norm import use_fused_kernel, use_fused_kernels
from tests.conftest import small_base, to_numpy, value_and_gradients

ON_TORCH = keras.backend.backend() == "torch"


def test_it_is_for_pytorch_alone():
    layer = use_fused_kernel(layers.BatchNormalization())
    assert ("call" in vars(layer)) == ON_TORCH


@pytest.mark.skipif(not ON_TORCH, reason="There is nothing to compare elsewhere")
@pytest.mark.parametrize(
    ("policy", "shape", "options"),
    [
        ("float32", (64, 5), {}),
        ("mixed_bfloat16", (64, 5), {}),
        ("float32", (8, 4, 3, 5), {}),
        ("mixed_bfloat16", (8, 4, 3, 5), {}),
        ("float32", (8, 5, 4, 3), {"axis": 1}),
        ("float32", (4, 3, 5, 2, 2), {"axis": 2}),
        ("float32", (4, 3, 2, 2, 5), {"axis": -1, "scale": False}),
        ("float32", (9, 7, 5), {"center": False}),
        ("float32", (1, 2, 2, 5), {}),
    ],
)
def test_it_equals_keras(policy, shape, options):
    random = np.random.default_rng(0)
    x = random.normal(loc=2.0, scale=3.0, size=shape).astype("float32")
    away = random.normal(size=shape).astype("float32")
    plain, fused = (
        layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype=policy, **options)
        for _ in range(2)
    )
    use_fused_kernel(fused)
    found = []
    for layer in (plain, fused):
        layer.build(x.shape)
        learned = {"scale": np.arange(1.0, 6.0), "center": np.arange(5.0) - 2}
        kept = [learned[name] for name in learned if options.get(name, True)]
        layer.set_weights([*kept, *np.ones((2, 5))])

        def objective(inputs, layer=layer):
            outputs = keras.ops.cast(layer(inputs, training=True), "float32")
            return keras.ops.sum(keras.ops.multiply(keras.ops.tanh(outputs), away))

        found.append(value_and_gradients(objective, [x]))
    tolerance = 1e-5 if policy == "float32" else 3e-2
    assert found[1][0] == pytest.approx(found[0][0], rel=tolerance)
    np.testing.assert_allclose(found[1][1][0], found[0][1][0], atol=tolerance)
    for a, b in zip(fused.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance)
    inference = [to_numpy(layer(x, training=False)) for layer in (plain, fused)]
    np.testing.assert_allclose(
        inference[1].astype("float32"), inference[0].astype("float32"), rtol=tolerance
    )


def as_tensor(dtype):
    return keras.ops.cast(np.arange(24).reshape(8, 3) % 7, dtype)


@pytest.mark.skipif(not ON_TORCH, reason="There is nothing to compare elsewhere")
@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        ("uint8", {}),  # Of images, which a base normalises first.
        ("int32", {"dtype": "mixed_bfloat16"}),
        ("float16", {"autocast": False}),
        ("float32", {"autocast": False, "dtype": "mixed_float16"}),
        ("float64", {"dtype": "float64"}),
        ("float16", {"dtype": "float16", "momentum": 0.9}),
    ],
)
def test_dtypes_are_those_of_keras(inputs, options):
    plain, fused = (layers.BatchNormalization(**options) for _ in range(2))
    use_fused_kernel(fused)
    for _ in range(2):
        wanted, found = (
            layer(as_tensor(inputs), training=True) for layer in (plain, fused)
        )
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(
        *(to_numpy(each).astype("float64") for each in (found, wanted)), atol=1e-5
    )
    for a, b in zip(fused.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.skipif(not ON_TORCH, reason="There is nothing to compare elsewhere")
def test_an_empty_batch_is_no_error():
    layer = use_fused_kernel(layers.BatchNormalization())
    assert layer(np.zeros((0, 4, 3)), training=True).shape == (0, 4, 3)


class Own(layers.BatchNormalization):
    """A layer that may compute anything."""


def test_what_computes_something_else_is_left_alone():
    others = [Own(), layers.BatchNormalization(renorm=True)]
    replaced = layers.BatchNormalization()
    replaced.call = own_call = lambda inputs, training=None, mask=None: inputs
    use_fused_kernels([*others, replaced, layers.LayerNormalization()])
    assert not any("call" in vars(each) for each in others)
    assert replaced.call is own_call


def test_a_wrapper_trains_its_base_by_it():
    base = small_base()
    shell = keras.Sequential([keras.Input((8, 8, 3)), base])
    before = keras.utils.serialize_keras_object(base)
    ksd.SelfDistiller(shell, 1, "deep_supervision")
    found = [
        each for each in base.layers if isinstance(each, layers.BatchNormalization)
    ]
    assert len(found) == 3
    assert all(("call" in vars(each)) == ON_TORCH for each in found)
    assert keras.utils.serialize_keras_object(base) == before


def test_layers_of_equal_names_are_trained_by_it_too():
    def block(name):
        norm = layers.BatchNormalization(name="norm")
        return keras.Sequential([keras.Input((4,)), layers.Dense(4), norm], name=name)

    blocks = block("a"), block("b")
    base = keras.Sequential(
        [keras.Input((4,)), *blocks, layers.Dense(3, "softmax", name="end")]
    )
    ksd.SelfDistiller(base, ["a/norm"], head="linear")
    for each in blocks:
        assert ("call" in vars(each.get_layer("norm"))) == ON_TORCH


def test_it_trains_gamma_and_beta():
    layer = use_fused_kernel(layers.BatchNormalization())
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    x = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
    model.fit(x, 2 * x + 1, verbose=0)
    gamma, beta, mean, _ = (to_numpy(v.value) for v in layer.variables)
    assert (gamma != 1).all()
    assert (beta != 0).all()
    np.testing.assert_allclose(mean, 0.01 * x.mean(axis=0), rtol=1e-4)


def test_it_saves_as_a_layer_of_keras():
    layer = use_fused_kernel(layers.BatchNormalization(epsilon=1e-4))
    config = keras.saving.serialize_keras_object(layer)
    assert config["registered_name"] is None
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is layers.BatchNormalization
    assert copy.epsilon == 1e-4
