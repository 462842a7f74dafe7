"""Steps that are not finite, low precision, and labels and batches at the edge."""

import math

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_selfdistill as ksd
from keras_selfdistill import losses
from keras_selfdistill.graph.task import Task
from keras_selfdistill.losses.label_loss import as_loss
from keras_selfdistill.losses.labels import all_exist
from keras_selfdistill.training.nonfinite import PATIENCE, StopWithoutProgress
from tests.conftest import (
    finite_differences,
    make_batch,
    marks_long_on,
    require_backend,
    run_python,
    small_base,
    to_numpy,
)

pytestmark = marks_long_on("jax", "tensorflow")  # A network is compiled for each.
LOSS = "sparse_categorical_crossentropy"
BACKEND = keras.backend.backend()


class Root(layers.Layer):
    """The square root: its gradient at 0 is NaN. Keeps a statistic that overflows."""

    def build(self, input_shape):
        self.largest = self.add_weight(
            name="largest", initializer="ones", trainable=False
        )

    def call(self, inputs, training=False):
        if training:
            self.largest.assign(ops.max(ops.exp(ops.abs(inputs))))
        return ops.sqrt(ops.abs(inputs))


def fragile_base():
    """A base with moving statistics, dropout, and steps that are easily spoilt."""
    inputs = keras.Input((6,))
    x = layers.Dense(5, use_bias=False)(inputs)
    x = layers.BatchNormalization()(Root()(x))
    x = layers.Activation("tanh", name="tap")(x)
    x = layers.Dense(3, activation="relu")(
        layers.Dropout(0.3, seed=1, name="dropout")(x)
    )
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(x))


def fragile(**options):
    keras.utils.set_random_seed(4)
    model = ksd.SelfDistiller(fragile_base(), ["tap"], "byot")
    options = {"optimizer": keras.optimizers.Adam(0.01), "loss": LOSS} | options
    model.compile(**options)
    model.optimizer.build(model.trainable_variables)
    return model


def state(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [(v.name, to_numpy(v.value)) for v in variables]


def assert_equal_states(actual, expected, but=()):
    for (_, value), (name, before) in zip(actual, expected, strict=True):
        if name not in but:
            np.testing.assert_array_equal(value, before, err_msg=name)


def changed(actual, expected):
    pairs = zip(actual, expected, strict=True)
    return [name for (name, a), (_, b) in pairs if not np.array_equal(a, b)]


def spoilt(kind):
    """Return a batch whose training step is not finite, as x, y and sample weights."""
    random = np.random.default_rng(2)
    x, y = random.normal(size=(16, 6)).astype("float32"), np.arange(16) % 4
    weights = np.ones(len(y), "float32")
    if kind == "input":
        x[3, 0] = np.nan
    elif kind == "sample weight":
        weights[5] = np.inf
    elif kind == "gradient":
        x[:] = 0.0
    elif kind == "statistic":
        x *= 1e4
    return x, y, weights


def step(model, batch):
    return model.train_on_batch(*batch, return_dict=True)


@pytest.fixture(scope="module")
def trained():
    """A wrapper after one good step."""
    model = fragile()
    step(model, spoilt("nothing"))
    return model


@pytest.mark.parametrize("kind", ["input", "sample weight", "gradient", "statistic"])
def test_a_step_that_is_not_finite_changes_nothing(trained, kind):
    before = state(trained)
    logs = step(trained, spoilt(kind))
    assert logs["nonfinite_steps"] == 1
    assert_equal_states(state(trained), before)
    # Nothing else was counted so far: the mean says so.
    assert math.isfinite(logs["loss"]) == (kind == "gradient")
    logs = step(trained, spoilt("nothing"))
    assert logs["nonfinite_steps"] == 0
    assert {"kernel", "moving_mean", "iteration"} <= set(
        changed(state(trained), before)
    )


def batches(*kinds):
    """Yield batches again and again, into which `fit` does not look."""
    while True:
        for kind in kinds:
            yield spoilt(kind)


def fitted(kinds, **options):
    model = fragile(**options)
    history = model.fit(
        batches(*kinds), steps_per_epoch=len(kinds), verbose=0, shuffle=False
    ).history
    return model, {name: values[0] for name, values in history.items()}


CASES = {
    "tensorflow": [{"jit_compile": True}, {"steps_per_execution": 2}],
    "jax": [{}, {"steps_per_execution": 2}],
    "torch": [{}],
}


@pytest.mark.parametrize("options", CASES[BACKEND], ids=str)
def test_training_goes_on_as_if_the_batch_had_not_been(options):
    good, expected = fitted(["nothing", "nothing"], **options)
    bad, actual = fitted(["nothing", "input", "input", "nothing"], **options)
    assert_equal_states(state(bad), state(good))
    assert (actual.pop("nonfinite_steps"), expected.pop("nonfinite_steps")) == (2, 0)
    assert actual == pytest.approx(expected, rel=1e-6)


def test_the_loss_scale_is_searched_and_bad_data_leave_it(mixed_precision):
    mixed_precision("mixed_float16")
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.01), initial_scale=2.0**40
    )
    model = fragile(optimizer=optimizer)
    before = state(model)

    def scale():
        return float(to_numpy(optimizer.dynamic_scale.value))

    x, y, _ = spoilt("nothing")
    logs = step(model, (x, y))
    assert (logs["nonfinite_steps"], scale()) == (1, 2.0**39)
    assert math.isfinite(logs["loss"])
    assert_equal_states(state(model), before, but=["dynamic_scale", "step_counter"])
    logs = step(model, spoilt("input"))
    assert (logs["nonfinite_steps"], scale()) == (1, 2.0**39)
    # Short epochs, none of which finds the scale: no reason to stop.
    history = model.fit(x, y, batch_size=8, epochs=20, verbose=0, shuffle=False).history
    assert history["nonfinite_steps"][0] == 2
    assert history["nonfinite_steps"][-1] == 0
    assert {"kernel", "moving_mean", "iteration"} <= set(changed(state(model), before))


