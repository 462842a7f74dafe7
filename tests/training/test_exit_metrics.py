"""Metrics of every exit: chosen as Keras chooses them, and copied whole."""

import functools
import inspect
import threading

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_selfdistill as ksd
from keras_selfdistill.training.logs.exit_metrics import copy_metric, exit_metrics
from tests.conftest import long_on, to_numpy

RANDOM = np.random.default_rng(3)
INDICES = RANDOM.integers(0, 8, 24)
SCORES = RANDOM.uniform(0.05, 0.6, (24, 8)).astype("float32")
SCORES[range(24), INDICES] += 0.3
LABELS = RANDOM.integers(0, 2, (24, 8)).astype("float32")
# Arguments that are not the default, for every metric that has any but name and dtype.
ARGUMENTS = {
    "AUC": {"curve": "PR", "num_thresholds": 7, "multi_label": True, "num_labels": 8},
    "BinaryAccuracy": {"threshold": 0.7},
    "BinaryCrossentropy": {"label_smoothing": 0.3},
    "BinaryIoU": {"target_class_ids": (1,), "threshold": 0.7},
    "CategoricalCrossentropy": {"label_smoothing": 0.3, "from_logits": True},
    "ConcordanceCorrelation": {"axis": 0},
    "CosineSimilarity": {"axis": 0},
    "F1Score": {"average": "micro", "threshold": 0.7},
    "FBetaScore": {"average": "weighted", "beta": 3.0, "threshold": 0.7},
    "FalseNegatives": {"thresholds": [0.2, 0.7]},
    "FalsePositives": {"thresholds": [0.2, 0.7]},
    "IoU": {"num_classes": 2, "target_class_ids": [1], "ignore_class": 0},
    "MeanIoU": {"num_classes": 8, "ignore_class": 5},
    "MeanMetricWrapper": {"fn": keras.metrics.top_k_categorical_accuracy, "k": 2},
    "OneHotIoU": {"num_classes": 8, "target_class_ids": [2, 3], "ignore_class": 3},
    "OneHotMeanIoU": {"num_classes": 8, "ignore_class": 2},
    "PearsonCorrelation": {"axis": 0},
    "Precision": {"class_id": 3, "thresholds": 0.7},
    "PrecisionAtRecall": {"recall": 0.4, "class_id": 1, "num_thresholds": 11},
    "R2Score": {"class_aggregation": None, "num_regressors": 2},
    "Recall": {"top_k": 2},
    "RecallAtPrecision": {"precision": 0.6, "class_id": 3, "num_thresholds": 11},
    "SensitivityAtSpecificity": {"specificity": 0.4, "num_thresholds": 11},
    "SparseCategoricalCrossentropy": {"from_logits": True},
    "SparseTopKCategoricalAccuracy": {"k": 2},
    "SpecificityAtSensitivity": {"sensitivity": 0.4, "num_thresholds": 11},
    "TopKCategoricalAccuracy": {"k": 2},
    "TrueNegatives": {"thresholds": [0.2, 0.7]},
    "TruePositives": {"thresholds": [0.2, 0.7]},
}
METRICS = {
    name: kind
    for name, kind in vars(keras.metrics).items()
    if inspect.isclass(kind) and issubclass(kind, keras.Metric) and name != "Metric"
}


def data_for(name):
    """Return labels and scores that a metric of Keras takes."""
    if name == "MeanIoU":
        return INDICES, SCORES.argmax(-1)
    if name.startswith("Sparse"):
        return INDICES, SCORES
    if name == "IoU":
        return LABELS[:, 0], (SCORES[:, 0] > 0.5).astype("int32")
    if name.startswith("OneHot"):
        sparse = ARGUMENTS[name].get("sparse_y_pred", False)
        return np.eye(8)[INDICES], SCORES.argmax(-1) if sparse else SCORES
    return (SCORES,) if name in ("Mean", "Sum") else (LABELS, SCORES)


