"""Bad input raises before training, says what to do, and leaves the base whole."""

import dataclasses
import re
import threading
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from tests.conftest import make_batch, small_base

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


def flattened_softmax():
    """Distributions side by side are no softmax of any logits."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = layers.Conv2D(4, 1, activation="softmax")(x)
    return keras.Model(inputs, layers.Flatten()(x))


def flat():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Flatten(),
            layers.Dense(8, name="flat"),
            layers.Dense(8),
            layers.Dense(4, activation="softmax"),
        ]
    )


def unbuilt():
    return keras.Sequential([layers.Dense(3)])


class Stubborn(keras.Metric):
    """A metric that holds what no other can hold."""

    def __init__(self):
        super().__init__(name="stubborn")
        self.lock = threading.Lock()


class Empty(keras.utils.PyDataset):
    """A data set without batches."""

    def __len__(self):
        return 0

    def __getitem__(self, index):
        raise IndexError(index)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Something that must raise, when done with a fresh base."""

    act: Callable[[Any], None]
    words: str  # A pattern that the message must match.
    error: type[Exception] = ValueError
    base: Callable[[], Any] = small_base


def wrap(words, base=small_base, error=ValueError, taps=1, recipe="byot", **options):
    def act(model):
        ksd.SelfDistiller(model, taps, recipe, **options)

    return Case(act=act, words=words, error=error, base=base)


def field(make, error=ValueError, **fields):
    (name,) = fields
    return Case(act=lambda base: make(**fields), words=name, error=error)


def compile_(words, error=ValueError, **arguments):
    def act(base):
        model = ksd.SelfDistiller(base, ["out_1"], "byot")
        try:
            model.compile("sgd", **arguments)
        finally:
            assert not model.compiled

    return Case(act=act, words=words, error=error)


def fit(words, spoil, error=ValueError, loss=LOSS):
    def act(base):
        model = ksd.SelfDistiller(base, ["out_1"], "byot")
        model.compile("sgd", loss)
        x, y, sample_weight = spoil(*BATCH, np.ones(16))
        # Keras warns of shuffling, the default, where it cannot.
        how = {} if isinstance(x, np.ndarray) else {"shuffle": False}
        model.fit(x, y, sample_weight=sample_weight, verbose=0, **how)

    return Case(act=act, words=words, error=error)


def labels(words, y, **options):
    return fit(words, lambda x, _, w: (x, y, None), **options)


def data(words, x):
    return fit(words, lambda *_: (x, None, None))


def with_nan(array):
    array = array.astype("float32")
    array.flat[3] = np.nan
    return array


BATCH = make_batch()
BYOT, DEEP = ksd.recipes.BYOT, ksd.recipes.DeepSupervision
INF, NAN = float("inf"), float("nan")

