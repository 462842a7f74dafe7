"""Bad input raises before training, says what to do, and leaves the base whole."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd

from .conftest import small_base

LOSS = "sparse_categorical_crossentropy"


class Subclassed(keras.Model):
    """A model without a graph."""

    def call(self, inputs):
        return inputs


def headless(*extra):
    base = small_base()
    x = base.get_layer("out_2").output
    for layer in extra:
        x = layer(x)
    return keras.Model(base.input, x)


def two_outputs():
    base = small_base()
    return keras.Model(base.input, [base.output, base.get_layer("pool").output])


def ends_in(activation):
    return small_base(activation=activation)


def shared_layer():
    inputs = keras.Input((8, 8, 3))
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    x = layers.GlobalAveragePooling2D()(shared(shared(inputs)))
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(x))


def branches():
    inputs = keras.Input((8, 8, 3))
    left = layers.Conv2D(4, 3, padding="same", name="left")(inputs)
    right = layers.Conv2D(4, 3, padding="same", name="right")(inputs)
    x = layers.GlobalAveragePooling2D()(layers.Add()([left, right]))
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(x))


def collides():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="exit_1_reduce")(inputs)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(x))


def unsized():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = layers.Conv2D(4, 3)(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(x))


def pooled_softmax():
    """The mean of softmaxes is no softmax of any logits."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = layers.Conv2D(4, 1, activation="softmax")(x)
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x))


WRAPS = {
    # name: (base, taps, recipe, head, error, words of the message)
    "no model": (dict, ["out_1"], "byot", None, TypeError, "functional"),
    "subclassed": (Subclassed, ["out_1"], "byot", None, TypeError, "subclassed"),
    "unbuilt": (
        lambda: keras.Sequential([layers.Dense(3)]),
        1,
        "byot",
        None,
        ValueError,
        "Input",
    ),
    "two outputs": (two_outputs, ["out_1"], "byot", None, ValueError, "one output"),
    "no classes": (headless, ["out_1"], "byot", None, ValueError, "include_top"),
    "relu end": (lambda: ends_in("relu"), ["out_1"], "byot", None, ValueError, "relu"),
    "tanh end": (
        lambda: ends_in("tanh"),
        ["out_1"],
        "byot",
        None,
        ValueError,
        "softmax, sigmoid or linear",
    ),
    "pooled softmax": (pooled_softmax, ["conv"], "byot", None, ValueError, "logits"),
    "unknown tap": (small_base, ["out1"], "byot", None, ValueError, "'out_1'"),
    "empty name": (small_base, [""], "byot", None, ValueError, "No layer"),
    "tap behind the feature": (
        small_base,
        ["predictions"],
        "byot",
        None,
        ValueError,
        "before the last feature",
    ),
    "tap at the feature": (
        small_base,
        ["pool"],
        "byot",
        None,
        ValueError,
        "before the last feature",
    ),
    "repeated tap": (small_base, ["out_1", "out_1"], "byot", None, ValueError, "once"),
    "unordered taps": (
        small_base,
        ["out_1", "stem_relu"],
        "byot",
        None,
        ValueError,
        "shallow to deep",
    ),
    "parallel taps": (
        branches,
        ["left", "right"],
        "byot",
        None,
        ValueError,
        "one path",
    ),
    "shared layer": (shared_layer, ["shared"], "byot", None, ValueError, "2 times"),
    "no taps": (small_base, [], "byot", None, ValueError, "at least one"),
    "zero taps": (small_base, 0, "byot", None, ValueError, "at least one"),
    "negative taps": (small_base, -1, "byot", None, ValueError, "at least one"),
    "too many taps": (small_base, 99, "byot", None, ValueError, "too few"),
    "a name alone": (small_base, "out_1", "byot", None, TypeError, "list"),
    "taps of no kind": (small_base, None, "byot", None, TypeError, "list"),
    "true for taps": (small_base, True, "byot", None, TypeError, "list"),
    "layer for tap": (
        small_base,
        [layers.ReLU()],
        "byot",
        None,
        TypeError,
        "layer.name",
    ),
    "unknown recipe": (small_base, 1, "bjot", None, ValueError, "'byot'"),
    "recipe class": (small_base, 1, ksd.recipes.BYOT, None, TypeError, "Recipe"),
    "unknown head": (small_base, 1, "byot", "bottelneck", ValueError, "'bottleneck'"),
    "head of no kind": (small_base, 1, "byot", 3, TypeError, "Head"),
    "flat tap": (
        lambda: keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                layers.Flatten(),
                layers.Dense(8, name="flat"),
                layers.Dense(8),
                layers.Dense(4, activation="softmax"),
            ]
        ),
        ["flat"],
        "byot",
        "bottleneck",
        ValueError,
        "head='linear'",
    ),
    "name collision": (collides, ["exit_1_reduce"], "byot", None, ValueError, "Rename"),
    "unknown size": (
        unsized,
        ["conv"],
        "byot",
        "bottleneck",
        ValueError,
        "input_shape",
    ),
    "unknown size by number": (unsized, 1, "byot", None, ValueError, "input_shape"),
}