def test_a_list_of_callbacks_of_the_users_own_serves_every_fit():
    model, x, y = two_layers(), np.ones((8, 3), "float32"), np.arange(8) % 2
    callbacks = keras.callbacks.CallbackList(
        [keras.callbacks.TerminateOnNaN()], add_history=True, model=model
    )
    for _ in range(2):
        assert "loss" in model.fit(x, y, callbacks=callbacks, verbose=0).history
        kinds = [type(callback).__name__ for callback in callbacks.callbacks]
        own = ["StopWithoutProgress", "RecipeEpochs"]
        assert kinds == [*own, "TerminateOnNaN", "History"]
    model.get_layer("a").kernel.assign(np.full((3, 4), np.nan))
    with pytest.raises(FloatingPointError):
        model.fit(x, y, callbacks=callbacks, verbose=0)


def test_training_on_nothing_but_nan_stops():
    model = fragile()
    before = state(model)
    saved = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: pytest.fail("an epoch of NaN was reported")
    )
    how = {"verbose": 0, "shuffle": False, "callbacks": [saved]}
    with pytest.raises(FloatingPointError, match=r"no loss of epoch 1 \(3 b"):
        model.fit(batches("input"), steps_per_epoch=3, epochs=9, **how)
    assert_equal_states(state(model), before)  # Usable, on JAX too.
    with pytest.raises(FloatingPointError, match=r"none of the last 1\d\d steps"):
        model.fit(batches("input"), steps_per_epoch=10**6, **how)


@pytest.mark.once
@pytest.mark.parametrize(
    ("steps", "skipped", "stops_in_epoch"),
    [
        (10, lambda step: True, 10),  # Losses are finite, gradients never.
        (10, lambda step: step < 99, None),  # The hundredth step is a good one.
        (250, lambda step: 120 <= step < 499, 2),
        (250, lambda step: step % 99, None),
    ],
)
def test_when_to_give_up(steps, skipped, stops_in_epoch):
    stop, step = StopWithoutProgress(), 0
    for epoch in range(12):
        stop.on_epoch_begin(epoch)
        count = 0
        try:
            for batch in range(steps):
                count += bool(skipped(step))
                step += 1
                logs = {"loss": 1.0, "nonfinite_steps": float(count)}
                stop.on_train_batch_end(batch, logs)
            stop.on_epoch_end(epoch, logs)
        except FloatingPointError:
            assert epoch + 1 == stops_in_epoch
            assert step >= PATIENCE
            return
    assert stops_in_epoch is None