def required(kind):
    """Return the names of arguments that a class must be given."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    return [
        each.name
        for each in parameters
        if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD
    ]


@long_on("jax")
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")  # By Keras, on JAX.
def test_a_copy_computes_what_the_metric_computes():
    for name, kind in METRICS.items():
        arguments = ARGUMENTS.get(name, {})
        metric = kind(**arguments, name="own")
        copied = copy_metric(metric)
        data = [ops.convert_to_tensor(each) for each in data_for(name)]
        copied.update_state(*data)
        assert not any(to_numpy(v).any() for v in metric.variables), name
        metric.update_state(*data)
        expected = to_numpy(metric.result())
        np.testing.assert_array_equal(to_numpy(copied.result()), expected, name)
        assert len(copied.variables) == len(metric.variables), name
        copied.reset_state()
        np.testing.assert_array_equal(to_numpy(metric.result()), expected, name)
        free = set(inspect.signature(kind.__init__).parameters) - {"name", "dtype"}
        assert bool(arguments) == bool(free - {"self"}), name
        if arguments:  # Which matter: without them the result is another.
            given = {key: arguments[key] for key in required(kind) if key != "self"}
            plain = kind(**given)
            plain.update_state(*data)
            assert not np.array_equal(to_numpy(plain.result()), expected), name


class Counted(keras.Metric):
    """Share of one class; its config omits which."""

    def __init__(self, class_id=0, name="counted"):
        super().__init__(name=name)
        self.class_id = class_id
        self.parts = {"hits": self.add_variable((), "zeros", name="hits")}
        self.seen = [keras.metrics.Sum(name="seen"), self.add_variable((), "zeros")]
        self.note = []

    def update_state(self, y_true, y_pred, sample_weight=None):
        hit = ops.cast(ops.equal(ops.argmax(y_pred, -1), self.class_id), "float32")
        self.parts["hits"].assign_add(ops.sum(hit))
        self.seen[0].update_state(ops.ones_like(hit))
        self.seen[1].assign_add(1.0)
        self.note.append(1)

    def result(self):
        return self.parts["hits"] / self.seen[0].result()


def test_a_copy_has_what_the_config_omits():
    metric = Counted(3)
    copied = copy_metric(metric)
    copied.update_state(LABELS, SCORES)
    assert float(copied.result()) == pytest.approx((SCORES.argmax(-1) == 3).mean())
    assert len(copied.variables) == len(metric.variables) == 3
    assert metric.note == []
    assert copied.note == [1]
    assert not any(to_numpy(variable).any() for variable in metric.variables)
    copied.reset_state()
    assert not any(to_numpy(variable).any() for variable in copied.variables)
    copied.late = copied.add_variable((), "ones", name="late")
    assert len(copied.variables) == 4
    assert len(metric.variables) == 3


def test_models_in_a_metric_are_shared():
    metric = Counted()
    metric.judge = [keras.Sequential([keras.Input((8,)), layers.Dense(1)])]
    metric.measure = keras.losses.MeanSquaredError()
    copied = copy_metric(metric)
    assert copied.judge[0] is metric.judge[0]
    assert copied.measure is metric.measure


def test_a_metric_that_cannot_be_copied():
    metric = Counted()
    metric.lock = threading.Lock()
    with pytest.raises(TypeError, match="Counted, which cannot be copied"):
        exit_metrics([metric], ["final", "exit_1"], argument="metrics")


def shifted(y_true, y_pred, by=0.0):
    return y_pred[:, 0] + by


def myShift(y_true, y_pred):
    return y_pred[:, 0]


class Shift:
    def __call__(self, y_true, y_pred):
        return y_pred[:, 0]


@pytest.mark.once
@pytest.mark.parametrize(
    "identifier",
    [
        keras.metrics.MeanMetricWrapper(lambda y_true, y_pred: y_pred[:, 0]),
        functools.partial(shifted, by=2.0),
        myShift,
        Shift(),
        lambda y_true, y_pred: y_pred[:, 0],
        keras.metrics.AUC,
        "mae",
        "Accuracy",
    ],
)
def test_metrics_of_every_kind_are_named_as_by_keras(identifier):
    """For every exit the same value and the same name, after the exit's own."""
    keras.utils.clear_session() if identifier is keras.metrics.AUC else None
    inputs = keras.Input((8,))
    plain = keras.Model(inputs, layers.Identity()(inputs))
    plain.compile(loss="mse", metrics=[identifier], run_eagerly=True)
    expected = plain.test_on_batch(SCORES, LABELS, return_dict=True)
    expected.pop("loss")
    keras.utils.clear_session() if identifier is keras.metrics.AUC else None
    found = exit_metrics([identifier], ["final", "exit_1"], argument="metrics")
    ((name, value),) = expected.items()
    for output, prefix in (("final", ""), ("exit_1", "exit_1_")):
        (metric,) = found[output]
        metric.update_state(LABELS, ops.convert_to_tensor(SCORES))
        assert metric.name == prefix + name
        assert float(metric.result()) == pytest.approx(value)


