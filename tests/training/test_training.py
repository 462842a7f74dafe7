"""What `fit` does with a wrapper: the step, the logs, weights, labels, precision."""

import csv

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from tests.conftest import long_on, require_backend, small_base, to_numpy

TAPS = ["out_1"]
LOSS = "sparse_categorical_crossentropy"


def wrap(base, recipe="byot", taps=("stem_relu", "out_1"), **options):
    model = ksd.SelfDistiller(base, list(taps), recipe)
    options = {"optimizer": keras.optimizers.SGD(0.1), "loss": LOSS} | options
    model.compile(**options)
    return model


def weights(model):
    return {v.path: to_numpy(v.value) for v in model.variables}


def fit(model, x, y, **options):
    return model.fit(
        x, y, **{"batch_size": 8, "shuffle": False, "verbose": 0} | options
    )


@long_on("jax")
def test_logs_have_the_documented_keys(base, batch, tmp_path):
    model = wrap(base, metrics=["accuracy"])
    log = tmp_path / "log.csv"
    history = fit(
        model, *batch, validation_data=batch, callbacks=[keras.callbacks.CSVLogger(log)]
    ).history
    keys = {
        "loss",
        "label_loss",
        "soft_target_loss",
        "hint_loss",
        "accuracy",
        "exit_1_accuracy",
        "exit_2_accuracy",
        "ensemble_accuracy",
    }
    assert set(history) == keys | {"nonfinite_steps"} | {f"val_{k}" for k in keys}
    header = next(csv.reader(log.read_text().splitlines()))
    assert set(header) == set(history) | {"epoch"}
    logs = model.evaluate(*batch, verbose=0, return_dict=True)
    assert set(logs) == keys
    order = ["loss", "label_loss", "soft_target_loss", "hint_loss", "accuracy"]
    order += ["exit_1_accuracy", "exit_2_accuracy", "ensemble_accuracy"]
    values = model.evaluate(*batch, verbose=0)
    assert values == pytest.approx([logs[name] for name in order])


@pytest.mark.once
@pytest.mark.parametrize("monitor", ["val_accuracy", "val_exit_1_accuracy"])
def test_callbacks_monitor_as_they_do_for_the_base(base, batch, tmp_path, monitor):
    model = wrap(base, metrics=["accuracy"])
    path = tmp_path / "best.keras"
    checkpoint = keras.callbacks.ModelCheckpoint(
        path, monitor=monitor, save_best_only=True
    )
    stopping = keras.callbacks.EarlyStopping(monitor=monitor, patience=5)
    slower = keras.callbacks.ReduceLROnPlateau(monitor=monitor, patience=5)
    fit(model, *batch, validation_data=batch, callbacks=[checkpoint, stopping, slower])
    assert path.exists()
    assert checkpoint.monitor_op is stopping.monitor_op is keras.ops.greater


@pytest.mark.once
def test_a_metric_object_is_the_final_exits(base, batch):
    top = keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")
    model = wrap(base, metrics=[top])
    logs = model.evaluate(*batch, verbose=0, return_dict=True)
    assert float(to_numpy(top.result())) == pytest.approx(logs["top2"])


@long_on("jax", "tensorflow")
def test_class_weight_with_one_hot_labels(base, batch):
    x, y = batch
    by_class = {0: 0.5, 1: 2.0, 2: 0.0, 3: 1.0}
    model = wrap(base)
    start = model.get_weights()
    expected = fit(model, x, y, class_weight=by_class).history
    model.set_weights(start)
    model.compile(keras.optimizers.SGD(0.1), "categorical_crossentropy")
    hot = np.eye(4, dtype="float32")[y]
    actual = fit(model, x, hot, class_weight=by_class).history
    for key, values in expected.items():
        assert actual[key] == pytest.approx(values, rel=1e-5)


def test_deep_supervision_logs_no_distillation(base, batch):
    history = fit(wrap(base, "deep_supervision"), *batch).history
    assert set(history) == {"loss", "label_loss", "nonfinite_steps"}


