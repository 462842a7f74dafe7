"""Random networks, taps, recipes and labels: wrapped, trained, saved, loaded, cut.

Hypothesis draws them, always the same ones, and shrinks what fails.
"""

import dataclasses
import json

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies as st
from keras import layers

import keras_selfdistill as ksd
from tests.conftest import to_numpy

pytestmark = pytest.mark.long
SAMPLES, CLASSES = 6, 3


@dataclasses.dataclass(frozen=True)
class Case:
    """A base, what it predicts, and how it is wrapped."""

    image: bool
    blocks: tuple[str, ...]
    task: str
    softmax: bool
    labels: str
    taps: tuple[int, ...] | int
    recipe: ksd.recipes.Recipe
    head: str | None
    seed: int


LABELS = {
    "multiclass": {
        "sparse": ("sparse_categorical_crossentropy", "accuracy"),
        "column": ("sparse_categorical_crossentropy", "accuracy"),
        "one-hot": ("categorical_crossentropy", "accuracy"),
        "soft": ("categorical_crossentropy", "mse"),
    },
    "multilabel": {"multi-hot": ("binary_crossentropy", "binary_accuracy")},
    "binary": {
        "flat": ("binary_crossentropy", "binary_accuracy"),
        "column": ("binary_crossentropy", "binary_accuracy"),
    },
    "regression": {"numbers": ("mse", "mae")},
}
ENDS = {"multilabel": "sigmoid", "binary": "sigmoid", "regression": None}


@st.composite
def recipes_of(draw, image):
    names = ["byot", "deep_supervision", "attention_byot", *(["teskd"] * image)]
    kind = ksd.recipes.RECIPES[draw(st.sampled_from(names))]
    fields = {
        "teacher": draw(st.sampled_from(["deepest", "next", "dense", "ensemble"])),
        "temperature": draw(st.floats(0.5, 20)),
    }
    share = st.one_of(
        st.floats(0, 1), st.just(keras.optimizers.schedules.PolynomialDecay(0.2, 9))
    )
    if hasattr(kind, "alpha"):
        fields["alpha"] = draw(share)
    if hasattr(kind, "hint_weight"):
        fields["hint_weight"] = draw(st.sampled_from([0.0, 1e-4, 0.3]))
    return kind(**fields)


@st.composite
def cases(draw):
    image = draw(st.booleans())
    kinds = ["plain", "residual", "branches", "nested", "shared", "normal"]
    blocks = tuple(draw(st.lists(st.sampled_from(kinds), min_size=2, max_size=4)))
    task = draw(st.sampled_from(list(LABELS)))
    recipe = draw(recipes_of(image))
    places = st.sets(st.integers(0, len(blocks) - 2), min_size=1)
    taps = draw(st.one_of(st.just(1), places.map(lambda found: tuple(sorted(found)))))
    # A head of its own choice where the recipe's does not fit the taps.
    top_down = isinstance(recipe, ksd.recipes.TESKD)
    heads = [None] if top_down else [None, "linear", *(["bottleneck"] * image)]
    return Case(
        image=image,
        blocks=blocks,
        task=task,
        softmax=draw(st.booleans()),
        labels=draw(st.sampled_from(list(LABELS[task]))),
        taps=taps,
        recipe=recipe,
        head=draw(st.sampled_from(heads)),
        seed=draw(st.integers(0, 9)),
    )


def make_base(case):
    """Return a base; its blocks end in layers named `end_0`, `end_1` and so on."""
    width = 4

    def step(name, activation="relu"):
        if case.image:
            return layers.Conv2D(
                width, 3, padding="same", activation=activation, name=name
            )
        return layers.Dense(width, activation=activation, name=name)

    inputs = keras.Input((4, 4, 2) if case.image else (5,), name="x")
    x = step("stem")(inputs)
    for i, kind in enumerate(case.blocks):
        if kind == "residual":
            x = layers.Add(name=f"sum_{i}")([x, step(f"inside_{i}")(x)])
        elif kind == "branches":
            sides = [step(f"left_{i}")(x), step(f"right_{i}", "tanh")(x)]
            x = step(f"mixed_{i}")(layers.Concatenate(name=f"both_{i}")(sides))
        elif kind == "nested":
            inner = keras.Input(tuple(x.shape[1:]), name=f"inner_input_{i}")
            model = keras.Model(inner, step(f"inner_{i}")(inner), name=f"nested_{i}")
            x = model(x)
        elif kind == "shared":
            layer = step(f"shared_{i}")
            x = layer(layer(x))
        elif kind == "normal":
            x = layers.BatchNormalization(name=f"bn_{i}")(step(f"before_{i}", None)(x))
            x = layers.Dropout(0.2, seed=i, name=f"dropout_{i}")(x)
        else:
            x = step(f"plain_{i}")(x)
        x = step(f"end_{i}")(x)
    if case.image:
        x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(6, activation="relu", name="feature")(x)
    end = ENDS.get(case.task, "softmax" if case.softmax else None)
    units = 1 if case.task == "binary" else CLASSES
    return keras.Model(inputs, layers.Dense(units, activation=end, name="end")(x))


