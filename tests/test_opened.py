"""Layers made of layers: their inside is tapped where a tap's name leads into it."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd

from .conftest import to_numpy

PACKAGE = "test_opened"


@keras.saving.register_keras_serializable(package=PACKAGE)
class Stack(layers.Layer):
    """Residual blocks behind each other, as a transformer's encoder holds them."""

    def __init__(self, width=8, depth=3, rate=0.0, **kwargs):
        super().__init__(**kwargs)
        self.width, self.depth, self.rate = width, depth, rate
        self.blocks = [
            layers.Dense(width, "relu", name=f"block_{i}", dtype=self.dtype_policy)
            for i in range(1, depth + 1)
        ]
        self.drop = layers.Dropout(rate, name="drop", dtype=self.dtype_policy)
        self.norm = layers.BatchNormalization(name="norm", dtype=self.dtype_policy)
        self.supports_masking = True

    def build(self, input_shape):
        for block in self.blocks:
            block.build(input_shape)
        self.norm.build(input_shape)

    def call(self, x, training=None):
        for block in self.blocks:
            x = self.drop(block(x) + x, training=training)
        return self.norm(x, training=training)

    def get_config(self):
        own = {"width": self.width, "depth": self.depth, "rate": self.rate}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package=PACKAGE)
class Biased(Stack):
    """A stack with a weight that belongs to none of its layers."""

    def build(self, input_shape):
        super().build(input_shape)
        self.bias = self.add_weight(shape=(self.width,), name="bias")

    def call(self, x, training=None):
        return super().call(x, training=training) + self.bias


@keras.saving.register_keras_serializable(package=PACKAGE)
class Stubborn(Stack):
    """A stack that looks at the values."""

    def call(self, x, training=None):
        return super().call(x if float(x[0, 0]) else -x, training=training)

    def compute_output_spec(self, x, training=None):
        return keras.KerasTensor(x.shape, x.dtype)


def base(stack=Stack, nested=False, **options):
    """A classifier of rows around one stack, maybe inside a backbone."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8,), name="row")
    x = stack(name="stack", **options)(inputs)
    if nested:
        backbone = keras.Model(inputs, x, name="backbone")
        inputs = keras.Input((8,))
        x = backbone(inputs)
    x = layers.Dense(6, activation="relu", name="feature")(x)
    outputs = layers.Dense(3, activation="softmax", name="classes")(x)
    return keras.Model(inputs, outputs)


ROWS = np.random.default_rng(4).normal(size=(12, 8)).astype("float32")
CLASSES = np.arange(12) % 3


@pytest.mark.parametrize("nested", [False, True])
def test_a_block_inside_is_tapped(nested):
    model = base(nested=nested)
    before = model.predict(ROWS, verbose=0)
    path = "backbone/stack" if nested else "stack"
    wrapper = ksd.SelfDistiller(model, [f"{path}/block_1", f"{path}/block_3"], "byot")
    answers = wrapper.predict(ROWS, verbose=0)
    np.testing.assert_allclose(answers["final"], before, rtol=1e-6)
    # By hand: the second block reads the sum behind the first.
    owner = model.get_layer("backbone") if nested else model
    stack = owner.get_layer("stack")
    tap = stack.blocks[0](ROWS)
    head = [wrapper.get_layer(f"exit_1_{part}") for part in ("feature", "logits")]
    expected = keras.ops.softmax(head[1](head[0](tap)))
    np.testing.assert_allclose(answers["exit_1"], to_numpy(expected), rtol=1e-5)


def test_it_trains_and_comes_back_from_a_file(tmp_path):
    wrapper = ksd.SelfDistiller(base(rate=0.2), ["stack/block_2"], "byot")
    wrapper.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    stack = wrapper.base.get_layer("stack")
    before = [np.array(weight) for weight in stack.weights]
    wrapper.fit(ROWS, CLASSES, verbose=0)
    still = [
        weight.path
        for weight, old in zip(stack.weights, before, strict=True)
        if np.array_equal(weight, old)
    ]
    assert not still  # BatchNorm's statistics too: `training` reaches the inside.
    wrapper.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.taps == ["stack/block_2"]
    for name, answer in wrapper.predict(ROWS, verbose=0).items():
        again = loaded.predict(ROWS, verbose=0)[name]
        np.testing.assert_allclose(again, answer, rtol=1e-6)
        alone = wrapper.exit_model(name).predict(ROWS, verbose=0)
        np.testing.assert_allclose(alone, answer, rtol=1e-6)


def test_the_inside_computes_in_the_layers_own_dtype():
    wrapper = ksd.SelfDistiller(base(dtype="mixed_float16"), ["stack/block_1"], "byot")
    np.testing.assert_allclose(
        wrapper.predict(ROWS, verbose=0)["final"],
        wrapper.base.predict(ROWS, verbose=0),
        rtol=1e-6,
    )


@pytest.mark.once
@pytest.mark.parametrize(
    ("stack", "reason"), [(Biased, "bias"), (Stubborn, "fails on symbolic tensors")]
)
def test_a_layer_that_cannot_be_opened(stack, reason):
    model = base(stack)
    with pytest.raises(ValueError, match=reason) as caught:
        ksd.SelfDistiller(model, ["stack/block_1"], "byot")
    assert "Received" in str(caught.value)
    ksd.SelfDistiller(model, ["stack"], "byot")


@pytest.mark.once
def test_a_name_that_is_not_inside():
    with pytest.raises(ValueError, match="mean 'stack/block_1'"):
        ksd.SelfDistiller(base(), ["stack/blok_1"], "byot")


@pytest.mark.once
def test_a_masked_layer_stays_closed():
    inputs = keras.Input((5,))
    x = layers.Embedding(9, 8, mask_zero=True)(inputs)
    x = Stack(name="stack")(x)
    x = layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    with pytest.raises(ValueError, match="reads a mask"):
        ksd.SelfDistiller(model, ["stack/block_1"], "byot")


@pytest.mark.once
def test_a_stack_with_most_of_the_work_is_opened_to_place_exits():
    base = keras.Sequential(
        [
            keras.Input((8,)),
            Stack(name="stack"),
            layers.Dense(3, activation="softmax", name="top"),
        ]
    )
    # 64 multiply-adds in each of three blocks, and 24 at the top.
    taps = ksd.suggest_taps(base, 2)
    assert [tap.share for tap in taps] == pytest.approx([64 / 216, 128 / 216])
    assert all(name.startswith("stack/") for name in taps.names)
    model = ksd.SelfDistiller(base, 2, "byot")
    assert model.taps == taps.names
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(model)
    )
    assert again.taps == taps.names


@pytest.mark.once
def test_a_stack_that_cannot_be_opened_stays_whole_when_exits_are_placed():
    inputs = keras.Input((8,))
    x = layers.Dense(8, name="first")(inputs)
    x = layers.Dense(8, name="last")(Biased(name="stack")(x))
    base = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    assert ksd.suggest_taps(base, 2).names == ["first", "stack"]