def test_metrics_are_those_of_each_exit(base, batch):
    x, y = batch
    model = wrap(
        base,
        metrics=[
            "accuracy",
            keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2"),
        ],
        weighted_metrics=["accuracy"],
    )
    sample_weight = np.linspace(0, 2, len(y))
    logs = model.evaluate(
        x, y, sample_weight=sample_weight, verbose=0, return_dict=True
    )
    outputs = model.predict(x, verbose=0)
    for name, output in outputs.items():
        prefix = "" if name == "final" else f"{name}_"
        right = output.argmax(axis=-1) == y
        top = (output.argsort(axis=-1)[:, -2:] == y[:, None]).any(axis=-1)
        assert logs[f"{prefix}accuracy"] == pytest.approx(right.mean())
        assert logs[f"{prefix}top2"] == pytest.approx(top.mean())
        assert logs[f"{prefix}weighted_accuracy"] == pytest.approx(
            (right * sample_weight).sum() / sample_weight.sum()
        )
    right = model.ensemble_model().predict(x, verbose=0).argmax(axis=-1) == y
    assert logs["ensemble_accuracy"] == pytest.approx(right.mean())


@pytest.mark.once
@long_on("jax", "tensorflow")
def test_exits_of_ten_or_more_keep_their_own_metrics():
    keras.utils.set_random_seed(3)
    stack = [layers.Dense(6, activation="relu", name=f"hidden_{i}") for i in range(12)]
    base = keras.Sequential([keras.Input((5,)), *stack, layers.Dense(3, "softmax")])
    model = ksd.SelfDistiller(
        base, [layer.name for layer in stack[:11]], "byot", head="linear"
    )
    assert model.exit_names[:2] == ["exit_01", "exit_02"]
    assert model.exit_names[-2:] == ["exit_11", "final"]
    model.compile("sgd", LOSS, metrics=["accuracy"])
    x, y = np.random.default_rng(0).normal(size=(32, 5)), np.arange(32) % 3
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    for name, output in model.predict(x, verbose=0).items():
        key = "accuracy" if name == "final" else f"{name}_accuracy"
        assert logs[key] == pytest.approx((output.argmax(axis=-1) == y).mean())


@pytest.mark.once
def test_tensorboard_gets_every_exit(base, batch, tmp_path):
    require_backend("tensorflow")
    from tensorflow.compat.v1.train import summary_iterator as event_file

    callback = keras.callbacks.TensorBoard(tmp_path, write_graph=False)
    fit(wrap(base, metrics=["accuracy"]), *batch, callbacks=[callback])
    tags = {
        value.tag
        for file in tmp_path.rglob("events.*")
        for event in event_file(str(file))
        for value in event.summary.value
    }
    assert {"epoch_exit_1_accuracy", "epoch_accuracy", "epoch_hint_loss"} <= tags


@long_on("jax")
def test_loss_is_the_sum_of_its_parts_and_of_the_bases_own_losses(batch):
    base = small_base(regularizer=keras.regularizers.L2(0.1))
    model = wrap(base)
    penalty = sum(
        0.1 * np.square(to_numpy(base.get_layer(name).kernel.value)).sum()
        for name in ("conv_1a", "conv_2a")
    )
    logs = model.evaluate(*batch, verbose=0, return_dict=True)
    parts = logs["label_loss"] + logs["soft_target_loss"] + logs["hint_loss"]
    assert logs["loss"] == pytest.approx(parts + penalty, rel=1e-5)
    total = to_numpy(model.compute_loss(*batch, training=False))
    assert float(total) == pytest.approx(logs["loss"], rel=1e-5)
    before = to_numpy(base.get_layer("conv_1a").kernel.value)
    fit(model, *batch, class_weight=dict.fromkeys(range(4), 0.0), batch_size=16)
    after = to_numpy(base.get_layer("conv_1a").kernel.value)
    # Weight decay alone: 0.1 (learning rate) · 2 · 0.1 (penalty).
    np.testing.assert_allclose(after, before * (1 - 0.1 * 0.2), rtol=1e-5)


