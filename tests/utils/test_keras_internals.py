"""What is read of Keras' inside still means what we take it for."""

import keras
import numpy as np
import pytest
from keras import layers, losses, ops

from keras_selfdistill.utils import keras_internals as internals
from keras_selfdistill.utils.keras_internals import (
    deferred_values,
    flatten_layers,
    give_values,
    mask_of,
    parameters,
    run_in_inference_mode,
    set_mask,
    value_without_autocast,
    writes_legacy_format,
)
from tests.conftest import to_numpy

pytestmark = pytest.mark.once
FUNCTIONS = [
    losses.binary_crossentropy,
    losses.binary_focal_crossentropy,
    losses.categorical_crossentropy,
    losses.categorical_focal_crossentropy,
    losses.sparse_categorical_crossentropy,
]


def test_keras_says_when_it_writes_a_legacy_file(tmp_path):
    asked = []

    class Asked(keras.Model):
        def get_config(self):
            asked.append(writes_legacy_format())
            return {}

        def call(self, inputs):
            return inputs

    model = Asked()
    model(keras.ops.ones((1, 2)))
    model.save(tmp_path / "a.keras")
    assert set(asked) == {False}
    asked.clear()
    keras.saving.save_model(model, tmp_path / "a.h5")
    assert set(asked) == {True}


def test_a_value_without_autocast():
    seen = []

    class Reads(layers.Layer):
        def build(self, input_shape):
            self.scale = self.add_weight(shape=(2,), name="scale")

        def call(self, x):
            seen.append((value_without_autocast(self.scale), self.scale.value))
            return x

    Reads(dtype="mixed_bfloat16")(keras.ops.ones((1, 2)))
    dtypes = [keras.backend.standardize_dtype(each.dtype) for each in seen[-1]]
    assert dtypes == ["float32", "bfloat16"]


def test_a_graph_from_its_middle_runs_in_inference_mode():
    inputs = keras.Input((2,))
    middle = layers.Dense(3)(inputs)
    dropout = layers.Dropout(0.5)
    outputs = dropout(middle, training=True) + 1.0
    function = keras.Function([middle], {"outputs": outputs})
    x = np.ones((4, 3), "float32")
    found = run_in_inference_mode(function, [x])
    np.testing.assert_array_equal(to_numpy(found["outputs"]), x + 1.0)
    assert len(dropout._inbound_nodes) == 1


def test_the_function_of_a_loss():
    kinds = [getattr(losses, name) for name in dir(losses)]
    found = {
        internals.loss_function(kind())[0]
        for kind in kinds
        if isinstance(kind, type) and "from_logits" in vars(kind())
    }
    assert found == set(FUNCTIONS)
    assert internals.loss_function(losses.CTC())[0] is losses.ctc


class Halved(losses.BinaryCrossentropy):
    def call(self, y_true, y_pred):
        return super().call(y_true, y_pred) / 2


class Doubled(losses.BinaryCrossentropy):
    def __call__(self, y_true, y_pred, sample_weight=None):
        return 2 * super().__call__(y_true, y_pred, sample_weight)


class Renamed(losses.BinaryCrossentropy):
    pass


def test_a_subclass_that_computes_something_else_has_no_known_function():
    assert internals.loss_function(Halved()) == (None, {})
    assert internals.loss_function(Doubled()) == (None, {})
    assert internals.loss_function(Renamed())[0] is losses.binary_crossentropy


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_loss_of_another_function_is_a_copy(function):
    sparse = function is losses.sparse_categorical_crossentropy
    labels = ops.convert_to_tensor(np.array([0, 2]) if sparse else np.eye(3)[[0, 2]])
    outputs = ops.convert_to_tensor(np.random.default_rng(0).normal(size=(2, 3)))
    loss = internals.loss_of_function(function, "own", axis=-1)
    changed = internals.with_loss_function(
        loss, function, {"axis": -1, "from_logits": True}
    )
    expected = np.mean(to_numpy(function(labels, outputs, from_logits=True)))
    assert float(changed(labels, outputs)) == pytest.approx(expected, rel=1e-5)
    assert dict(internals.loss_function(loss)[1]) == {"axis": -1}
    assert changed.name == "own"


def test_object_name():
    assert internals.object_name(keras.metrics.Sum(name="sum_of")) == "sum_of"
    assert internals.object_name(lambda: None) == "lambda"


@pytest.mark.parametrize("direction", ["up", "down"])
def test_callbacks_read_the_direction_of_a_metric(direction):
    metric = keras.metrics.Accuracy(name="mine")
    internals.set_direction(metric, direction)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(loss="mse", metrics=[metric])
    stop = keras.callbacks.EarlyStopping(monitor="mine")
    stop.set_model(model)
    model.evaluate(np.ones((1, 1)), np.ones((1, 1)), verbose=0)
    stop._set_monitor_op()
    assert stop.monitor_op is (ops.greater if direction == "up" else ops.less)


def test_parameters_are_what_trains_where_nothing_is_frozen():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.Dropout(0.5)])
    model = keras.Sequential(
        [keras.Input((4,)), inner, layers.BatchNormalization(), layers.Dense(2)]
    )
    trained = [id(variable) for variable in model.trainable_variables]
    assert len(trained) < len(model.weights)
    inner.trainable = False
    model.layers[-1].kernel.trainable = False
    assert [id(variable) for variable in parameters(model)] == trained


def test_layers_inside_of_layers_are_found():
    inner = keras.layers.Dense(2)
    model = keras.Sequential([keras.layers.TimeDistributed(inner)])
    assert [type(each).__name__ for each in flatten_layers(model)] == [
        "Sequential",
        "TimeDistributed",
        "Dense",
    ]
    assert flatten_layers(inner) == [inner]


def test_a_mask_travels_beside_a_tensor():
    table = layers.Embedding(9, 2, mask_zero=True)
    ids = keras.ops.convert_to_tensor([[1, 0]])
    assert keras.ops.convert_to_numpy(mask_of(table(ids))).tolist() == [[True, False]]
    steps = keras.ops.ones((1, 2, 2))
    set_mask(steps, keras.ops.convert_to_tensor([[False, True]]))
    behind = mask_of(layers.Dropout(0.5)(steps))
    assert keras.ops.convert_to_numpy(behind).tolist() == [[False, True]]


def test_values_come_later_or_never():
    def dense():
        return keras.layers.Dense(2, kernel_initializer=keras.initializers.Ones())

    never, later = dense(), dense()
    with deferred_values() as dropped:
        never(keras.Input((3,)))
    with deferred_values() as variables:
        later(keras.Input((3,)))
    assert list(map(id, dropped)) == list(map(id, never.variables))
    with keras.StatelessScope():  # Its end gives values to what Keras has listed.
        pass
    assert never.kernel._value is later.kernel._value is None
    give_values(variables)
    assert later.get_weights()[0].tolist() == [[1.0, 1.0]] * 3
    assert never.kernel._value is None
