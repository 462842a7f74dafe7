"""Labels, numbers, and predictions at each position: not one class of several."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.early_exit.section_models import cut_sections
from keras_selfdistill.losses import binary_soft_target_divergence
from tests.conftest import (
    finite_differences,
    long_on,
    marks_long_on,
    small_base,
    to_numpy,
    value_and_gradients,
)

# A network is compiled or traced for each.
pytestmark = marks_long_on("jax", "tensorflow")
TAPS = ["stem_relu", "out_1"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def binary_divergence(teacher, student, temperature):
    """From the formula: T² · mean over labels of KL between two coins."""
    p, q = sigmoid(teacher / temperature), sigmoid(student / temperature)
    of_each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    return temperature**2 * of_each.mean(axis=-1)


def outputs_of(model, x):
    return {name: to_numpy(value) for name, value in model(x, training=False).items()}


def test_the_binary_divergence_and_its_gradient():
    random = np.random.default_rng(0)
    teacher, student = random.normal(scale=3, size=(2, 6, 4)).astype("float32")
    found = binary_soft_target_divergence(teacher, student, temperature=2.5)
    np.testing.assert_allclose(
        to_numpy(found), binary_divergence(teacher, student, 2.5), rtol=1e-4, atol=1e-6
    )
    _, gradients = value_and_gradients(
        lambda t, s: keras.ops.sum(
            binary_soft_target_divergence(t, s, temperature=2.5)
        ),
        [teacher, student],
    )
    expected = finite_differences(
        lambda t, s: binary_divergence(t, s, 2.5).sum(), [teacher, student]
    )
    np.testing.assert_allclose(gradients[0], expected[0], atol=1e-4)
    np.testing.assert_allclose(gradients[1], expected[1], atol=1e-4)


def test_the_binary_divergence_of_large_logits():
    teacher = np.array([[1e4, -1e4, 80.0]], "float32")
    found = binary_soft_target_divergence(teacher, -teacher)
    # Where p is 1, log(p / q) = −log σ(−z), which is z.
    assert float(found[0]) == pytest.approx((1e4 + 1e4 + 80) / 3, rel=1e-5)


@pytest.mark.parametrize(
    ("activation", "units", "task", "expected"),
    [
        ("softmax", 4, None, "multiclass"),
        pytest.param(*(None, 4, None, "multiclass"), marks=pytest.mark.long),
        ("sigmoid", 4, None, "multilabel"),
        pytest.param(*(None, 4, "multilabel", "multilabel"), marks=pytest.mark.long),
        ("sigmoid", 1, None, "binary"),
        pytest.param(*(None, 1, "binary", "binary"), marks=pytest.mark.long),
        (None, 1, None, "regression"),
        pytest.param(*(None, 3, "regression", "regression"), marks=pytest.mark.long),
        pytest.param(
            *("softplus", 2, "regression", "regression"), marks=pytest.mark.long
        ),
        pytest.param(
            *("sigmoid", 2, "regression", "regression"), marks=pytest.mark.long
        ),
    ],
)
def test_the_end_says_what_the_base_answers(
    batch, tmp_path, activation, units, task, expected
):
    x, _ = batch
    base = small_base(activation=activation, classes=units)
    model = ksd.SelfDistiller(base, TAPS, "byot", task=task)
    assert model.task == expected
    random = np.random.default_rng(1)
    y, loss = {
        "multiclass": (
            np.arange(16) % units,
            keras.losses.SparseCategoricalCrossentropy(from_logits=not activation),
        ),
        "multilabel": (
            random.integers(0, 2, (16, units)),
            keras.losses.BinaryCrossentropy(from_logits=not activation),
        ),
        "binary": (
            random.integers(0, 2, (16, 1)),
            keras.losses.BinaryCrossentropy(from_logits=not activation),
        ),
        "regression": (random.uniform(size=(16, units)).astype("float32"), "mse"),
    }[expected]
    model.compile(keras.optimizers.SGD(0.05), loss)
    losses = model.fit(x, y, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    outputs = outputs_of(model, x)
    np.testing.assert_allclose(outputs["final"], to_numpy(base(x)), atol=1e-6)
    if activation == "sigmoid":
        assert all(((value > 0) & (value < 1)).all() for value in outputs.values())
    if activation == "softplus":
        assert all((value > 0).all() for value in outputs.values())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.task == expected
    np.testing.assert_allclose(outputs_of(loaded, x)["exit_1"], outputs["exit_1"])


def soft_target_log(model, x, y):
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model.test_on_batch(x, y, return_dict=True)["soft_target_loss"]


@pytest.mark.parametrize("activation", ["sigmoid", None])
@pytest.mark.parametrize("units", [1, 3])
def test_soft_targets_of_labels(batch, activation, units):
    x, _ = batch
    task = "binary" if units == 1 else "multilabel"
    base = small_base(activation=activation, classes=units)
    recipe = ksd.recipes.BYOT(alpha=0.4, temperature=2.0)
    model = ksd.SelfDistiller(base, TAPS, recipe, task=task)
    outputs = outputs_of(model, x)
    logits = {
        name: np.log(value / (1 - value)) if activation else value
        for name, value in outputs.items()
    }
    expected = sum(
        0.4 * binary_divergence(logits["final"], logits[name], 2.0).mean()
        for name in ("exit_1", "exit_2")
    )
    found = soft_target_log(model, x, np.zeros((16, units), "float32"))
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("teacher", ["deepest", "ensemble"])
def test_soft_targets_of_numbers(batch, teacher):
    x, _ = batch
    base = small_base(activation=None, classes=3)
    recipe = ksd.recipes.BYOT(alpha=0.4, teacher=teacher, hint_weight=0.0)
    model = ksd.SelfDistiller(base, TAPS, recipe, task="regression")
    outputs = outputs_of(model, x)
    shown, students = outputs["final"], ("exit_1", "exit_2")
    if teacher == "ensemble":
        shown = np.mean(list(outputs.values()), axis=0)
    expected = sum(0.4 * np.square(shown - outputs[name]).mean() for name in students)
    found = soft_target_log(model, x, np.zeros((16, 3), "float32"))
    assert found == pytest.approx(expected, rel=1e-4)


def test_an_external_teacher_of_numbers(batch):
    x, _ = batch
    keras.utils.set_random_seed(5)
    teacher = small_base(activation="softplus", classes=2, name="teacher")
    base = small_base(activation="softplus", classes=2)
    recipe = ksd.recipes.DeepSupervision(external_weight=0.5)
    model = ksd.SelfDistiller(base, TAPS, recipe, task="regression", teacher=teacher)
    shown, outputs = to_numpy(teacher(x)), outputs_of(model, x)
    expected = 0.5 * sum(np.square(shown - value).mean() for value in outputs.values())
    model.compile("sgd", "mse")
    logs = model.test_on_batch(x, np.zeros((16, 2), "float32"), return_dict=True)
    assert logs["external_loss"] == pytest.approx(expected, rel=1e-4)


def unet(activation="softmax", end="conv"):
    inputs = keras.Input((16, 16, 3), name="image")
    left = layers.Conv2D(4, 3, padding="same", activation="relu", name="left")(inputs)
    down = layers.Conv2D(8, 3, 2, padding="same", activation="relu", name="down")(left)
    deep = layers.Conv2D(8, 3, 2, padding="same", activation="relu", name="deep")(down)
    up = layers.Conv2DTranspose(8, 3, 2, padding="same", name="up")(deep)
    up = layers.Concatenate(name="joined")([up, down])
    if end == "transposed":
        up = layers.Conv2D(6, 3, padding="same", activation="relu", name="last")(up)
        outputs = layers.Conv2DTranspose(
            3, 3, 2, padding="same", activation=activation, name="pixels"
        )(up)
    else:
        up = layers.Conv2DTranspose(6, 3, 2, padding="same", name="up_again")(up)
        up = layers.Concatenate(name="all")([up, left])
        up = layers.Conv2D(6, 3, padding="same", activation="relu", name="last")(up)
        outputs = layers.Conv2D(3, 1, activation=activation, name="pixels")(up)
    return keras.Model(inputs, outputs, name="unet")


@long_on("tensorflow")
@pytest.mark.parametrize("end", ["conv", "transposed"])
@pytest.mark.parametrize("activation", ["softmax", None])
def test_predictions_at_each_pixel(tmp_path, end, activation):
    random = np.random.default_rng(0)
    x = random.normal(size=(6, 16, 16, 3)).astype("float32")
    y = (x.argmax(axis=-1)).astype("int32")
    base = unet(activation, end)
    task = None if activation else "multiclass"
    model = ksd.SelfDistiller(base, ["down", "deep", "joined"], "byot", task=task)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=activation is None)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    history = model.fit(x, y, epochs=12, verbose=0).history
    assert history["label_loss"][-1] < history["label_loss"][0]
    assert {"exit_1_accuracy", "ensemble_accuracy"} <= set(history)
    outputs = outputs_of(model, x)
    assert all(value.shape == (6, 16, 16, 3) for value in outputs.values())
    np.testing.assert_allclose(outputs["final"], to_numpy(base(x)), atol=1e-6)
    for name in model.exit_names:
        part = model.exit_model(name)
        np.testing.assert_allclose(to_numpy(part(x)), outputs[name], atol=1e-5)
    model.save(tmp_path / "unet.keras")
    loaded = keras.saving.load_model(tmp_path / "unet.keras")
    np.testing.assert_allclose(outputs_of(loaded, x)["exit_2"], outputs["exit_2"])


def test_the_divergence_of_pixels_is_a_mean_over_them():
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype("float32")
    recipe = ksd.recipes.BYOT(alpha=1.0, temperature=1.0, hint_weight=0.0)
    model = ksd.SelfDistiller(unet(), ["deep"], recipe)
    outputs = outputs_of(model, x)
    p, q = outputs["final"], outputs["exit_1"]
    expected = (p * np.log(p / q)).sum(axis=-1).mean()
    model.compile("sgd", "sparse_categorical_crossentropy")
    logs = model.test_on_batch(x, np.zeros((2, 16, 16), "int32"), return_dict=True)
    assert logs["soft_target_loss"] == pytest.approx(expected, rel=1e-3)


def test_sections_of_a_unet_chain_to_the_whole():
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype("float32")
    model = ksd.SelfDistiller(unet(), ["down", "deep"], "byot")
    outputs, alive = outputs_of(model, x), [x]
    for section in cut_sections(model.exit_graph):
        found = section(alive)
        alive = found["alive"]
        np.testing.assert_allclose(
            to_numpy(found["output"]), outputs[section.exit_name], atol=1e-6
        )


def test_labels_of_time_steps():
    inputs = keras.Input((None, 5), name="sound")
    x = layers.Conv1D(6, 3, padding="same", activation="relu", name="first")(inputs)
    x = layers.LSTM(7, return_sequences=True, name="second")(x)
    base = keras.Model(inputs, layers.Dense(4, activation="softmax", name="step")(x))
    model = ksd.SelfDistiller(base, ["first"], "byot")
    model.compile("adam", "sparse_categorical_crossentropy")
    data = np.random.default_rng(0).normal(size=(3, 11, 5)).astype("float32")
    model.fit(data, np.zeros((3, 11), "int32"), verbose=0)
    for value in outputs_of(model, data[:, :4]).values():
        assert value.shape == (3, 4, 4)


def test_tables_and_sequences_get_heads_that_fit():
    table = keras.Sequential(
        [
            keras.Input((9,)),
            layers.Dense(8, "relu", name="a"),
            layers.Dense(6, "relu", name="b"),
            layers.Dense(3, "softmax"),
        ]
    )
    sound = keras.Sequential(
        [
            keras.Input((32, 2)),
            layers.Conv1D(8, 5, strides=2, activation="relu", name="a"),
            layers.Conv1D(8, 5, strides=2, activation="relu", name="b"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(3, "softmax"),
        ]
    )
    recurrent = keras.Sequential(
        [
            keras.Input((None, 2)),
            layers.GRU(8, return_sequences=True, name="a"),
            layers.GRU(6, name="b"),
            layers.Dense(3, "softmax"),
        ]
    )
    for base in (table, sound, recurrent):
        model = ksd.SelfDistiller(base, ["a"], "byot")
        assert isinstance(model.exit_graph.head, ksd.heads.Linear)
        model.compile("sgd", "sparse_categorical_crossentropy")
        shape = [size or 7 for size in base.input_shape[1:]]
        x = np.random.default_rng(0).normal(size=(8, *shape)).astype("float32")
        logs = model.fit(x, np.arange(8) % 3, verbose=0).history
        assert np.isfinite(logs["loss"]).all()


def test_pooling_leaves_masked_steps_out():
    inputs = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.Embedding(20, 8, mask_zero=True, name="embedding")(inputs)
    x = layers.LSTM(8, return_sequences=True, name="first")(x)
    x = layers.LSTM(8, name="second")(x)
    base = keras.Model(inputs, layers.Dense(3, "softmax", name="p")(x))
    model = ksd.SelfDistiller(base, ["first"], "byot")
    tokens = np.array([[3, 7, 2]], "int32")
    padded = np.array([[3, 7, 2, 0, 0, 0]], "int32")
    short, long = outputs_of(model, tokens), outputs_of(model, padded)
    for name, value in short.items():
        np.testing.assert_allclose(long[name], value, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("end", ["dense", "activation"])
def test_no_metric_reads_labels_of_masked_steps(end):
    inputs = keras.Input((6,), dtype="int32", name="tokens")
    x = layers.Embedding(9, 4, mask_zero=True, name="embedding")(inputs)
    x = layers.Dense(4, "relu", name="hidden")(layers.Dense(4, "tanh", name="tap")(x))
    x = layers.Dense(3, "softmax" if end == "dense" else None, name="scores")(x)
    if end == "activation":
        x = layers.Activation("softmax", name="classes")(x)
    model = ksd.SelfDistiller(keras.Model(inputs, x), ["tap"], "byot")
    loss = "sparse_categorical_crossentropy"
    model.compile("sgd", loss, metrics=["accuracy"], run_eagerly=True)
    tokens = np.array([[1, 2, 3, 4, 0, 0], [5, 6, 7, 0, 0, 0]], "int32")
    labels = np.array([[0, 1, 2, 0, 1, 1], [2, 1, 0, 2, 2, 2]])
    others = np.where(tokens == 0, (labels + 1) % 3, labels)
    expected = model.evaluate(tokens, labels, verbose=0, return_dict=True)
    found = model.evaluate(tokens, others, verbose=0, return_dict=True)
    assert found == pytest.approx(expected)
    outputs = model.predict(tokens, verbose=0)
    steps = tokens != 0
    for name, prefix in (("exit_1", "exit_1_"), ("final", "")):
        right = outputs[name].argmax(-1)[steps] == labels[steps]
        assert found[f"{prefix}accuracy"] == pytest.approx(right.mean())


def test_early_exit_is_for_classes(batch):
    model = ksd.SelfDistiller(small_base("sigmoid"), TAPS, "byot")
    with pytest.raises(ValueError, match=r"task 'multilabel'.*exit_model"):
        ksd.EarlyExit(model)


@pytest.mark.parametrize(
    ("base", "task", "message"),
    [
        (small_base, "ranking", "Unknown task.*'ranking'"),
        (small_base, "regresion", "Did you mean 'regression'"),
        (small_base, "multilabel", "does not fit.*softmax"),
        (lambda: small_base("sigmoid"), "binary", "does not fit.*'multilabel'"),
        (lambda: unet(None), None, r"task='multiclass'.*classes=10"),
        (lambda: small_base("tanh"), None, "softmax, sigmoid or linear"),
    ],
)
def test_a_task_that_does_not_fit(base, task, message):
    with pytest.raises(ValueError, match=message):
        ksd.SelfDistiller(base(), 1, "byot", task=task)


@pytest.mark.parametrize(
    ("activation", "shape"),
    [
        ("softmax", (16, 3)),
        ("sigmoid", (16,)),
        ("sigmoid", (16, 3)),
        ("softmax", (16, 4, 1)),
    ],
)
def test_labels_of_another_shape(batch, activation, shape):
    x, _ = batch
    model = ksd.SelfDistiller(small_base(activation), TAPS, "byot")
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"Received labels of shape"):
        model.fit(x, np.zeros(shape), verbose=0)


def each_step(units, activation, embed=False):
    """Return a wrapper that predicts at each of four steps."""
    inputs = keras.Input((4,) if embed else (4, 2))
    x = inputs
    if embed:
        x = layers.Embedding(9, 3, mask_zero=True)(x)
    x = layers.Dense(5, "relu", name="tap")(x)
    x = layers.Dense(5, "relu")(x)
    base = keras.Model(inputs, layers.Dense(units, activation)(x))
    return ksd.SelfDistiller(base, ["tap"], "deep_supervision")


@pytest.mark.once
@pytest.mark.parametrize("case", ["weights", "weights in a column", "mask"])
def test_flat_labels_of_one_unit_take_no_weight_of_a_position(case):
    model = each_step(1, "sigmoid", embed=case == "mask")
    model.compile("sgd", "binary_crossentropy", run_eagerly=True)
    x = np.ones((4, 4) if case == "mask" else (4, 4, 2))  # As many samples as steps.
    weight = {"weights": np.ones((4, 4)), "weights in a column": np.ones((4, 4, 1))}
    data = (x, np.ones((4, 4)), weight.get(case))
    before = model.get_weights()
    for use in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match=r"Received.*Expected: .*y\[\.\.\., None"):
            use(data[0], data[1], sample_weight=data[2], verbose=0)
    for value, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, expected)
    model.evaluate(data[0], data[1][..., None], sample_weight=data[2], verbose=0)


@pytest.mark.once
def test_class_weights_are_refused_where_keras_would_misread_them():
    model = each_step(3, "softmax")
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    x, y, weights = np.ones((4, 4, 2)), np.ones((4, 4), "int32"), {0: 1.0, 1: 2.0}
    with pytest.raises(ValueError, match=r"Received: class_weight=.*sample_weight"):
        model.fit(x, y, class_weight=weights, verbose=0)
    with pytest.raises(ValueError, match=r"Received: class_weight=.*sample_weight"):
        model.fit(x, y, 2, 1, 0, None, 0.0, None, True, weights)
    once, *_ = model.evaluate(x, y, verbose=0)
    weighted, *_ = model.evaluate(x, y, sample_weight=np.take([1.0, 2.0], y), verbose=0)
    assert weighted == pytest.approx(2 * once, rel=1e-5)


@pytest.mark.once
@pytest.mark.parametrize("task", [None, "multiclass", "binary"])
def test_a_softmax_over_one_unit_is_constant(task):
    inputs = keras.Input((4,))
    x = layers.Dense(4, name="tap")(inputs)
    logits = layers.Dense(1)(layers.Dense(4)(x))
    base = keras.Model(inputs, layers.Activation("softmax")(logits))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras', of the same.
        with pytest.raises(ValueError, match=r"always 1.*Received.*'sigmoid'"):
            ksd.SelfDistiller(base, ["tap"], "byot", task=task)