GRAPHS = {  # Read once; no backend changes them.
    "no model": wrap("functional", dict, TypeError),
    "subclassed": wrap("subclassed", Subclassed, TypeError),
    "unbuilt": wrap("Input", unbuilt),
    "two outputs": wrap("one output", two_outputs),
    "no classes": wrap("include_top", headless),
    "relu end": wrap("relu", lambda: ends_in("relu")),
    "tanh end": wrap("softmax, sigmoid or linear", lambda: ends_in("tanh")),
    "flattened softmax": wrap("logits", flattened_softmax, taps=["conv"]),
    "classes for a classifier": wrap("classes", classes=4),
    "no such task": wrap("'multilabel'", task="multilable"),
    "task of another end": wrap("softmax", task="regression"),
    "unknown tap": wrap("'out_1'", taps=["out1"]),
    "empty name": wrap("No layer", taps=[""]),
    "tap behind the feature": wrap("before the last feature", taps=["predictions"]),
    "tap at the feature": wrap("before the last feature", taps=["pool"]),
    "repeated tap": wrap("once", taps=["out_1", "out_1"]),
    "unordered taps": wrap("shallow to deep", taps=["out_1", "stem_relu"]),
    "parallel taps": wrap("one path", branches, taps=["left", "right"]),
    "shared layer": wrap("2 times", shared_layer, taps=["shared"]),
    "no taps": wrap(r"nothing would teach(.|\n)*at least one tap", taps=[]),
    "zero taps": wrap(r"nothing would teach(.|\n)*at least one tap", taps=0),
    "negative taps": wrap("at least one", taps=-1),
    "too many taps": wrap("too few", taps=99),
    "a name alone": wrap("list", error=TypeError, taps="out_1"),
    "taps of no kind": wrap("list", error=TypeError, taps=None),
    "true for taps": wrap("list", error=TypeError, taps=True),
    "layer for tap": wrap("layer.name", error=TypeError, taps=[layers.ReLU()]),
    "unknown recipe": wrap("'byot'", recipe="bjot"),
    "recipe class": wrap("Recipe", error=TypeError, recipe=BYOT),
    "unknown head": wrap("'bottleneck'", head="bottelneck"),
    "head of no kind": wrap("Head", error=TypeError, head=3),
    "flat tap": wrap("head='linear'", flat, taps=["flat"], head="bottleneck"),
    "name collision": wrap("Rename", collides, taps=["exit_1_reduce"]),
    "unknown size": wrap("input_shape", unsized, taps=["conv"], head="bottleneck"),
    "teacher of no kind": wrap("teacher", error=TypeError, teacher="resnet"),
    "teacher of other classes": wrap("teacher", teacher=small_base(classes=7)),
    "freeze what": wrap("freeze", freeze="all"),
    "negative alpha": field(BYOT, alpha=-0.1),
    "alpha above 1": field(BYOT, alpha=1.1),
    "NaN alpha": field(BYOT, alpha=NAN),
    "text for alpha": field(BYOT, TypeError, alpha="0.3"),
    "true for alpha": field(BYOT, TypeError, alpha=True),
    "temperature 0": field(BYOT, temperature=0),
    "negative temperature": field(BYOT, temperature=-3.0),
    "infinite temperature": field(BYOT, temperature=INF),
    "negative hint": field(BYOT, hint_weight=-1e-6),
    "NaN hint": field(BYOT, hint_weight=NAN),
    "negative label weight": field(BYOT, final_label_weight=-1),
    "negative exit weight": field(DEEP, exit_weight=-1),
    "infinite exit weight": field(DEEP, exit_weight=INF),
    "reduction 0": field(ksd.heads.Bottleneck, reduction=0),
    "reduction 2.5": field(ksd.heads.Bottleneck, reduction=2.5),
    "no loss": compile_("takes one loss", TypeError),
    "two losses": compile_("takes one loss", TypeError, loss=[LOSS, LOSS]),
    "a loss by name": compile_("takes one loss", TypeError, loss={"final": LOSS}),
    "unknown loss": compile_("mean 'crossentropy'", loss="crossentropie"),
    "loss without reduction": compile_(
        "scalar", loss=keras.losses.CategoricalCrossentropy(reduction=None)
    ),
    "loss weights": compile_("recipe weights", loss=LOSS, loss_weights=[1, 2]),
    "metrics by name": compile_(
        "every exit", TypeError, loss=LOSS, metrics={"final": "accuracy"}
    ),
    "unknown metric": compile_("mean 'accuracy'", loss=LOSS, metrics=["acuracy"]),
    "metric with a lock": compile_(
        "add_variable", TypeError, loss=LOSS, metrics=[Stubborn()]
    ),
}

