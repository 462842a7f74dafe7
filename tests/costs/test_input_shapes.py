"""Models that leave sizes open, such as the length of a text."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_selfdistill as ksd
from keras_selfdistill.costs.input_shapes import nominal_shapes

pytestmark = pytest.mark.once
WIDTH, BLOCKS, CLASSES = 4, 4, 3


class Longest(layers.Layer):
    """Adds one of 20 weights to each position, so no text may be longer."""

    def build(self, input_shape):
        self.places = self.add_weight(shape=(20, input_shape[-1]))

    def call(self, x):
        return x + self.places[: x.shape[1]]

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def transformer(length=None, longest=False):
    """Words, some of them padding, attend to each other; hand-built."""
    words = keras.Input((length,), dtype="int32", name="words")
    weights = keras.Input((2,), name="metadata")
    x = layers.Embedding(9, WIDTH)(words)
    x = Longest()(x) if longest else x
    mask = ops.expand_dims(ops.not_equal(words, 0), 1)
    for i in range(BLOCKS):
        attention = layers.MultiHeadAttention(1, WIDTH, use_bias=False)
        x = layers.Add()([x, attention(x, x, attention_mask=mask)])
        wide = layers.Dense(2 * WIDTH, "relu")(x)
        x = layers.Add(name=f"block_{i}")([x, layers.Dense(WIDTH)(wide)])
    x = layers.Concatenate()([layers.GlobalAveragePooling1D()(x), weights])
    outputs = layers.Dense(CLASSES, activation="softmax")(x)
    return keras.Model({"words": words, "metadata": weights}, outputs)


def block_cost(length):
    attention = 4 * length * WIDTH**2 + 2 * length**2 * WIDTH
    return attention + 4 * length * WIDTH**2


def test_costs_are_those_of_the_length_that_was_given():
    shapes = {"words": (6,), "metadata": (2,)}
    expected = BLOCKS * block_cost(6) + (WIDTH + 2) * CLASSES
    assert ksd.profile(transformer(), shapes)["final"].macs == expected
    assert ksd.profile(transformer(6))["final"].macs == expected
    model = ksd.SelfDistiller(transformer(), ["block_1"], "byot")
    found = ksd.profile(model, shapes)
    assert found["final"].macs == expected
    assert found.sections["exit_1"].macs >= 2 * block_cost(6)


@pytest.mark.parametrize(
    "shape", [None, {"words": (6,)}, {"words": (6, 1), "metadata": (2,)}, (6,), 6]
)
def test_a_shape_that_does_not_fit(shape):
    with pytest.raises(ValueError, match=r"Received.*\(None,\).*|Expected.*\(None,\)"):
        ksd.profile(transformer(), shape)


def test_masks_and_other_inputs_are_no_part_of_a_cut():
    taps = ksd.suggest_taps(transformer(), 3)
    assert taps.names == ["block_0", "block_1", "block_2"]
    assert [tap.macs_ratio for tap in taps] == pytest.approx(
        [0.25, 0.5, 0.75], abs=0.01
    )


def test_the_nominal_length_is_one_that_the_model_takes():
    assert (256,) in nominal_shapes(transformer()).values()
    assert (16,) in nominal_shapes(transformer(longest=True)).values()
    assert nominal_shapes(transformer(6)) == {}


def test_no_length_that_the_model_takes():
    inputs = keras.Input((None, WIDTH))
    x = layers.Conv1D(CLASSES, 18)(Longest()(inputs))  # From 18 on, and up to 20.
    model = keras.Model(inputs, layers.GlobalAveragePooling1D()(x))
    with pytest.raises(ValueError, match=r"Received: model .* Expected: a base built"):
        nominal_shapes(model)


def test_exits_are_placed_reported_drawn_and_left_early():
    model = ksd.SelfDistiller(transformer(), 2, "byot")
    rng = np.random.default_rng(0)
    x = {
        "words": rng.integers(0, 9, (12, 6)),
        "metadata": rng.normal(size=(12, 2)).astype("float32"),
    }
    y = np.arange(12) % CLASSES
    found = ksd.report(model, (x, y), repeats=0, verbose=0)
    expected = BLOCKS * block_cost(6) + (WIDTH + 2) * CLASSES
    assert found["final"].macs == expected
    early = ksd.EarlyExit(model)
    early.calibrate(x, y, macs_budget=0.9)
    outcome = early.predict(x)
    assert outcome.predictions.shape == (12, CLASSES)
    assert outcome.macs_ratio <= 0.9
    words = [t.get_text() for t in ksd.visualization.plot_model(model).axes[0].texts]
    assert any("multiply-adds for a sample of 2 and 256" in each for each in words)


def test_images_of_any_size_train_and_are_cut_off():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(inputs)
    x = layers.Conv2D(4, 3, strides=2, activation="relu", name="second")(x)
    x = layers.GlobalAveragePooling2D()(x)
    base = keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(x))
    model = ksd.SelfDistiller(base, 1, "byot")
    assert (model.taps, type(model.head).__name__) == (["first"], "Linear")
    model.compile("sgd", "sparse_categorical_crossentropy")
    for size in (8, 11):
        images = np.ones((4, size, size, 3), "float32")
        model.train_on_batch(images, np.arange(4) % CLASSES)
        assert model.exit_model("exit_1").predict(images, verbose=0).shape == (4, 3)