@pytest.mark.once
def test_the_exits_run_once_a_step(batch):
    calls = []

    class Counting(layers.Layer):
        def call(self, inputs):
            calls.append(keras.ops.shape(inputs)[0])
            return inputs

    inputs = keras.Input((8, 8, 3))
    x = Counting(name="counting")(inputs)
    x = layers.Conv2D(4, 3, name="tap")(x)
    x = layers.Conv2D(4, 3, strides=2)(x)
    outputs = layers.Dense(4, "softmax")(layers.GlobalAveragePooling2D()(x))
    model = wrap(keras.Model(inputs, outputs), taps=["tap"], run_eagerly=True)
    fit(model, *batch)  # Builds the metrics with symbolic data, too.
    calls.clear()
    fit(model, *batch)
    assert calls == [8, 8]


@pytest.mark.filterwarnings("ignore:Gradients do not exist")  # That is the point.
@pytest.mark.parametrize(
    "recipe",
    [
        ksd.recipes.BYOT(alpha=1.0, hint_weight=0.0, final_label_weight=0.0),
        ksd.recipes.BYOT(alpha=0.0, hint_weight=1.0, final_label_weight=0.0),
        ksd.recipes.AttentionBYOT(alpha=1.0, hint_weight=0.0, final_label_weight=0.0),
        ksd.recipes.AttentionBYOT(
            alpha=0.0, hint_weight=1.0, final_label_weight=0.0, skipped_hint="none"
        ),
    ],
    ids=["soft targets", "hint", "soft targets of attention", "hint of attention"],
)
def test_distillation_leaves_the_teacher_as_it_is(base, batch, recipe):
    model = wrap(base, recipe, taps=["out_1"])
    trained = {v.path: v for v in model.trainable_variables}
    before = {path: to_numpy(v.value) for path, v in trained.items()}
    fit(model, *batch, class_weight=None)
    moved = {
        path for path, v in trained.items() if (to_numpy(v.value) != before[path]).any()
    }
    behind_the_tap = ("conv_2a", "conv_2b", "shortcut", "bn_2", "predictions")
    assert not [path for path in moved if path.startswith(behind_the_tap)]
    if recipe.alpha:
        assert {"stem/kernel", "conv_1a/kernel", "exit_1_logits/kernel"} <= moved
        first = {"bottleneck": "reduce", "attention": "attention_block_depthwise1"}
        assert f"exit_1_{first[recipe.head]}/kernel" in moved


@pytest.mark.filterwarnings("ignore:Gradients do not exist")  # That is the point.
@pytest.mark.parametrize("detach", [False, True])
def test_soft_targets_of_teskd_reach_the_teacher_unless_detached(base, batch, detach):
    recipe = ksd.recipes.TESKD(label_weight=0.0, hint_weight=0.0, detach_teacher=detach)
    model = wrap(base, recipe, taps=["out_1"])
    before = to_numpy(base.get_layer("predictions").kernel.value)
    fit(model, *batch, class_weight=None)
    after = to_numpy(base.get_layer("predictions").kernel.value)
    assert (before == after).all() == detach


def hand_built(base, wrapper):
    """Return a two-output Keras model whose head is written as convolutions."""
    x = base.get_layer("out_1").output
    for name, size, width in (
        ("reduce", 1, 4),
        ("downsample", 2, 4),
        ("expand", 1, 16),
    ):
        convolution = layers.Conv2D(width, size, strides=size, use_bias=False)
        x = convolution(x)
        dense = wrapper.get_layer(f"exit_1_{name}")
        convolution.kernel.assign(
            keras.ops.reshape(dense.kernel.value, convolution.kernel.shape)
        )
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x))
    classifier = layers.Dense(4, activation="softmax", name="shallow")
    shallow = classifier(layers.GlobalAveragePooling2D()(x))
    classifier.set_weights(wrapper.get_layer("exit_1_logits").get_weights())
    return keras.Model(base.input, {"shallow": shallow, "deep": base.output})


