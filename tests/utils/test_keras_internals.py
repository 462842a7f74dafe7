"""The private names of Keras that this package uses behave as it expects."""

import inspect
import threading

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
    set_mask,
    value_without_autocast,
    writes_legacy_format,
)
from tests.conftest import to_numpy
from tests.keras_pins import PINNED, pins

FUNCTIONS = [
    losses.binary_crossentropy,
    losses.binary_focal_crossentropy,
    losses.categorical_crossentropy,
    losses.categorical_focal_crossentropy,
    losses.sparse_categorical_crossentropy,
]


def in_new_thread(function):
    """Return what a function returns in a thread, of which Keras knows nothing yet."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def small_model(**options):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="dense")])
    model.compile("sgd", "mse", run_eagerly=keras.backend.backend() != "jax", **options)
    return model


def data():
    return np.ones((4, 3), "float32"), np.zeros((4, 2), "float32")


@pins(writes_legacy_format, of="use_legacy_config (legacy/saving/legacy_h5_format.py)")
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


@pins(
    deferred_values,
    give_values,
    of="uninitialized_variables (backend/common/variables.py)",
)
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


@pins(
    internals.existing_seed_generator,
    internals.global_seed_generator,
    of="global_seed_generator (random/seed_generator.py)",
)
def test_the_global_seed_generator_is_what_keras_draws_from():
    def draws():
        assert internals.existing_seed_generator() is None
        assert internals.existing_seed_generator() is None  # Asking makes none.
        generator = internals.global_seed_generator()
        assert internals.existing_seed_generator() is generator
        before = to_numpy(generator.state.value)
        first = to_numpy(keras.random.uniform((3,)))
        second = to_numpy(keras.random.uniform((3,)))
        generator.state.assign(before)
        return first, second, to_numpy(keras.random.uniform((3,)))

    first, second, again = in_new_thread(draws)
    assert first.tolist() == again.tolist() != second.tolist()


@pins(value_without_autocast, of="Variable._value (backend/common/variables.py)")
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


@pins(
    internals.refuses_clones, of="Functional._run_through_graph (models/functional.py)"
)
def test_a_clone_is_refused_and_a_call_is_not():
    @internals.refuses_clones
    class Single(keras.Model):
        def refuse_clone(self):
            raise NotImplementedError("single")

    inputs = keras.Input((2,))
    model = Single(inputs, 2 * inputs)
    with pytest.raises(NotImplementedError, match="single"):
        keras.models.clone_model(model, clone_function=lambda layer: layer)
    assert to_numpy(model(ops.ones((1, 2)))).tolist() == [[2.0, 2.0]]
    outer = keras.Model(inputs, model(inputs))
    with pytest.raises(NotImplementedError, match="single"):
        keras.models.clone_model(outer.layers[-1], input_tensors=inputs)


@pins(internals.loss_function, of="LossFunctionWrapper._fn_kwargs (losses/losses.py)")
def test_the_function_of_a_loss():
    kinds = [getattr(losses, name) for name in dir(losses)]
    found = {
        internals.loss_function(kind())[0]
        for kind in kinds
        if isinstance(kind, type) and "from_logits" in vars(kind())
    }
    assert found == set(FUNCTIONS)
    assert internals.loss_function(losses.CTC())[0] is losses.ctc
    smooth = losses.BinaryCrossentropy(label_smoothing=0.5)
    assert internals.loss_function(smooth)[1]["label_smoothing"] == 0.5


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
@pins(
    internals.loss_of_function,
    internals.with_loss_function,
    of="LossFunctionWrapper (losses/losses.py)",
)
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


@pins(internals.object_name, of="get_object_name (utils/naming.py)")
def test_object_name():
    assert internals.object_name(keras.metrics.Sum(name="sum_of")) == "sum_of"
    assert internals.object_name(lambda: None) == "lambda"


@pytest.mark.parametrize("direction", ["up", "down"])
@pins(internals.set_direction, of="Metric._direction (callbacks/monitor_callback.py)")
def test_callbacks_read_the_direction_of_a_metric(direction):
    error = keras.metrics.mean_absolute_error
    metric = keras.metrics.MeanMetricWrapper(error, name="mine")
    internals.set_direction(metric, direction)
    model = small_model(metrics=[metric])
    x, y = data()
    model.evaluate(x, y, verbose=0)
    stop = keras.callbacks.EarlyStopping(monitor="mine", patience=0)
    stop.set_model(model)
    stop.on_train_begin()
    for value in (1.0, 2.0):
        stop.on_epoch_end(int(value), {"mine": value})
    assert stop.best == (2.0 if direction == "up" else 1.0)


class Counting(keras.Metric):
    """A metric with a variable and a metric of its own."""

    def __init__(self):
        super().__init__(name="counting")
        self.count = self.add_variable((), "zeros", name="count")
        self.mean = keras.metrics.Mean()

    def update_state(self, *_):
        self.count.assign_add(1)

    def result(self):
        return self.count.value


def same(found, expected):
    return [id(each) for each in found] == [id(each) for each in expected]


@pins(
    internals.variables_inside,
    internals.metrics_inside,
    of="Metric._variables and Metric._metrics (metrics/metric.py)",
)
def test_a_metric_lists_what_it_holds():
    metric = Counting()
    assert same(internals.variables_inside(metric), [metric.count])
    assert same(internals.metrics_inside(metric), [metric.mean])
    assert same(metric.variables, [metric.count, *metric.mean.variables])


@pins(internals.set_tracked, of="Metric._tracker (utils/tracking.py)")
def test_a_metric_knows_what_it_is_told_and_each_once():
    metric = Counting()
    variable, mean = keras.Variable(0.0), keras.metrics.Mean()
    internals.set_tracked(metric, [variable], [mean])
    metric.count, metric.mean = variable, mean
    assert same(metric.variables, [variable, *mean.variables])
    metric.further = keras.Variable(0.0)
    assert same(metric.variables, [variable, metric.further, *mean.variables])


@pins(parameters, of="Layer._trainable_variables (layers/layer.py)")
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


@pins(flatten_layers, of="Layer._flatten_layers (layers/layer.py)")
def test_layers_inside_of_layers_are_found():
    inner = keras.layers.Dense(2)
    model = keras.Sequential([keras.layers.TimeDistributed(inner)])
    assert [type(each).__name__ for each in flatten_layers(model)] == [
        "Sequential",
        "TimeDistributed",
        "Dense",
    ]
    assert flatten_layers(inner) == [inner]


@pins(mask_of, set_mask, of="_keras_mask (backend/common/masking.py)")
def test_a_mask_travels_beside_a_tensor():
    table = layers.Embedding(9, 2, mask_zero=True)
    ids = keras.ops.convert_to_tensor([[1, 0]])
    assert keras.ops.convert_to_numpy(mask_of(table(ids))).tolist() == [[True, False]]
    assert mask_of(table(keras.Input((5,)))).shape == (None, 5)
    steps = keras.ops.ones((1, 2, 2))
    assert mask_of(steps) is None
    set_mask(steps, keras.ops.convert_to_tensor([[False, True]]))
    behind = mask_of(layers.Dropout(0.5)(steps))
    assert keras.ops.convert_to_numpy(behind).tolist() == [[False, True]]


@pins(internals.call_context, of="CallContext (layers/layer.py)")
def test_layers_train_as_the_layer_does_that_calls_them():
    outer, drop = layers.ReLU(), layers.Dropout(1 - 1e-6, seed=1)

    def largest():
        return float(to_numpy(ops.max(drop(ops.ones((2, 3))))))

    with internals.call_context(outer, training=True):
        trains = largest()
        with internals.call_context(outer, training=False):
            infers = largest()
        assert largest() == trains == 0.0
    assert infers == largest() == 1.0


@pins(
    internals.aggregate_additional_loss,
    of="Trainer._aggregate_additional_loss (trainers/trainer.py)",
)
def test_a_further_loss_counts_as_keras_counts_its_own():
    model = small_model()
    found = internals.aggregate_additional_loss(model, ops.convert_to_tensor([1, 2]))
    assert float(found) == 3.0
    x, y = data()
    model.layers[0].kernel.regularizer = keras.regularizers.L2(0.5)
    (own,) = model.losses
    total = model.compute_loss(x, y, model(x))
    label_loss = np.mean((to_numpy(model(x)) - y) ** 2)
    own = to_numpy(internals.aggregate_additional_loss(model, own))
    assert to_numpy(total) == pytest.approx(label_loss + own, rel=1e-5)


class InFit(keras.callbacks.Callback):
    """Runs a function of the model at one of its occasions, and notes the epochs."""

    def __init__(self, occasion, function):
        super().__init__()
        self.epochs = []
        setattr(self, occasion, lambda *_, **__: function(self.model))

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append(epoch)


@pins(internals.set_initial_epoch, of="Trainer._initial_epoch (trainers/trainer.py)")
def test_a_callback_sets_the_epoch_in_which_fit_begins():
    model = small_model()
    for epoch, expected in ((2, [2]), (None, [0, 1, 2])):
        begins = InFit(
            "on_train_begin",
            lambda model, epoch=epoch: internals.set_initial_epoch(model, epoch),
        )
        model.fit(*data(), epochs=3, callbacks=[begins], verbose=0)
        assert begins.epochs == expected


@pins(internals.build_metrics, of="Trainer._symbolic_build (trainers/trainer.py)")
def test_metrics_are_built_without_a_step():
    model, other = (small_model(metrics=["mae"]) for _ in range(2))
    before = model.get_weights()
    internals.build_metrics(model, data())
    other.test_on_batch(*data())
    found, expected = (
        [(each.name, tuple(each.shape)) for each in one.metrics_variables]
        for one in (model, other)
    )
    assert found == expected
    assert sum(float(to_numpy(each.value)) for each in model.metrics_variables) == 0.0
    for found, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)


@pins(internals.give_back_weights, of="JAXTrainer.jax_state_sync (backend/jax)")
def test_a_callback_reads_the_weights_of_a_step():
    seen = []

    def read(model):
        internals.give_back_weights(model)
        seen.append(model.get_weights()[0])

    model = small_model()
    before = model.get_weights()[0]
    reads = InFit("on_train_batch_end", read)
    model.fit(*data(), batch_size=2, callbacks=[reads], verbose=0)
    first, last = seen
    np.testing.assert_array_equal(last, model.get_weights()[0])
    assert np.any(first != before)
    assert np.any(first != last)


def test_every_function_has_its_test():
    own = [
        each
        for each in vars(internals).values()
        if inspect.isfunction(each) and each.__module__ == internals.__name__
    ]
    assert len(own) > 20
    assert {each.__name__ for each in own} <= {each.__name__ for each in PINNED}