@pytest.mark.once
@pytest.mark.parametrize("name", WRAPS)
def test_a_wrap_that_cannot_be(name):
    make, taps, recipe, head, error, words = WRAPS[name]
    base = make()
    with pytest.raises(error, match=words) as caught:
        ksd.SelfDistiller(base, taps, recipe, head=head)
    assert "Received" in str(caught.value)
    if isinstance(base, keras.Model) and base.built and base.inputs:
        images = np.zeros((2, 8, 8, 3), "float32")
        assert base.predict(images, verbose=0) is not None


def test_a_wrap_that_fails_can_be_made_right(batch):
    base = small_base()
    before = base.predict(batch[0], verbose=0)
    with pytest.raises(ValueError, match="Did you mean 'out_1'"):
        ksd.SelfDistiller(base, ["out_11"], "byot")
    model = ksd.SelfDistiller(base, ["out_1"], "byot")
    np.testing.assert_array_equal(model.predict(batch[0], verbose=0)["final"], before)


@pytest.mark.once
@pytest.mark.parametrize(
    ("recipe", "fields", "error"),
    [
        (ksd.recipes.BYOT, {"alpha": -0.1}, ValueError),
        (ksd.recipes.BYOT, {"alpha": 1.1}, ValueError),
        (ksd.recipes.BYOT, {"alpha": float("nan")}, ValueError),
        (ksd.recipes.BYOT, {"alpha": "0.3"}, TypeError),
        (ksd.recipes.BYOT, {"alpha": True}, TypeError),
        (ksd.recipes.BYOT, {"temperature": 0}, ValueError),
        (ksd.recipes.BYOT, {"temperature": -3.0}, ValueError),
        (ksd.recipes.BYOT, {"temperature": float("inf")}, ValueError),
        (ksd.recipes.BYOT, {"hint_weight": -1e-6}, ValueError),
        (ksd.recipes.BYOT, {"hint_weight": float("nan")}, ValueError),
        (ksd.recipes.BYOT, {"final_label_weight": -1}, ValueError),
        (ksd.recipes.DeepSupervision, {"exit_weight": -1}, ValueError),
        (ksd.recipes.DeepSupervision, {"exit_weight": float("inf")}, ValueError),
        (ksd.heads.Bottleneck, {"reduction": 0}, ValueError),
        (ksd.heads.Bottleneck, {"reduction": 2.5}, ValueError),
    ],
)
def test_fields_out_of_range(recipe, fields, error):
    with pytest.raises(error) as caught:
        recipe(**fields)
    (name,) = fields
    assert name in str(caught.value)
    assert "Received" in str(caught.value)


@pytest.mark.once
def test_fields_are_given_by_name_and_stay():
    with pytest.raises(TypeError):
        ksd.recipes.BYOT(0.3)
    with pytest.raises(AttributeError):
        ksd.recipes.BYOT().alpha = 0.5


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, TypeError, "needs one loss"),
        ({"loss": None}, TypeError, "needs one loss"),
        ({"loss": [LOSS, LOSS]}, TypeError, "needs one loss"),
        ({"loss": {"final": LOSS}}, TypeError, "needs one loss"),
        ({"loss": "crossentropie"}, ValueError, "crossentropie"),
        (
            {"loss": keras.losses.CategoricalCrossentropy(reduction=None)},
            ValueError,
            "scalar",
        ),
        ({"loss": LOSS, "loss_weights": [1, 2]}, ValueError, "recipe weighs"),
        ({"loss": LOSS, "metrics": {"final": "accuracy"}}, TypeError, "every exit"),
        ({"loss": LOSS, "metrics": ["acuracy"]}, ValueError, "acuracy"),
    ],
)
def test_compile_refuses(base, arguments, error, words):
    model = ksd.SelfDistiller(base, ["out_1"], "byot")
    with pytest.raises(error, match=words):
        model.compile("sgd", **arguments)
    assert not model.compiled


