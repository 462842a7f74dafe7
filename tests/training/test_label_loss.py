"""What the label loss reads: true logits, labels of any dtype, the right task."""

import functools
import inspect

import keras
import numpy as np
import pytest
from keras import layers, losses, ops

import keras_selfdistill as ksd
from keras_selfdistill.graph.task import Task
from keras_selfdistill.losses import label_loss
from keras_selfdistill.losses.label_loss import as_loss, on_logits
from keras_selfdistill.losses.labels import all_exist
from keras_selfdistill.losses.sample_weights import weights_at_positions
from tests.conftest import marks_long_on, to_numpy, value_and_gradients

pytestmark = marks_long_on("jax")  # XLA compiles a network for each.
RANDOM = np.random.default_rng(5)
SOFTMAX, SIGMOID = Task("multiclass", 3, "softmax"), Task("multilabel", 3, "sigmoid")
BINARY = Task("binary", 1, "sigmoid")
# Far apart, so that a probability is below what Keras clips at, and moderate.
LOGITS = np.array([[-40.0, 60.0, 0.0], [0.5, -1.0, 2.0]], "float32")
INDICES = np.array([0, 1])
ONE_HOT = np.eye(3, dtype="float32")[INDICES]
LABELS = np.array([[1, 0, 1], [0, 1, 1]], "float32")


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def multiclass(targets):
    """The mean crossentropy and its gradient, from the formula, in float64."""
    logits = LOGITS.astype("float64")
    value = -(targets * log_softmax(logits)).sum(-1).mean()
    return value, (np.exp(log_softmax(logits)) - targets) / len(logits)


def binary(targets, logits=LOGITS):
    """Likewise of yes or no, a mean over units."""
    logits = logits.astype("float64")
    value = np.logaddexp(0, np.where(targets, -logits, logits))
    hot = np.where(targets == 1, 1.0, targets)
    value = hot * np.logaddexp(0, -logits) + (1 - hot) * np.logaddexp(0, logits)
    return value.mean(), (1 / (1 + np.exp(-logits)) - targets) / logits.size


def focal(targets, gamma=1.5):
    """Likewise of the categorical focal crossentropy."""
    log_p = log_softmax(LOGITS.astype("float64"))
    return (-((1 - np.exp(log_p)) ** gamma) * targets * log_p).sum(-1).mean()


def binary_focal(targets, gamma=1.5, alpha=0.6):
    """Likewise of the binary one, with balanced classes."""
    logits = LOGITS.astype("float64")
    log_t = -np.logaddexp(0, np.where(targets == 1, -logits, logits))
    balance = np.where(targets == 1, alpha, 1 - alpha)
    return (-balance * (1 - np.exp(log_t)) ** gamma * log_t).mean()


FOCAL = {
    "categorical": (
        losses.CategoricalFocalCrossentropy(alpha=1.0, gamma=1.5),
        SOFTMAX,
        ONE_HOT,
        focal,
    ),
    "binary": (
        losses.BinaryFocalCrossentropy(True, alpha=0.6, gamma=1.5),
        SIGMOID,
        LABELS,
        binary_focal,
    ),
}


@pytest.mark.parametrize("kind", FOCAL)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_focal_loss_is_that_of_true_logits(kind, smoothing):
    given, task, labels, formula = FOCAL[kind]
    loss = on_logits(as_loss(given, task), task)
    value, (gradient,) = value_and_gradients(lambda z: loss(labels, z), [LOGITS])
    assert value == pytest.approx(formula(labels), rel=1e-5)
    assert np.isfinite(gradient).all()
    assert abs(gradient[0, 0]) > 0.05  # Keras' own has none.
    # Where nothing is clipped, as Keras.
    near = LOGITS / 20
    config = {**given.get_config(), "label_smoothing": smoothing, "from_logits": True}
    keras_own = type(given).from_config(config)
    config["from_logits"] = False
    ours = on_logits(type(given).from_config(config), task)
    assert float(ours(labels, near)) == pytest.approx(
        float(keras_own(labels, near)), rel=1e-5
    )


def smoothed(targets, by=0.3):
    return targets * (1 - by) + by / 3