DATA = {  # Read by each backend's own trainer.
    "no samples": fit("at least one", lambda x, y, w: (x[:0], y[:0], w[:0])),
    "no batches": data("Empty of length 0", Empty()),
    "a generator of nothing": data("at least one batch", (batch for batch in ())),
    "no inputs": fit("x=None", lambda x, y, w: (None, y, None)),
    "NaN inputs": fit(r"nan at \(0, 0, 1, 0\)", lambda x, y, w: (with_nan(x), y, w)),
    "infinite inputs": fit("inf at", lambda x, y, w: (np.full_like(x, INF), y, w)),
    "text for inputs": fit("dtype", lambda x, y, w: (x.astype(str), y, w), TypeError),
    "objects for inputs": fit(
        "dtype object", lambda x, y, w: (x.astype(object), y, w), TypeError
    ),
    "complex inputs": fit("dtype", lambda x, y, w: (x + 1j, y, w), TypeError),
    "grey images": fit("8, 8, 3", lambda x, y, w: (x[..., :1], y, w)),
    "small images": fit("8, 8, 3", lambda x, y, w: (x[:, :5], y, w)),
    "channels first": fit("8, 8, 3", lambda x, y, w: (x.transpose(0, 3, 1, 2), y, w)),
    "one image": fit(r"pass x\[None\]", lambda x, y, w: (x[0], y[:8], w[:8])),
    "too many inputs": fit("expects 1", lambda x, y, w: ([x, x], y, w)),
    "too few labels": fit("numbers of samples", lambda x, y, w: (x, y[:8], w)),
    "too few weights": fit("numbers of samples", lambda x, y, w: (x, y, w[:3])),
    "NaN weights": fit("weight.*nan", lambda x, y, w: (x, y, with_nan(w))),
    "negative labels": fit(r"with -1\.", lambda x, y, w: (x, y - 1, w)),
    "labels too large": fit(r"with 4\..*0 to 3", lambda x, y, w: (x, y + 1, w)),
    "labels too large for either loss": fit(
        r"with 4\..*0 to 3", lambda x, y, w: (x, y + 1, w), loss="CrossEntropy"
    ),
    "NaN in bfloat16": fit(
        "nan at", lambda x, y, w: (with_nan(x).astype("bfloat16"), y, w)
    ),
    "labels between classes": fit(r"with 0\.5\.", lambda x, y, w: (x, y + 0.5, w)),
    "NaN labels": fit("nan at", lambda x, y, w: (x, with_nan(y), w)),
    "text for labels": fit("dtype", lambda x, y, w: (x, y.astype(str), w), TypeError),
    "rows of other classes": labels(r"\(batch,\)", np.zeros((16, 3))),
    "labels of rank 3": labels(r"\(batch,\)", np.zeros((16, 4, 2))),
    "pairs of labels": labels(r"\(batch,\)", np.zeros((16, 2), "int32")),
    "labels in a list": labels(r"\(batch,\)", [np.zeros(16), np.zeros(16)]),
    "labels by exit": labels(r"\(batch,\)", {"exit_1": np.zeros(16)}),
    "no labels": labels(r"\(batch,\)", None),
    "rows for a sparse loss": labels("'categorical_cross", np.eye(4)[BATCH[1]]),
    "numbers for a loss of rows": labels(
        r"\('samples', 4\)", BATCH[1], loss="categorical_crossentropy"
    ),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=pytest.mark.once)
        for name, case in GRAPHS.items()
    ]
    + [pytest.param(case, id=name) for name, case in DATA.items()],
)
def test_bad_input(case):
    base = case.base()
    usable = isinstance(base, keras.Model) and base.built and bool(base.inputs)
    before = base.get_weights() if usable else []
    with pytest.raises(case.error, match=case.words) as caught:
        case.act(base)
    assert "eceived" in str(caught.value)
    assert re.search("xpect|must", str(caught.value))
    if usable:
        for actual, expected in zip(base.get_weights(), before, strict=True):
            np.testing.assert_array_equal(actual, expected)
        base.predict(BATCH[0], verbose=0)


def test_a_wrap_that_fails_can_be_made_right(batch):
    base = small_base()
    before = base.predict(batch[0], verbose=0)
    with pytest.raises(ValueError, match="Did you mean 'out_1'"):
        ksd.SelfDistiller(base, ["out_11"], "byot")
    model = ksd.SelfDistiller(base, ["out_1"], "byot")
    np.testing.assert_array_equal(model.predict(batch[0], verbose=0)["final"], before)


@pytest.mark.once
def test_fields_are_given_by_name_and_stay():
    with pytest.raises(TypeError):
        ksd.recipes.BYOT(0.3)
    with pytest.raises(AttributeError):
        ksd.recipes.BYOT().alpha = 0.5


def test_a_class_may_be_left_out(base, batch):
    x, y = batch
    model = ksd.SelfDistiller(base, ["out_1"], "byot")
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=-1)
    model.compile("sgd", loss)
    history = model.fit(x, np.where(y == 0, -1, y), verbose=0).history
    assert np.isfinite(history["loss"]).all()


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


@pytest.mark.parametrize("wrong", [4, -1])
def test_labels_of_validation_and_evaluation_are_checked(base, batch, wrong):
    model = ksd.SelfDistiller(base, ["out_1"])
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    x, y = (keras.ops.convert_to_numpy(each) for each in batch)
    labels = np.full_like(y, wrong)
    before = model.get_weights()
    with pytest.raises(ValueError, match="Labels are out of range"):
        model.fit(x, y, validation_data=(x, labels), verbose=0)
    with pytest.raises(ValueError, match="Labels are out of range"):
        model.evaluate(x, labels, verbose=0)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("call", ["calibrate", "evaluate"])
def test_words_as_labels_are_refused(base, batch, call):
    fast = ksd.EarlyExit(ksd.SelfDistiller(base, ["out_1"]), thresholds=0.5)
    x = keras.ops.convert_to_numpy(batch[0])
    goal = {"max_accuracy_drop": 0.1} if call == "calibrate" else {}
    with pytest.raises(ValueError, match="Labels must be numbers"):
        getattr(fast, call)(x, np.array(["cat"] * len(x)), **goal)