@long_on("jax")
def test_deep_supervision_equals_a_hand_built_model_step_for_step(batch):
    x, y = batch
    keras.utils.set_random_seed(5)
    base = small_base()
    twin = small_base(name="twin")
    twin.set_weights(base.get_weights())
    wrapper = wrap(base, "deep_supervision", taps=["out_1"])
    by_hand = hand_built(twin, wrapper)
    by_hand.compile(keras.optimizers.SGD(0.1), loss={"shallow": LOSS, "deep": LOSS})
    for step in range(4):
        part = slice(4 * step, 4 * step + 4)
        labels = {"shallow": y[part], "deep": y[part]}
        expected = by_hand.train_on_batch(x[part], labels, return_dict=True)["loss"]
        actual = wrapper.train_on_batch(x[part], y[part], return_dict=True)["loss"]
        assert actual == pytest.approx(expected, rel=1e-5)
    for name in ("stem", "conv_1b", "conv_2a", "predictions", "bn_1"):
        for actual, expected in zip(
            base.get_layer(name).get_weights(),
            twin.get_layer(name).get_weights(),
            strict=True,
        ):
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_class_weight_equals_sample_weight(base, batch):
    x, y = batch
    model = wrap(base)
    start = model.get_weights()
    by_class = {0: 0.5, 1: 2.0, 2: 0.0, 3: 1.0}
    expected = fit(model, x, y, sample_weight=np.vectorize(by_class.get)(y)).history
    model.set_weights(start)
    actual = fit(model, x, y, class_weight=by_class).history
    for key, values in expected.items():
        assert actual[key] == pytest.approx(values, rel=1e-5)


def test_zero_sample_weights_stop_every_term(base, batch):
    x, y = batch
    logs = wrap(base).evaluate(
        x, y, sample_weight=np.zeros(len(y)), verbose=0, return_dict=True
    )
    assert set(logs.values()) == {0.0}


@long_on("jax", "tensorflow")
def test_label_forms_agree(base, batch):
    x, y = batch
    hot = np.eye(4, dtype="float32")[y]
    model = wrap(base)
    logs = []
    for loss, labels in (
        (LOSS, y),
        (LOSS, y[:, None]),
        ("categorical_crossentropy", hot),
        ("crossentropy", hot),
        ("ce", y),
    ):
        model.compile("sgd", loss, metrics=["accuracy"])
        logs.append(model.evaluate(x, labels, verbose=0, return_dict=True))
    for other in logs[1:]:
        assert other == pytest.approx(logs[0], rel=1e-5)


def test_label_smoothing_and_soft_labels_agree(base, batch):
    x, y = batch
    hot = np.eye(4, dtype="float32")[y]
    smooth = keras.losses.CategoricalCrossentropy(label_smoothing=0.2)
    model = wrap(base, loss=smooth)
    expected = model.evaluate(x, hot, verbose=0, return_dict=True)
    model.compile("sgd", loss="categorical_crossentropy")
    actual = model.evaluate(x, hot * 0.8 + 0.05, verbose=0, return_dict=True)
    assert actual == pytest.approx(expected, rel=1e-5)


def scale_logits(base, x, to):
    """Scale the classifier so that the largest logit of a batch is `to`."""
    dense = base.get_layer("predictions")
    features = keras.Model(base.input, dense.input)(x, training=False)
    kernel, bias = (to_numpy(v.value) for v in dense.variables)
    largest = np.abs(to_numpy(features).astype("float64") @ kernel + bias).max()
    dense.set_weights([kernel * to / largest, bias * to / largest])


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_softmax_and_linear_ends_give_the_same_divergence(
    mixed_precision, batch, policy
):
    mixed_precision(policy)
    x, y = batch
    keras.utils.set_random_seed(7)
    recipe = ksd.recipes.BYOT(alpha=0.5, temperature=1.0)
    softmax = ksd.SelfDistiller(small_base(), TAPS, recipe)
    linear = ksd.SelfDistiller(small_base(activation=None), TAPS, recipe)
    scale_logits(softmax.final_model(), x, to=80.0)
    linear.set_weights(softmax.get_weights())
    logs = []
    for model, from_logits in ((softmax, False), (linear, True)):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
        model.compile("sgd", loss)
        logs.append(model.evaluate(x, y, verbose=0, return_dict=True))
    assert logs[0]["soft_target_loss"] == pytest.approx(
        logs[1]["soft_target_loss"], rel=1e-5
    )
    assert logs[0]["soft_target_loss"] > 0.5