def make_data(case):
    random = np.random.default_rng(case.seed)
    shape = (4, 4, 2) if case.image else (5,)
    x = random.normal(size=(SAMPLES, *shape)).astype("float32")
    classes = random.integers(0, 2 if case.task == "binary" else CLASSES, SAMPLES)
    labels = {
        "sparse": classes,
        "flat": classes,
        "column": classes[:, None],
        "one-hot": np.eye(CLASSES)[classes % CLASSES],
        "soft": random.dirichlet(np.ones(CLASSES), SAMPLES),
        "multi-hot": random.integers(0, 2, (SAMPLES, CLASSES)),
        "numbers": random.normal(size=(SAMPLES, CLASSES)),
    }[case.labels]
    return x, labels.astype("float32")


def make_loss(case):
    """Return what a user would pass to `compile`."""
    name, metric = LABELS[case.task][case.labels]
    logits = case.task == "multiclass" and not case.softmax
    if not logits:
        return name, metric
    classes = {
        "sparse_categorical_crossentropy": keras.losses.SparseCategoricalCrossentropy,
        "categorical_crossentropy": keras.losses.CategoricalCrossentropy,
    }
    return classes[name](from_logits=True), metric


def log_softmax(rows):
    rows = rows - rows.max(axis=-1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))


def expected_ensemble(case, outputs):
    """Return the mean of the exits' logits, in the base's own form, from outputs."""
    if case.task == "multiclass" and case.softmax:
        logits = np.mean([log_softmax(np.log(each)) for each in outputs], axis=0)
        return np.exp(log_softmax(logits))
    if ENDS.get(case.task) == "sigmoid":
        logits = np.mean([np.log(each) - np.log1p(-each) for each in outputs], axis=0)
        return 1 / (1 + np.exp(-logits))
    return np.mean(outputs, axis=0)


def predictions_of(model, x):
    found = model(x, training=False)
    if isinstance(found, dict):
        return {name: to_numpy(each) for name, each in found.items()}
    return to_numpy(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("properties")


@hypothesis.settings(
    max_examples=15 if keras.backend.backend() == "jax" else 40,  # XLA compiles each.
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(case=cases())
def test_wrap_step_save_load_and_cut(folder, case):
    keras.utils.set_random_seed(case.seed)
    base, (x, y) = make_base(case), make_data(case)
    before = predictions_of(base, x)
    taps = case.taps
    if isinstance(taps, tuple):
        taps = [f"end_{i}" for i in taps]
    task = None if case.task != "regression" else "regression"
    model = ksd.SelfDistiller(base, taps, case.recipe, head=case.head, task=task)
    # Wrapping changes nothing.
    np.testing.assert_allclose(predictions_of(model, x)["final"], before, atol=1e-6)
    np.testing.assert_allclose(predictions_of(base, x), before, atol=1e-6)

    # A step is finite and trains.
    loss, metric = make_loss(case)
    sgd = keras.optimizers.SGD(0.05)
    model.compile(sgd, loss, metrics=[metric], run_eagerly=True, jit_compile=False)
    bias = base.get_layer("end").bias  # Which learns where all units before are zero.
    value = to_numpy(bias.value).copy()
    logs = model.train_on_batch(x, y, return_dict=True)
    assert all(np.isfinite(float(value)) for value in logs.values()), logs
    assert not np.array_equal(to_numpy(bias.value), value)

    # A file brings back the same wrapper, which goes on as this one does.
    path = folder / "model.keras"
    model.save(path)
    loaded = ksd.load_model(path)
    configs = [json.dumps(each.get_config()) for each in (loaded, model)]
    assert configs[0] == configs[1]  # As text: JSON knows no tuples.
    outputs = predictions_of(model, x)
    for name, found in predictions_of(loaded, x).items():
        np.testing.assert_array_equal(found, outputs[name])
    tested = [m.test_on_batch(x, y, return_dict=True) for m in (model, loaded)]
    assert tested[0].keys() == tested[1].keys()
    assert float(tested[0]["loss"]) == pytest.approx(float(tested[1]["loss"]), 1e-5)

    # Models cut off predict as the wrapper does.
    np.testing.assert_allclose(
        predictions_of(model.final_model(), x), outputs["final"], atol=1e-6
    )
    np.testing.assert_allclose(
        predictions_of(model.ensemble_model(), x),
        expected_ensemble(case, [outputs[name] for name in model.exit_names]),
        atol=1e-4,
    )
    if not model.has_early_exits:
        return
    for name in model.exit_names:
        cut = predictions_of(model.exit_model(name), x)
        np.testing.assert_allclose(cut, outputs[name], atol=1e-6)
    if case.task == "multiclass":
        fast = ksd.EarlyExit(loaded, thresholds=-np.inf).predict(x)
        np.testing.assert_allclose(
            fast.predictions, outputs[model.exit_names[0]], atol=1e-5
        )