CASES = {
    "string": ("sparse_categorical_crossentropy", SOFTMAX, INDICES, ONE_HOT),
    "column": ("sparse_categorical_crossentropy", SOFTMAX, INDICES[:, None], ONE_HOT),
    "one-hot": ("categorical_crossentropy", SOFTMAX, ONE_HOT, ONE_HOT),
    "by shape": ("crossentropy", SOFTMAX, INDICES, ONE_HOT),
    "by shape, rows": ("CE", SOFTMAX, ONE_HOT, ONE_HOT),
    "function": (losses.categorical_crossentropy, SOFTMAX, ONE_HOT, ONE_HOT),
    "partial": (
        functools.partial(losses.categorical_crossentropy, label_smoothing=0.3),
        SOFTMAX,
        ONE_HOT,
        smoothed(ONE_HOT),
    ),
    "object": (
        losses.CategoricalCrossentropy(label_smoothing=0.3),
        SOFTMAX,
        ONE_HOT,
        smoothed(ONE_HOT),
    ),
    "binary string": ("bce", SIGMOID, LABELS, LABELS),
    "binary object": (
        losses.BinaryCrossentropy(label_smoothing=0.2),
        SIGMOID,
        LABELS,
        LABELS * 0.8 + 0.1,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_label_loss_is_that_of_true_logits(case):
    identifier, task, labels, targets = CASES[case]
    loss = on_logits(as_loss(identifier, task), task)
    value, (gradient,) = value_and_gradients(lambda z: loss(labels, z), [LOGITS])
    expected = (multiclass if task is SOFTMAX else binary)(targets)
    assert value == pytest.approx(expected[0], rel=1e-5)
    np.testing.assert_allclose(gradient, expected[1], atol=1e-6)


def test_one_unit_is_binary_whatever_the_labels_shape():
    logits = LOGITS[:1].T
    for labels in (np.array([1, 0, 1]), np.array([[1], [0], [1]])):
        for name in ("crossentropy", "ce", "binary_crossentropy"):
            loss = as_loss(name, BINARY)
            assert all_exist(labels, logits, loss) is True
            value = float(on_logits(loss, BINARY)(labels, logits))
            assert value == pytest.approx(binary(labels.reshape(-1, 1), logits)[0])
            value = float(loss(labels, ops.sigmoid(logits / 40)))
            expected = binary(labels.reshape(-1, 1), logits / 40)[0]
            assert value == pytest.approx(expected, rel=1e-5)


class Masked(losses.SparseCategoricalCrossentropy):
    """A user's own: labels below 0 are padding."""

    def call(self, y_true, y_pred):
        return super().call(ops.maximum(y_true, 0), y_pred)


def ce(y_true, y_pred):
    return ops.sum(ops.abs(y_true - y_pred), axis=-1)


def sparse_categorical_crossentropy(y_true, y_pred):
    return ops.sum(ops.abs(y_true - y_pred), axis=-1)


@pytest.mark.parametrize(
    ("loss", "task"),
    [
        (ce, SOFTMAX),
        (sparse_categorical_crossentropy, SOFTMAX),
        (Masked(), SOFTMAX),
        (losses.MeanSquaredError(name="ce"), SOFTMAX),
        (losses.SparseCategoricalCrossentropy(from_logits=True), SOFTMAX),
        (
            losses.CategoricalCrossentropy(axis=1),
            Task("multiclass", 3, "softmax", (4,)),
        ),
        ("binary_crossentropy", SOFTMAX),
        ("categorical_crossentropy", SIGMOID),
        ("crossentropy", SIGMOID),  # Keras takes that of classes.
        ("categorical_crossentropy", Task("multiclass", 3, "linear")),
    ],
)
def test_losses_that_read_outputs(loss, task):
    assert on_logits(as_loss(loss, task), task) is None


@pytest.mark.parametrize("positions", [(), (4,), (4, 5)])
def test_the_last_axis_may_be_counted_from_the_front(positions):
    task = Task("multiclass", 3, "softmax", positions)
    shape = (2, *positions, 3)
    logits = 60 * np.random.default_rng(0).normal(size=shape).astype("float32")
    labels = np.eye(3, dtype="float32")[np.zeros(shape[:-1], int)]
    loss = losses.CategoricalCrossentropy(axis=len(shape) - 1, reduction=None)
    found = to_numpy(on_logits(loss, task)(labels, logits))
    away = logits - logits.max(-1, keepdims=True)
    expected = np.log(np.exp(away.astype("float64")).sum(-1)) - away[..., 0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert found.max() > 20  # Clipped, it would be at most 16.1.


@pytest.mark.parametrize("loss", [ce, sparse_categorical_crossentropy, Masked()])
def test_a_users_own_loss_is_not_taken_for_one_of_keras_of_that_name(loss):
    assert all_exist(np.array([-1, 7]), LOGITS, as_loss(loss, SOFTMAX)) is True


def test_the_users_loss_object_stays_as_it_is():
    given = losses.SparseCategoricalCrossentropy(
        ignore_class=1, reduction="sum", name="mine", dtype="float16"
    )
    before = given.get_config()
    found = on_logits(given, SOFTMAX)
    assert given.get_config() == before
    assert found.get_config() == before
    assert (found.dtype, type(found)) == ("float16", type(given))
    assert float(found(INDICES, LOGITS)) == pytest.approx(100.0)


def base_of(units, activation, width=4, positions=()):
    inputs = keras.Input((*positions, 3))
    x = layers.Dense(width, "relu", name="a")(inputs)
    x = layers.Dense(width, "relu", name="b")(x)
    return keras.Model(inputs, layers.Dense(units, activation, name="end")(x))


@pytest.mark.parametrize(
    ("units", "activation", "loss", "labels"),
    [
        (3, "softmax", "crossentropy", np.zeros(4, "int32")),
        (1, "sigmoid", "crossentropy", np.zeros(4, "int32")),
        (3, "sigmoid", "binary_crossentropy", np.zeros((4, 3), "float32")),
    ],
)
def test_a_base_far_off_learns(units, activation, loss, labels):
    """Its probability of the label is 1e-39 and less: clipped, the gradient is 0."""
    base = base_of(units, activation)
    x = np.ones((4, 3), "float32")
    bias = [-90.0, 0.0, 0.0] if activation == "softmax" else [90.0] * units
    base.get_layer("end").set_weights([np.zeros((4, units)), np.array(bias)])
    model = ksd.SelfDistiller(base, ["a"], "deep_supervision")
    model.compile(keras.optimizers.SGD(1.0), loss, run_eagerly=True)
    exits = model.predict(x, verbose=0)["exit_1"]
    shallow = -np.log(exits[:, 0] if activation == "softmax" else 1 - exits).mean()
    own = 90 + np.log(2) if activation == "softmax" else 90
    logs = model.evaluate(x, labels, verbose=0, return_dict=True)
    assert logs["label_loss"] == pytest.approx(own + shallow, rel=1e-5)
    before = base.get_layer("end").get_weights()[1]
    model.train_on_batch(x, labels)
    moved = base.get_layer("end").get_weights()[1] - before
    step = {"softmax": [1.0, -0.5, -0.5], "sigmoid": [-1.0 / units] * units}[activation]
    np.testing.assert_allclose(moved, step, rtol=1e-4)


def masked_base():
    inputs = keras.Input((4,), dtype="int32")
    x = layers.Embedding(5, 3, mask_zero=True)(inputs)
    x = layers.Dense(4, "relu", name="a")(x)
    x = layers.Dense(4, "relu", name="b")(x)
    return keras.Model(inputs, layers.Dense(3, "softmax", name="end")(x))


def test_the_loss_of_logits_leaves_padding_out():
    x = np.array([[1, 2, 0, 0], [3, 1, 4, 0]])
    base = masked_base()
    model = ksd.SelfDistiller(base, ["a"], "deep_supervision")
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    labels = RANDOM.integers(0, 3, (2, 4))
    found = model.test_on_batch(x, labels, return_dict=True)["label_loss"]
    outputs = model.predict(x, verbose=0)
    losses_of = [
        -np.log(np.take_along_axis(outputs[name], labels[..., None], -1))[..., 0]
        for name in model.exit_names
    ]
    expected = sum(each[x > 0].mean() for each in losses_of)
    assert found == pytest.approx(expected, rel=1e-5)


def test_metrics_of_the_ensemble_leave_padding_out():
    x = np.array([[1, 2, 0, 0], [3, 1, 4, 0]])
    labels = RANDOM.integers(0, 3, (2, 4))
    others = np.where(x > 0, labels, (labels + 1) % 3)
    model = ksd.SelfDistiller(masked_base(), ["a"], "byot")
    model.compile("sgd", "crossentropy", metrics=["accuracy"], run_eagerly=True)
    found = model.evaluate(x, labels, verbose=0, return_dict=True)
    assert model.evaluate(x, others, verbose=0, return_dict=True) == found
    chosen = model.ensemble_model().predict(x, verbose=0).argmax(-1)
    accuracy = (chosen == labels)[x > 0].mean()
    assert found["ensemble_accuracy"] == pytest.approx(accuracy)


@pytest.mark.once
def test_every_function_of_keras_that_reads_logits_is_given_them():
    reads = {
        each
        for each in vars(losses).values()
        if inspect.isfunction(each)
        and "from_logits" in inspect.signature(each).parameters
    }
    assert len(reads) >= 5
    assert reads == {
        each for kind in label_loss._READS_LOGITS.values() for each in kind
    }


DTYPES = {
    "uint8": 256,
    "int8": 128,
    "uint16": 40_000,
    "int16": 40_000,
    "uint32": 300,
    "int32": 300,
    "int64": 300,
    "uint64": 300,
    "float16": 1000,
    "bfloat16": 1000,
    "bool": 2,
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_labels_of_any_dtype(dtype):
    if dtype == "uint64" and keras.backend.backend() == "torch":
        pytest.skip("Keras on PyTorch has no tensors of it")
    classes = DTYPES[dtype]
    limit = {"int8": 127, "int16": 32_767, "uint8": 255, "bool": 1}.get(dtype, 255)
    numbers = np.array([0, 1, min(limit, classes - 1)])
    labels = ops.convert_to_tensor(
        numbers.astype("float32" if dtype == "bfloat16" else dtype)
    )
    labels = ops.cast(labels, dtype) if dtype == "bfloat16" else labels
    outputs = RANDOM.normal(size=(3, classes)).astype("float32")
    loss = as_loss("crossentropy", SOFTMAX)
    assert bool(all_exist(labels, outputs, loss))
    too_few = ops.zeros((3, min(limit, classes - 1)))
    if dtype not in ("bool", "bfloat16"):
        assert not bool(all_exist(labels, too_few, loss))
    value = float(
        on_logits(loss, Task("multiclass", classes, "softmax"))(labels, outputs)
    )
    exact = outputs.astype("float64")
    chosen = exact[np.arange(3), numbers]
    by_hand = (np.log(np.exp(exact).sum(axis=-1)) - chosen).mean()
    assert value == pytest.approx(by_hand, rel=1e-5)


def test_an_ignored_class_is_compared_as_a_number():
    loss = losses.SparseCategoricalCrossentropy(ignore_class=-1)
    outputs = ops.zeros((2, 200))
    assert not bool(all_exist(np.array([3, 255], "uint8"), outputs, loss))
    assert bool(all_exist(np.array([3, -1], "int8"), outputs, loss))
    partial = functools.partial(
        losses.sparse_categorical_crossentropy, ignore_class=255
    )
    loss = as_loss(partial, SOFTMAX)
    assert bool(all_exist(np.array([3, 255], "uint8"), outputs, loss))


@pytest.mark.parametrize("kind", ["arrays", "batches"])
@pytest.mark.parametrize("positions", [(), (2,)])
def test_training_with_all_classes_of_a_byte(kind, positions):
    base = base_of(256, "softmax", positions=positions)
    model = ksd.SelfDistiller(base, ["a"], "deep_supervision")
    loss = losses.SparseCategoricalCrossentropy(ignore_class=255)
    model.compile("sgd", loss, metrics=["accuracy"], run_eagerly=True)
    x = RANDOM.normal(size=(4, *positions, 3)).astype("float32")
    y = np.broadcast_to(np.array([0, 128, 254, 255], "uint8")[:, None], (4, 2))
    y = y if positions else y[:, 0]
    by_hand = 0.0
    for prediction in model.predict(x, verbose=0).values():
        chosen = np.take_along_axis(prediction, y[..., None].astype(int), -1)[..., 0]
        by_hand -= np.log(chosen.astype("float64"))[y != 255].mean()
    data = [(x, y)] if kind == "batches" else None
    fitted = model.fit(*((_Batches(data),) if data else (x, y)), verbose=0)
    assert fitted.history["nonfinite_steps"] == [0]
    assert fitted.history["label_loss"] == pytest.approx([by_hand], rel=1e-5)


class _Batches(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


@pytest.mark.parametrize("units", [1, 2])
def test_boolean_labels(units):
    base = base_of(units, "sigmoid" if units == 1 else "softmax")
    model = ksd.SelfDistiller(base, ["a"], "deep_supervision")
    model.compile("sgd", "crossentropy", metrics=["accuracy"])
    x, y = RANDOM.normal(size=(8, 3)), np.arange(8) % 2
    numbers = model.evaluate(x, y, verbose=0, return_dict=True)
    model.compile("sgd", "crossentropy", metrics=["accuracy"])
    assert model.evaluate(x, y > 0, verbose=0, return_dict=True) == numbers
    assert np.isfinite(model.fit(x, y > 0, verbose=0).history["loss"]).all()


@pytest.mark.once
@pytest.mark.parametrize(
    ("units", "loss", "task"),
    [
        (3, "mse", "regression"),
        (3, losses.Huber(), "regression"),
        (3, losses.BinaryCrossentropy(from_logits=True), "multilabel"),
        (1, losses.BinaryCrossentropy(from_logits=True), "binary"),
        (1, "hinge", "binary"),
        (1, "crossentropy", "binary"),
    ],
)
def test_a_loss_that_contradicts_a_linear_end(units, loss, task):
    base = base_of(units, None)
    model = ksd.SelfDistiller(base, ["a"], "byot")
    for wrapper in (model, ksd.SelfDistiller.from_config(model.get_config())):
        with pytest.raises(ValueError, match=f"Expected: .*task='{task}'"):
            wrapper.compile("sgd", loss)
        assert not wrapper.compiled
    for meant in (task, model.task):  # Said aloud, either is taken.
        ksd.SelfDistiller(base, ["a"], "byot", task=meant).compile("sgd", loss)


@pytest.mark.once
@pytest.mark.parametrize(
    ("units", "activation", "loss"),
    [
        (3, None, losses.CategoricalCrossentropy(from_logits=True)),
        (3, None, ce),
        (1, None, "mse"),
        (1, None, "poisson"),
        (3, "sigmoid", "mse"),
        (3, "softmax", "mse"),
        (3, "softmax", "binary_crossentropy"),
        (3, "sigmoid", "categorical_crossentropy"),
    ],
)
def test_losses_that_an_end_allows(units, activation, loss):
    ksd.SelfDistiller(base_of(units, activation), ["a"], "byot").compile("sgd", loss)


@pytest.mark.once
@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        ("categorical_focal_crossentropy", (4, 1)),
        ("categorical_hinge", (4,)),
        (losses.CategoricalGeneralizedCrossEntropy(), (4, 3)),
    ],
)
def test_labels_that_a_loss_would_stretch(loss, shape):
    model = ksd.SelfDistiller(base_of(3, "softmax"), ["a"], "deep_supervision")
    model.compile("sgd", loss, run_eagerly=True)
    x, y = np.ones((4, 3)), np.zeros(shape)
    with pytest.raises(ValueError, match="Labels do not fit the loss"):
        model.fit(x, y, verbose=0)
    with pytest.raises(ValueError, match="Labels do not fit the loss"):
        model.fit(_Batches([(x, y)]), verbose=0)


def test_what_the_external_teacher_adds_to_its_own_loss_is_not_logged():
    def network(regularizer=None):
        return keras.Sequential(
            [
                keras.Input((3,)),
                layers.Dense(4, "relu", name="a", activity_regularizer=regularizer),
                layers.Dense(4, "relu", name="b"),
                layers.Dense(3, "softmax"),
            ]
        )

    base, teacher = network("l2"), network(keras.regularizers.L2(100.0))
    model = ksd.SelfDistiller(base, ["a"], "deep_supervision", teacher=teacher)
    x, y = RANDOM.normal(size=(4, 3)), np.zeros(4, "int32")
    hidden = to_numpy(base.layers[0](x))
    for eager in (True, False):
        model.compile(keras.optimizers.SGD(0.0), "crossentropy", run_eagerly=eager)
        for logs in (
            model.evaluate(x, y, verbose=0, return_dict=True),
            {k: v[0] for k, v in model.fit(x, y, verbose=0).history.items()},
        ):
            own = 0.01 * (hidden**2).sum() / len(x)
            expected = logs["label_loss"] + logs["external_loss"] + own
            assert logs["loss"] == pytest.approx(expected, rel=1e-5)


def enlarged(kind):
    """A base whose output has twice the positions of its last feature."""
    if kind == "1d":
        inputs = keras.Input((8, 2))
        x = layers.Conv1D(4, 3, strides=2, padding="same", name="a")(inputs)
        x = layers.Conv1D(4, 3, padding="same", activation="relu", name="b")(x)
        x = layers.UpSampling1D()(layers.Dense(3, name="end")(x))
    else:
        inputs = keras.Input((8, 4, 2))
        x = layers.Conv2D(4, 3, strides=2, padding="same", name="a")(inputs)
        x = layers.Conv2D(4, 3, padding="same", activation="relu", name="b")(x)
        x = layers.UpSampling2D()(layers.Conv2D(3, 1, name="end")(x))
    return keras.Model(inputs, layers.Softmax()(x))


@pytest.mark.parametrize("kind", ["1d", "2d"])
def test_weights_of_positions_that_the_end_enlarges(kind):
    base = enlarged(kind)
    positions = base.output_shape[1:-1]
    x = RANDOM.normal(size=(4, *base.input_shape[1:])).astype("float32")
    y = RANDOM.integers(0, 3, (4, *positions))
    weights = RANDOM.uniform(size=(4, *positions)).astype("float32")
    model = ksd.SelfDistiller(base, ["a"], ksd.recipes.BYOT(hint_weight=1.0))
    model.compile("sgd", "crossentropy", run_eagerly=True)
    logs = model.test_on_batch(x, y, sample_weight=weights, return_dict=True)
    exits = model.exit_graph.training_network(x, training=False)["exits"]
    teacher, student = (
        to_numpy(exits["final"]["feature"]),
        to_numpy(exits["exit_1"]["hint"]),
    )
    active = (teacher > 0) | (student > 0)
    distance = (np.where(active, teacher - student, 0) ** 2).sum(-1)
    if kind == "1d":
        coarse = (weights[:, ::2] + weights[:, 1::2]) / 2
    else:
        rows = (weights[:, ::2] + weights[:, 1::2]) / 2
        coarse = (rows[:, :, ::2] + rows[:, :, 1::2]) / 2
    scale = model.recipe.weights(model.exit_names)["exit_1"].hint
    expected = scale * (distance * coarse).mean()
    assert logs["hint_loss"] == pytest.approx(expected, rel=1e-5)


def test_weights_of_positions_that_do_not_divide():
    feature = np.ones((2, 4, 8))
    for shape in ((2,), (2, 1), (2, 4)):
        weight = np.ones(shape)
        assert weights_at_positions(weight, feature) is weight
    with pytest.raises(ValueError, match="multiple of the features'"):
        weights_at_positions(np.ones((2, 6)), feature)


@pytest.mark.once
@pytest.mark.parametrize(
    ("units", "activation", "loss", "warned"),
    [
        (3, None, "sparse_categorical_crossentropy", True),
        (3, None, "crossentropy", True),
        (3, None, keras.losses.CategoricalCrossentropy(label_smoothing=0.1), True),
        (3, None, keras.losses.SparseCategoricalCrossentropy(from_logits=True), False),
        (3, "softmax", "sparse_categorical_crossentropy", False),
        (3, "sigmoid", "binary_crossentropy", False),
        (3, None, keras.losses.CategoricalHinge(), False),
    ],
)
def test_a_crossentropy_that_reads_logits_as_probabilities_is_warned_of(
    units, activation, loss, warned, caplog
):
    base = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(4, name="tapped"),
            keras.layers.Dense(4),
            keras.layers.Dense(units, activation=activation),
        ]
    )
    model = ksd.SelfDistiller(base, ["tapped"], head="linear")
    model.compile("sgd", loss)
    assert ("from_logits=True" in caplog.text) == warned