@pytest.mark.parametrize("end", ["layer", "activation", "reshaped"])
def test_the_divergence_is_that_of_true_logits(batch, end):
    """Logits of ±80: their probabilities are 0 and 1 in float32."""
    x, y = batch
    keras.utils.set_random_seed(7)
    body = small_base(activation=None)
    if end == "layer":
        base = small_base()
        base.set_weights(body.get_weights())
    elif end == "activation":
        base = keras.Model(body.input, layers.Softmax()(body.output))
    else:
        probabilities = layers.Activation("softmax")(layers.Reshape((4,))(body.output))
        base = keras.Model(body.input, probabilities)
    model = ksd.SelfDistiller(base, TAPS, ksd.recipes.BYOT(alpha=1.0, temperature=2.0))
    scale_logits(base, x, to=80.0)
    model.compile("sgd", LOSS)
    teacher = to_numpy(
        keras.Model(base.input, base.get_layer("predictions").input)(x, training=False)
    )
    kernel, bias = base.get_layer("predictions").get_weights()
    teacher = (teacher.astype("float64") @ kernel + bias) / 2.0
    output = model.get_layer("exit_1_logits").output
    student = to_numpy(keras.Model(base.input, output)(x, training=False)) / 2.0

    def log_softmax(z):
        z = z - z.max(axis=-1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))

    p, q = log_softmax(teacher), log_softmax(student.astype("float64"))
    expected = 4.0 * (np.exp(p) * (p - q)).sum(axis=-1).mean()
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    assert logs["soft_target_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains(mixed_precision, batch, policy):
    mixed_precision(policy)
    keras.utils.set_random_seed(8)
    model = wrap(small_base(), metrics=["accuracy"])
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    if scaled:
        # The usual first scale, 2¹⁵, overflows: Keras would skip steps until it fits.
        optimizer = keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.1), initial_scale=64.0
        )
        model.compile(optimizer, LOSS)
    assert model.get_layer("exit_1_reduce").compute_dtype == policy[6:]
    assert model.get_layer("exit_1_logits").compute_dtype == "float32"
    before = to_numpy(model.get_layer("exit_1_reduce").kernel.value)
    history = fit(model, *batch, epochs=4).history
    assert np.isfinite(history["loss"]).all()
    assert history["loss"][-1] < history["loss"][0]
    assert (to_numpy(model.get_layer("exit_1_reduce").kernel.value) != before).any()


def test_mixed_precision_of_the_base_holds_under_another_global_policy(mixed_precision):
    mixed_precision("mixed_float16")
    base = small_base()
    mixed_precision("float32")
    model = wrap(base)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert model.get_layer("exit_1_expand").compute_dtype == "float16"


def base_without_batch_normalization():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="tap")(inputs)
    x = layers.Conv2D(4, 3, strides=2, activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(x))


def linear_wrap(**options):
    keras.utils.set_random_seed(9)
    model = ksd.SelfDistiller(
        base_without_batch_normalization(), ["tap"], "byot", head="linear"
    )
    model.compile(**{"optimizer": keras.optimizers.SGD(0.1), "loss": LOSS} | options)
    return model


def assert_equal_weights(actual, expected, tolerance=1e-5):
    for a, e in zip(actual.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)


def test_gradient_accumulation_equals_the_larger_batch(batch):
    large = linear_wrap()
    fit(large, *batch, batch_size=16)
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    small = linear_wrap(optimizer=optimizer)
    fit(small, *batch, batch_size=8)
    small._step.assign(1)  # It has seen two batches, the large one one.
    assert_equal_weights(small, large)


@long_on("torch", "jax")
@pytest.mark.filterwarnings("ignore")  # torch.compile warns of its own workings.
def test_compiled_and_eager_steps_agree(batch):
    eager = linear_wrap(run_eagerly=True)
    compiled = linear_wrap(jit_compile=True)
    histories = [fit(model, *batch, epochs=2).history for model in (eager, compiled)]
    assert_equal_weights(compiled, eager)
    for key, values in histories[0].items():
        assert histories[1][key] == pytest.approx(values, rel=1e-4)


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="Keras has it not on PyTorch"
)
def test_steps_per_execution(batch):
    single, double = linear_wrap(), linear_wrap(steps_per_execution=2)
    for model in (single, double):
        fit(model, *batch, batch_size=4)
    assert_equal_weights(double, single, tolerance=1e-4)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX's compilation cache")