def probability_base(units, positions=()):
    inputs = keras.Input((*positions, 3))
    x = layers.Dense(4, "relu", name="a")(inputs)
    x = layers.Dense(4, "relu", name="b")(x)
    end = "sigmoid" if units == 1 else "softmax"
    return keras.Model(inputs, layers.Dense(units, end, name="end")(x))


@pytest.mark.once
@pytest.mark.parametrize("name", ["accuracy", "acc", "Accuracy"])
@pytest.mark.parametrize(
    ("units", "positions", "shape"),
    [
        (1, (), (12,)),
        (1, (), (12, 1)),
        (1, (5,), (12, 5)),
        (1, (5,), (12, 5, 1)),
        (3, (), (12,)),
        (3, (), (12, 3)),
        (3, (5,), (12, 5, 1)),
    ],
)
def test_names_mean_what_keras_chooses_by_shape(name, units, positions, shape):
    """The accuracy and the crossentropy, as metrics and as loss."""
    if name != "accuracy" and shape != (12,):
        return
    x = RANDOM.normal(size=(12, *positions, 3)).astype("float32")
    classes = RANDOM.integers(0, max(units, 2), (12, *positions))
    y = np.eye(units)[classes] if shape[-1] == units > 1 else classes.reshape(shape)
    base = probability_base(units, positions)
    loss = "crossentropy"
    base.compile("sgd", loss, metrics=[name], run_eagerly=True)
    expected = base.test_on_batch(x, y, return_dict=True)
    model = ksd.SelfDistiller(base, ["a"], "deep_supervision")
    model.compile("sgd", loss, metrics=[name, "ce"], run_eagerly=True)
    found = model.test_on_batch(x, y, return_dict=True)
    outputs = model.predict(x, verbose=0)
    for output, key in (("final", name), ("exit_1", f"exit_1_{name}")):
        scores = outputs[output]
        chosen = scores.argmax(-1) if units > 1 else scores[..., 0] > 0.5
        assert found[key] == pytest.approx((chosen == classes).mean(), abs=1e-6)
        if units > 1:
            right = np.take_along_axis(scores, classes[..., None], -1)
        else:
            right = np.where(classes, scores[..., 0], 1 - scores[..., 0])
        crossentropy = -np.log(right).mean()
        assert found[key.replace(name, "ce")] == pytest.approx(crossentropy, rel=1e-5)
    assert found["label_loss"] == pytest.approx(found["ce"] + found["exit_1_ce"])
    assert found["ce"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found[name] == pytest.approx(expected[name], abs=1e-6)


def test_a_wrapper_that_was_not_compiled_has_no_metrics(base):
    model = ksd.SelfDistiller(base, ["out_1"], "byot")
    assert model.exit_metric_names == []
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    assert model.exit_metric_names == ["accuracy"]
