"""Nested models behind padded sequences: the mask of padding arrives inside."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.graph.flatten import flatten
from tests.conftest import marks_long_on, to_numpy

# Keras says it of nested models, though it does hand the mask on to what is inside.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a"),
    *marks_long_on("jax", "tensorflow"),
]

WORDS = np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0], [1, 1, 1, 1, 1]])
TAGS = np.array([[1, 0, 3, 0, 0], [4, 4, 5, 6, 7], [0, 0, 0, 0, 2]])


def embedded(name="words"):
    ids = keras.Input((5,), dtype="int32", name=name)
    return ids, layers.Embedding(9, 4, mask_zero=True, name=f"{name}_table")(ids)


def classifier(inputs, x):
    x = layers.Dense(6, "relu", name="feature")(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(x))


def encoder(*stack, name="encoder", shape=(5, 4), **options):
    return keras.Sequential([keras.Input(shape, **options), *stack], name=name)


def lstm(**options):
    return layers.LSTM(4, return_sequences=True, **options)


def read_inside():
    """The nested model reads the mask and gives one vector."""
    ids, x = embedded()
    stack = [lstm(name="steps"), layers.Dropout(0.1), layers.GRU(5, name="read")]
    return classifier(ids, encoder(*stack)(x)), "encoder/steps"


def read_behind():
    """The mask passes through the nested model, and is read behind it."""
    ids, x = embedded()
    x = encoder(layers.Dense(4, name="steps"), layers.ReLU(), lstm())(x)
    return classifier(ids, layers.GRU(5, name="read")(x)), "encoder/steps"


def lost_inside():
    """An operation drops the mask, so that the layer behind reads every step."""
    ids, x = embedded()
    inputs = keras.Input((5, 4))
    doubled = layers.Dense(4, name="steps")(inputs) * 2.0
    x = keras.Model(inputs, doubled, name="encoder")(x)
    return classifier(ids, layers.GRU(5, name="read")(x)), "encoder/steps"


def made_inside():
    """The nested model looks words up, and makes the mask itself."""
    table = layers.Embedding(9, 4, mask_zero=True)
    inner = encoder(table, lstm(name="steps"), shape=(5,), dtype="int32")
    ids = keras.Input((5,), dtype="int32")
    return classifier(ids, layers.GRU(5, name="read")(inner(ids))), "encoder/steps"


def twice_nested():
    ids, x = embedded()
    inner = encoder(lstm(name="steps"), name="inner")
    return classifier(ids, encoder(inner, layers.GRU(5))(x)), "encoder/inner/steps"


def two_inputs():
    """Two masks, one for each input of the nested model, which are given by name."""
    (words, x), (tags, y) = embedded(), embedded("tags")
    left, right = keras.Input((5, 4), name="a"), keras.Input((5, 4), name="b")
    read = [lstm(name="steps")(left), layers.GRU(4, name="last")(right)]
    inner = keras.Model([left, right], [layers.GRU(4)(read[0]), read[1]], name="both")
    joined = layers.Concatenate()(inner({"b": y, "a": x}))
    return classifier([words, tags], joined), "both/steps"


def given_by_hand():
    """A mask that the call is given, and not that of its input."""
    ids, x = embedded()
    mask = keras.ops.less(ids, 4)
    x = encoder(lstm(name="steps"), layers.GRU(5))(x, mask=mask)
    return classifier(ids, x), "encoder/steps"


def whole_numbers():
    """A masked tensor of integers, which the nested model casts to floats."""
    ids = keras.Input((5, 1), dtype="int32")
    x = layers.Masking(0)(ids)
    inner = encoder(lstm(name="steps"), layers.GRU(5), shape=(5, 1))
    return classifier(ids, inner(x)), "encoder/steps"


def other_masks():
    """Two nested models read one tensor, each with a mask of its own."""
    ids, x = embedded()
    one, two = (
        encoder(lstm(name="steps"), layers.GRU(5), name=name)
        for name in ("encoder", "other")
    )
    both = [one(x, mask=keras.ops.less(ids, 4)), two(x)]
    return classifier(ids, layers.Concatenate()(both)), "encoder/steps"


def siamese():
    """One nested model reads two texts."""
    (words, x), (tags, y) = embedded(), embedded("tags")
    inputs = keras.Input((5, 4))
    outputs = layers.GRU(5, name="read")(lstm(name="steps")(inputs))
    inner = keras.Model(inputs, outputs, name="encoder")
    return classifier([words, tags], layers.Subtract()([inner(x), inner(y)])), (
        "encoder@1/steps"
    )


BASES = {
    make.__name__: make
    for make in (
        read_inside,
        read_behind,
        lost_inside,
        made_inside,
        twice_nested,
        two_inputs,
        given_by_hand,
        whole_numbers,
        other_masks,
        siamese,
    )
}


def made(case):
    """A base whose outputs are far apart, and a tap in its nested model."""
    keras.utils.set_random_seed(8)
    base, tap = BASES[case]()
    base.set_weights([3 * weight for weight in base.get_weights()])
    return base, tap


def data(base):
    given = {"words": WORDS, "tags": TAGS}
    if len(base.inputs) == 2:
        return list(given.values())
    return WORDS[..., None] if len(base.inputs[0].shape) == 3 else WORDS


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("case", BASES)
def test_the_end_is_the_bases_own(case, policy, mixed_precision):
    mixed_precision(policy)
    base, tap = made(case)
    x = data(base)
    expected = to_numpy(keras.ops.cast(base(x), "float32"))
    model = ksd.SelfDistiller(base, [tap], "byot", head="linear")
    for each in (
        model,
        keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(model)
        ),
    ):
        each.set_weights(model.get_weights())
        found = keras.ops.cast(each(x)["final"], "float32")
        np.testing.assert_array_equal(to_numpy(found), expected)
    assert np.abs(expected[0] - expected[1]).max() > 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("case", ["other_masks", "siamese"])
def test_it_runs_compiled(case):
    base, tap = made(case)
    x, y = data(base), np.array([0, 1, 2])
    model = ksd.SelfDistiller(base, [tap], "deep_supervision", head="linear")
    found = model.predict(x, verbose=0)["final"]
    np.testing.assert_allclose(found, base.predict(x, verbose=0), atol=1e-5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    model.fit(x, y, verbose=0)


@pytest.mark.parametrize("case", ["read_inside", "two_inputs"])
def test_padding_does_not_count(case):
    """What stands under the mask, as a table of words has it for 0, changes nothing."""
    base, tap = made(case)
    model = ksd.SelfDistiller(base, [tap], "byot", head="linear")
    before = to_numpy(model(data(base))["exit_1"])
    table = base.get_layer("words_table")
    rows = table.get_weights()[0]
    table.set_weights([np.concatenate([rows[:1] + 3.0, rows[1:]])])
    after = to_numpy(model(data(base))["exit_1"])
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_it_is_trained_counted_and_reported_on():
    base, tap = made("read_inside")
    assert "encoder/steps" in flatten(base).calls
    model = ksd.SelfDistiller(base, [tap], "byot", head="linear")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=[keras.metrics.MeanMetricWrapper(loss, "ce")])
    labels = np.array([0, 1, 2])
    logits = to_numpy(base(WORDS)).astype("float64")
    by_hand = (np.log(np.exp(logits).sum(-1)) - logits[np.arange(3), labels]).mean()
    logs = model.evaluate(WORDS, labels, verbose=0, return_dict=True)
    assert logs["ce"] == pytest.approx(by_hand)
    model.fit(WORDS, labels, verbose=0)
    assert np.abs(to_numpy(base(WORDS)) - logits).max() > 1e-4
    costs = ksd.profile(model)
    # Four gates of an LSTM, three of a GRU, at five steps; two dense layers.
    by_hand = 5 * (4 * 4 * (4 + 4) + 3 * 5 * (4 + 5)) + 5 * 6 + 6 * 3
    assert costs["final"].macs == by_hand
    result = ksd.report(base, (WORDS, labels), repeats=0, verbose=0)
    predicted = to_numpy(base(WORDS)).argmax(axis=-1)
    assert result.rows[0].accuracy == pytest.approx((predicted == labels).mean())