@pytest.mark.parametrize(
    "labels",
    [
        np.zeros((16, 3)),
        np.zeros((16, 4, 2)),
        np.zeros((16, 2), "int32"),
        [np.zeros(16), np.zeros(16)],
        {"exit_1": np.zeros(16), "final": np.zeros(16)},
        None,
    ],
    ids=["classes", "rank", "pairs", "list", "dict", "none"],
)
def test_labels_of_the_wrong_shape(base, batch, labels):
    model = ksd.SelfDistiller(base, ["out_1"], "byot")
    model.compile("sgd", LOSS)
    before = base.get_weights()
    with pytest.raises(ValueError, match=r"\(batch,\)"):
        model.fit(batch[0], labels, verbose=0)
    for actual, expected in zip(base.get_weights(), before, strict=True):
        np.testing.assert_array_equal(actual, expected)
    model.fit(*batch, verbose=0)  # The wrapper is as good as new.


def with_nan(array):
    array = array.astype("float32")
    array.flat[3] = np.nan
    return array


DATA = {
    # name: what becomes of (x, y, sample_weight), and words of the message
    "no samples": (lambda x, y, w: (x[:0], y[:0], w[:0]), "at least one sample"),
    "NaN inputs": (lambda x, y, w: (with_nan(x), y, w), r"nan at \(0, 0, 1, 0\)"),
    "infinite inputs": (lambda x, y, w: (x / 0 * np.sign(x), y, w), "inf at"),
    "text for inputs": (lambda x, y, w: (x.astype(str), y, w), "dtype"),
    "objects for inputs": (lambda x, y, w: (x.astype(object), y, w), "dtype"),
    "grey images": (lambda x, y, w: (x[..., :1], y, w), "shape"),
    "small images": (lambda x, y, w: (x[:, :5], y, w), "shape"),
    "one image": (lambda x, y, w: (x[0], y[:8], w[:8]), "shape"),
    "too many inputs": (lambda x, y, w: ([x, x], y, w), "input"),
    "no inputs": (lambda x, y, w: (None, y, None), "input"),
    "too few labels": (lambda x, y, w: (x, y[:8], w), "number of samples"),
    "negative labels": (lambda x, y, w: (x, y - 1, w), "-1 among y"),
    "labels too large": (lambda x, y, w: (x, y + 1, w), "4 among y.*0 to 3"),
    "labels between classes": (lambda x, y, w: (x, y + 0.5, w), "0.5 among y"),
    "NaN labels": (lambda x, y, w: (x, with_nan(y), w), "nan at"),
    "text for labels": (lambda x, y, w: (x, y.astype(str), w), "out of range|dtype"),
    "too few weights": (lambda x, y, w: (x, y, w[:3]), "number of samples"),
    "NaN weights": (lambda x, y, w: (x, y, with_nan(w)), "sample_weight.*nan"),
}


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.parametrize("name", DATA)
def test_data_that_nothing_can_be_learned_from(base, batch, name):
    spoil, words = DATA[name]
    model = ksd.SelfDistiller(base, ["out_1"], "byot")
    model.compile("sgd", LOSS)
    before = base.get_weights()
    x, y, sample_weight = spoil(*batch, np.ones(16))
    with pytest.raises((ValueError, TypeError), match=words):
        model.fit(x, y, sample_weight=sample_weight, verbose=0)
    for actual, expected in zip(base.get_weights(), before, strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_a_class_may_be_left_out(base, batch):
    x, y = batch
    model = ksd.SelfDistiller(base, ["out_1"], "byot")
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=-1)
    model.compile("sgd", loss)
    history = model.fit(x, np.where(y == 0, -1, y), verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_labels_that_do_not_fit_the_loss(base, batch):
    model = ksd.SelfDistiller(base, ["out_1"], "byot")
    model.compile("sgd", "categorical_crossentropy")
    before = base.get_weights()
    with pytest.raises(ValueError, match="shape"):
        model.fit(*batch, verbose=0)
    for actual, expected in zip(base.get_weights(), before, strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_a_metric_that_cannot_be_copied(base):
    class Stubborn(keras.Metric):
        def __init__(self):
            super().__init__(name="stubborn")

    model = ksd.SelfDistiller(base, ["out_1"], "byot")
    with pytest.raises(TypeError, match=r"get_config"):
        model.compile("sgd", LOSS, metrics=[Stubborn()])


def test_fit_before_compile(base, batch):
    model = ksd.SelfDistiller(base, ["out_1"], "byot")
    with pytest.raises(ValueError, match="compile"):
        model.fit(*batch, verbose=0)


@pytest.mark.once
def test_an_exit_that_is_not_there(base):
    model = ksd.SelfDistiller(base, ["out_1"], "byot")
    with pytest.raises(ValueError, match="Did you mean 'exit_1'"):
        model.exit_model("exit1")


def test_nothing_is_printed(base, batch, capfd):
    model = ksd.SelfDistiller(base, 2, "byot")
    model.compile("sgd", LOSS)
    model.fit(*batch, verbose=0)
    assert capfd.readouterr() == ("", "")