def log_softmax(logits):
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("temperature", [0.5, 4.0, 20.0])
def test_losses_of_large_logits_are_exact(dtype, temperature):
    random = np.random.default_rng(0)
    rows = [random.choice([-1e4, 0.0, 1e4], (8, 5)) for _ in range(2)]
    rows = [row + random.normal(size=row.shape) for row in rows]
    given = [ops.convert_to_tensor(row, dtype) for row in rows]
    teacher, student = (
        to_numpy(ops.cast(each, "float32")).astype("float64") / temperature
        for each in given
    )
    p, q = log_softmax(teacher), log_softmax(student)
    divergence = temperature**2 * (np.exp(p) * (p - q)).sum(axis=-1)
    crossentropy = -(np.exp(p) * q).sum(axis=-1)
    for function, expected in (
        (losses.soft_target_divergence, divergence),
        (losses.soft_target_crossentropy, crossentropy),
    ):
        actual = function(*given, temperature=temperature)
        assert keras.backend.standardize_dtype(actual.dtype) == "float32"
        np.testing.assert_allclose(to_numpy(actual), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize(
    ("teacher", "temperature"), [("deepest", 20.0), ("ensemble", 0.5)]
)
def test_steps_with_large_logits_are_finite(
    mixed_precision, policy, teacher, temperature
):
    mixed_precision(policy)
    keras.utils.set_random_seed(3)
    recipe = ksd.recipes.BYOT(alpha=0.5, temperature=temperature, teacher=teacher)
    model = ksd.SelfDistiller(small_base(activation=None), ["out_1"], recipe)
    x, y = make_batch()
    largest = max(np.abs(out).max() for out in model.predict(x, verbose=0).values())
    for name in ("exit_1_logits", "predictions"):
        kernel, bias = model.get_layer(name).get_weights()
        model.get_layer(name).set_weights([kernel * 1e4 / largest, bias])
    found = model.predict(x, verbose=0)
    assert (
        5e3 < max(np.abs(out.astype("float64")).max() for out in found.values()) < 2e4
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(1e-6)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=1e-3)
    model.compile(optimizer, loss)
    logs = model.train_on_batch(x, y, return_dict=True)
    assert np.isfinite(list(logs.values())).all()
    assert logs["nonfinite_steps"] == 0
    assert logs["soft_target_loss"] > 100


@pytest.mark.long
def test_a_batch_of_one_and_of_one_class_and_of_no_weight(base):
    x, y = make_batch()
    model = ksd.SelfDistiller(base, ["out_1", "out_2"], "byot")
    model.compile(keras.optimizers.SGD(0.1), LOSS, metrics=["accuracy"])
    for batch in (
        (x[:1], y[:1]),
        (x[::4], y[::4]),
        (x, y, np.zeros(len(y))),
        (x, y, np.where(y == 1, 0.0, 2.0)),
    ):
        logs = model.train_on_batch(*batch, return_dict=True)
        assert np.isfinite(list(logs.values())).all()
        assert logs["nonfinite_steps"] == 0
    weighted = keras.losses.SparseCategoricalCrossentropy(
        reduction="mean_with_sample_weight"
    )
    model.compile(keras.optimizers.SGD(0.1), weighted)
    logs = model.train_on_batch(x, y, np.zeros(len(y)), return_dict=True)
    assert (logs["label_loss"], logs["nonfinite_steps"]) == (0, 0)


def test_labels_that_do_not_exist_teach_nothing(trained):
    x, y, weights = spoilt("nothing")
    y[2] = 4
    before = state(trained)
    if BACKEND == "jax":
        assert step(trained, (x, y, weights))["nonfinite_steps"] == 1
    else:
        with pytest.raises(Exception, match=r"label value of 4|Target 4 is out"):
            step(trained, (x, y, weights))
    assert_equal_states(state(trained), before)


@pytest.mark.once
@pytest.mark.parametrize(
    ("loss", "labels", "exist"),
    [
        (LOSS, [0, 3], True),
        (LOSS, [0, 4], False),
        (LOSS, [[-1], [0]], False),
        ("crossentropy", [0, 4], False),
        (keras.losses.SparseCategoricalCrossentropy(ignore_class=-1), [-1, 0], True),
        ("categorical_crossentropy", np.eye(4)[:2] * 9, True),
        ("mse", [7.0, 9.0], True),
    ],
)
def test_which_labels_exist(loss, labels, exist):
    loss = as_loss(loss, Task("multiclass", 4, "softmax"))
    found = all_exist(np.array(labels), np.zeros((2, 4)), loss)
    assert bool(found) == exist


@pytest.mark.long
@pytest.mark.parametrize("classes", [1000, 21841])
def test_many_classes(classes):
    keras.utils.set_random_seed(0)
    stack = [keras.Input((4,)), layers.Dense(3, activation="relu", name="tap")]
    zeros = keras.initializers.Zeros()
    end = layers.Dense(classes, "softmax", kernel_initializer=zeros)
    base = keras.Sequential([*stack, layers.Dense(3, activation="relu"), end])
    model = ksd.SelfDistiller(base, ["tap"], ksd.recipes.BYOT(alpha=0.5), head="linear")
    model.compile(keras.optimizers.SGD(0.1), LOSS, metrics=["accuracy"])
    x, y = np.ones((2, 4), "float32"), np.array([0, classes - 1])
    logs = model.train_on_batch(x, y, return_dict=True)
    shallow = to_numpy(model(x)["exit_1"])
    assert shallow.shape == (2, classes)
    # The final exit knows nothing yet; the shallow one's part is half as heavy.
    even = math.log(classes)
    assert even < logs["label_loss"] < 2 * even
    assert logs["nonfinite_steps"] == 0


def two_layers(**options):
    """A wrapper of x·a·b·c with a linear head: small enough to compute by hand."""
    keras.utils.set_random_seed(5)
    stack = [layers.Dense(4, use_bias=False, name=name) for name in "ab"]
    end = layers.Dense(2, "softmax", use_bias=False, name="c")
    base = keras.Sequential([keras.Input((3,)), *stack, end])
    model = ksd.SelfDistiller(base, ["a"], "deep_supervision", head="linear")
    model.compile(**{"optimizer": keras.optimizers.SGD(0.1), "loss": LOSS} | options)
    return model


@pytest.mark.parametrize("scale", [None, 128.0])
def test_gradients_are_those_of_the_formula(scale):
    optimizer = keras.optimizers.SGD(0.1, loss_scale_factor=scale)
    model = two_layers(optimizer=optimizer, log_gradients=True)
    random = np.random.default_rng(0)
    x, y = random.normal(size=(6, 3)).astype("float32"), np.arange(6) % 2
    names = ("a", "b", "c", "exit_1_feature", "exit_1_logits")
    weights = [w for name in names for w in model.get_layer(name).get_weights()]

    def loss(a, b, c, feature, feature_bias, logits, logits_bias):
        shallow = np.maximum(x @ a @ feature + feature_bias, 0) @ logits + logits_bias
        rows = log_softmax(shallow) + log_softmax(x @ a @ b @ c)
        return -rows[np.arange(6), y].mean()

    of_a, *behind = finite_differences(loss, weights)[:3]
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["loss"] == pytest.approx(loss(*weights), rel=1e-5)
    assert logs["section_1_gradient"] == pytest.approx(np.abs(of_a).mean(), rel=1e-4)
    assert logs["section_2_gradient"] == pytest.approx(
        np.mean([abs(each) for each in np.concatenate(behind, axis=None)]), rel=1e-4
    )


@pytest.mark.once
def test_gradients_are_logged_by_training_alone_where_asked_for(tmp_path):
    x, y = np.ones((4, 3), "float32"), np.arange(4) % 2
    model = two_layers(log_gradients=True, metrics=["accuracy"])
    names = {"section_1_gradient", "section_2_gradient"}
    history = model.fit(x, y, validation_data=(x, y), verbose=0).history
    assert names | {"nonfinite_steps", "val_accuracy"} <= set(history)
    assert not {name for name in history if "val_section" in name or "val_non" in name}
    logs = model.test_on_batch(x, y, return_dict=True)
    assert not names & set(logs)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert names <= set(loaded.train_on_batch(x, y, return_dict=True))
    assert not names & set(two_layers().train_on_batch(x, y, return_dict=True))


@pytest.mark.once
def test_sections_hold_the_weights_of_the_base_between_taps(base):
    from keras_selfdistill.training.gradients.section_gradients import section_weights

    model = ksd.SelfDistiller(base, ["stem_relu", "out_1"], "byot")
    found = {
        section: {variable.path.split("/")[0] for variable in weights}
        for section, weights in section_weights(model.exit_graph).items()
    }
    assert found == {
        "section_1": {"stem", "stem_bn"},
        "section_2": {"conv_1a", "bn_1", "conv_1b"},
        "section_3": {"shortcut", "conv_2a", "bn_2", "conv_2b", "predictions"},
    }
    base.trainable = False
    assert section_weights(model.exit_graph) == {}


@pytest.mark.long
@pytest.mark.process
def test_two_replicas_skip_a_step_together():
    require_backend("tensorflow")
    result = run_python("-m", "tests.training.nonfinite_probe", backend="tensorflow")
    assert "as it should be" in result.stdout


@pytest.mark.skipif(BACKEND != "torch", reason="torch.distributed")
def test_a_step_that_another_process_cannot_take_changes_nothing(trained, monkeypatch):
    import torch

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    trained.process_group = torch.distributed.group.WORLD
    try:
        before = state(trained)
        assert step(trained, spoilt("input"))["nonfinite_steps"] == 1
        assert_equal_states(state(trained), before)
        assert step(trained, spoilt("nothing"))["nonfinite_steps"] == 0
        before = state(trained)
        monkeypatch.setattr(
            torch.distributed, "all_reduce", lambda found, op, group: found[0].zero_()
        )
        assert step(trained, spoilt("nothing"))["nonfinite_steps"] == 1
        assert_equal_states(state(trained), before)
        trained.process_group = None

        class Interrupted(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                self.model.process_group = torch.distributed.group.WORLD
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trained.fit(*spoilt("nothing")[:2], callbacks=[Interrupted()], verbose=0)
        assert trained.process_group is None
    finally:
        trained.process_group = None
        torch.distributed.destroy_process_group()


def test_only_processes_can_skip_steps_together():
    model = two_layers()
    with pytest.raises(TypeError, match=r"`process_group` .*'WORLD'.*Expected: None"):
        model.process_group = "WORLD"
    model.process_group = None
    assert model.process_group is None


def test_gradients_of_an_embedding_are_summed_over_a_word_first():
    words = keras.Input((2,), dtype="int32")
    x = layers.Embedding(3, 2, name="words")(words)
    x = layers.Subtract(name="difference")([x[:, 0], x[:, 1]])
    base = keras.Model(words, layers.Dense(2, "softmax")(layers.Dense(4)(x)))
    model = ksd.SelfDistiller(base, ["difference"], "deep_supervision", head="linear")
    model.compile("sgd", LOSS, log_gradients=True)
    x, y = np.array([[0, 1], [1, 2], [2, 2]]), np.array([0, 1, 1])
    found = ksd.analysis.gradients_by_depth({"model": model}, x, y)
    assert found.places[0] == "words"
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["section_1_gradient"] == pytest.approx(
        found.magnitude["model"][0], rel=1e-5
    )


def test_an_evaluation_of_nan_leaves_nothing_in_later_logs():
    model, x, y = two_layers(), np.ones((8, 3), "float32"), np.arange(8) % 2
    expected = model.evaluate(x, y, verbose=0, return_dict=True)
    found = model.evaluate(np.full_like(x, np.nan), y, verbose=0, return_dict=True)
    assert math.isnan(found["loss"])
    assert model.evaluate(x, y, verbose=0, return_dict=True) == expected