def test_a_step_is_the_same_program_wherever_its_variables_lie():
    """Or the compilation cache of one process is of no use to the next."""
    import jax

    programs, apart = set(), []
    data = np.zeros((2, 3), "float32"), np.zeros(2, "int32")
    for _ in range(2):
        inputs = x = keras.Input((3,))
        for width in range(2, 6):
            # Between what is freed, variables get addresses in no order.
            apart.append([keras.Variable(0.0) for _ in range(40)][::3])
            x = layers.BatchNormalization()(layers.Dense(width, name=f"d{width}")(x))
        base = keras.Model(inputs, layers.Dense(4, activation="softmax")(x))
        model = wrap(base, "deep_supervision", taps=["d4"])
        model.evaluate(*data, verbose=0)
        model.optimizer.build(model.trainable_variables)
        groups = (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
        state = tuple([variable.value for variable in group] for group in groups)
        programs.add(jax.jit(model.train_step).lower(state, data).as_text())
    assert len(programs) == 1


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="tf.data sets without shapes"
)
def test_labels_of_unknown_shape(base, batch):
    import tensorflow as tf

    x, y = batch
    hot = np.eye(4, dtype="float32")[y]
    data = tf.data.Dataset.from_generator(
        lambda: iter([(x, hot)]),
        output_signature=(
            tf.TensorSpec((None, 8, 8, 3), "float32"),
            tf.TensorSpec((None, None), "float32"),
        ),
    )
    model = wrap(base, loss="categorical_crossentropy")
    expected = model.evaluate(x, hot, verbose=0, return_dict=True, batch_size=16)
    actual = model.evaluate(data.repeat(), steps=1, verbose=0, return_dict=True)
    assert actual == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
def test_nothing_to_train(base, batch):
    model = wrap(base)
    model.trainable = False
    model.compile("sgd", LOSS)
    before = weights(model)
    fit(model, *batch)
    after = weights(model)
    assert after.pop("step") == before.pop("step") + 2
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)


def test_a_frozen_base_stays(base, batch):
    base.trainable = False
    before = base.get_weights()
    model = wrap(base)
    fit(model, *batch)
    for a, b in zip(base.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(model.trainable_variables) == 2 * (3 * 3 + 2)


class Batches(keras.utils.PyDataset):
    """Two batches, as Keras asks for them."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 2

    def __getitem__(self, index):
        rows = slice(8 * index, 8 * index + 8)
        return self.x[rows], self.y[rows]


def test_every_kind_of_data_trains_alike(batch):
    x, y = batch
    require_backend("tensorflow")
    require_backend("torch")
    require_backend("jax")
    import jax.numpy as jnp
    import tensorflow as tf
    import torch

    tensors = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
    kinds = {
        "arrays": lambda: (x, y),
        "tf.data": lambda: (tf.data.Dataset.from_tensor_slices((x, y)).batch(8),),
        "loader": lambda: (torch.utils.data.DataLoader(tensors, batch_size=8),),
        "PyDataset": lambda: (Batches(x, y),),
        "generator": lambda: (Batches(x, y)[i] for i in range(2)),
        # Of this backend and of the others.
        "tensors of TensorFlow": lambda: (tf.constant(x), tf.constant(y)),
        "arrays of JAX": lambda: (jnp.asarray(x), jnp.asarray(y, "int32")),
        "tensors of PyTorch": lambda: (torch.tensor(x), torch.tensor(y)),
    }
    keras.utils.set_random_seed(0)
    model = ksd.SelfDistiller(small_base(), ["out_1"], "byot", head="linear")
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    start, losses = model.get_weights(), {}
    for kind, data in kinds.items():
        model.set_weights(start)
        given = (data(),) if kind == "generator" else data()
        how = {"steps_per_epoch": 2} if kind == "generator" else {}
        if len(given) == 2:
            how = {"batch_size": 8}
        fitted = model.fit(*given, shuffle=False, verbose=0, **how)
        losses[kind] = fitted.history["loss"][0]
    assert list(losses.values()) == pytest.approx(
        [losses["arrays"]] * len(kinds), rel=1e-5
    )
