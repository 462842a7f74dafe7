"""Channels lie where the layers of a base put them, not where images have theirs."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.graph.layout import data_format_of
from tests.conftest import to_numpy

STEPS = np.random.default_rng(6).normal(size=(3, 6, 4)).astype("float32")


@pytest.fixture
def channels_first():
    """The global image format is channels first; it is restored afterwards."""
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format(before)


class Attending(layers.Layer):
    """Self-attention as one layer without a word about its format."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(2, 2)

    def call(self, x):
        return self.attention(x, x)


SEQUENCE_LAYERS = {
    "lstm": lambda: [layers.LSTM(5, return_sequences=True, name="tap")],
    "bidirectional": lambda: [
        layers.Bidirectional(layers.GRU(3, return_sequences=True), name="tap")
    ],
    "dropout": lambda: [
        layers.SimpleRNN(5, return_sequences=True),
        layers.Dropout(0.5, name="tap"),
    ],
    "dense": lambda: [layers.Dense(5, name="dense"), layers.ReLU(name="tap")],
    "normalized": lambda: [layers.LayerNormalization(name="tap")],
    "given": lambda: [layers.Activation("tanh", name="tap")],
    "attending": lambda: [Attending(name="tap")],
}


@pytest.mark.parametrize("case", SEQUENCE_LAYERS)
def test_steps_are_pooled_and_not_features(case, channels_first):
    end = [layers.LSTM(5, name="last"), layers.Dense(3, "softmax")]
    base = keras.Sequential([keras.Input((6, 4)), *SEQUENCE_LAYERS[case](), *end])
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
    tap = keras.Model(base.inputs[0], base.get_layer("tap").output)
    pool, feature = (model.get_layer(f"exit_1_{part}") for part in ("pool", "feature"))
    assert feature.kernel.shape == (tap.output_shape[-1], 5)
    steps = to_numpy(tap(STEPS, training=False))
    np.testing.assert_allclose(
        to_numpy(pool(steps)), steps.mean(axis=1), rtol=1e-5, atol=1e-6
    )
    if case == "lstm":
        assert ksd.SelfDistiller(base, 1, "byot").taps == ["tap"]


def test_each_step_is_labelled(channels_first):
    base = keras.Sequential(
        [
            keras.Input((6, 4)),
            layers.LSTM(5, return_sequences=True, name="tap"),
            layers.Dense(5, "relu"),
            layers.Dense(3, "softmax"),
        ]
    )
    model = ksd.SelfDistiller(base, ["tap"], "byot")
    assert model.output["exit_1"].shape == (None, 6, 3)


@pytest.mark.once
def test_features_of_steps_get_a_classifier(channels_first):
    backbone = keras.Sequential(
        [
            keras.Input((6, 4)),
            layers.LSTM(5, return_sequences=True, name="tap"),
            layers.LSTM(7, return_sequences=True),
        ]
    )
    model = ksd.SelfDistiller(backbone, ["tap"], "byot", classes=3)
    assert model.base.layers[-1].kernel.shape == (7, 3)


@pytest.mark.once
def test_an_image_and_its_rows_each_in_their_own_format(channels_first):
    """Convolutions of the global format, read row by row by a recurrent layer."""
    inputs = keras.Input((3, 8, 6))
    image = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    rows = layers.Reshape((8, -1), name="rows")(layers.Permute((2, 3, 1))(image))
    steps = layers.LSTM(5, return_sequences=True, name="steps")(rows)
    outputs = layers.Dense(2, "softmax")(layers.LSTM(5)(steps))
    model = ksd.SelfDistiller(
        keras.Model(inputs, outputs), ["conv", "steps"], "byot", head="linear"
    )
    formats = [model.get_layer(f"exit_{i}_pool").data_format for i in (1, 2)]
    assert formats == ["channels_first", "channels_last"]


@pytest.mark.once
@pytest.mark.parametrize(
    ("make", "rank", "expected"),
    [
        (lambda: layers.Conv1D(2, 1, data_format="channels_first"), 3, "first"),
        (lambda: layers.Conv1D(2, 1, data_format="channels_last"), 3, "last"),
        (lambda: layers.BatchNormalization(axis=1), 3, "first"),
        (lambda: layers.BatchNormalization(), 3, "last"),
        (lambda: layers.ReLU(), 4, "first"),
        (lambda: layers.Dense(2), 4, "last"),
        (lambda: layers.ConvLSTM1D(2, 1, return_sequences=True), 4, "first"),
        (lambda: layers.TimeDistributed(layers.Dense(2)), 3, "last"),
    ],
)
def test_the_nearest_layer_says_it(make, rank, expected, channels_first):
    tensor = make()(keras.Input((4,) * (rank - 1)))
    assert data_format_of(tensor) == f"channels_{expected}"


@pytest.mark.once
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: layers.LSTM(5, return_sequences=True), "last"),
        (lambda: layers.Conv1D(5, 1, data_format="channels_first"), "first"),
    ],
)
def test_normalization_of_each_step_says_nothing_against_the_layer_before(
    make, expected
):
    tensor = layers.BatchNormalization(axis=1)(make()(keras.Input((4, 3))))
    assert data_format_of(tensor) == f"channels_{expected}"
