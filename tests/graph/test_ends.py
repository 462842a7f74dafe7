"""Where bases end: logits that are logits, an end that runs once, masks, precision."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_selfdistill as ksd
from keras_selfdistill.graph.ends.base_end import find_logits
from keras_selfdistill.graph.ends.pre_activation import LogitsOfProbabilities
from keras_selfdistill.graph.nodes import producer
from tests.conftest import marks_long_on, to_numpy

pytestmark = marks_long_on("jax", "tensorflow")  # A network is compiled for each.
SHAPE = {"table": (5,), "steps": (6, 5), "image": (6, 6, 3), "volume": (4, 4, 4, 2)}


def base_of(end, kind="table", units=8):
    """Return a model of a layer to tap, one more, and an end."""
    x = inputs = keras.Input(SHAPE[kind])
    for name in ("tap", "hidden"):
        x = layers.Dense(units, activation="relu", name=name)(x)
    return keras.Model(inputs, end(x), name="small")


def batch_of(base, rows=6):
    shape = (rows, *base.input_shape[1:])
    return np.random.default_rng(3).normal(size=shape).astype("float32")


def activated(logits, kind):
    """From the formula, in NumPy."""
    logits = logits.astype("float64")
    if kind == "sigmoid":
        return np.exp(-np.logaddexp(0, -logits))
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


class AfterActivation(layers.Dense):
    """Computes behind its activation."""

    def __init__(self, *args, factor=1.0, shares=True, **kwargs):
        super().__init__(*args, **kwargs)
        self.factor, self.shares = factor, shares

    def call(self, inputs):
        outputs = super().call(inputs) ** 2 * self.factor
        return outputs / ops.sum(outputs, -1, keepdims=True) if self.shares else outputs


class Sharpened(layers.Dense):
    """Is called with a keyword."""

    def call(self, inputs, sharpness=1.0):
        logits = sharpness * ops.matmul(inputs, self.kernel) + self.bias
        return self.activation(logits)


class Clipped(layers.Dense):
    """Does nothing to probabilities in the middle."""

    lowest = 0.02

    def call(self, inputs):
        return ops.clip(super().call(inputs), self.lowest, 1 - self.lowest)


class KerasClipped(Clipped):
    """Clips as Keras' losses do."""

    lowest = 1e-7


class Floored(layers.Dense):
    """Removes what is small, without and with making up for it."""

    def __init__(self, *args, shares=True, **kwargs):
        super().__init__(*args, **kwargs)
        self.shares = shares

    def call(self, inputs):
        outputs = super().call(inputs)
        outputs = ops.where(outputs < 0.05, 0.0, outputs)
        return outputs / ops.sum(outputs, -1, keepdims=True) if self.shares else outputs


class Own(layers.Dense):
    """A subclass that computes what Keras does."""

    def call(self, inputs):
        return super().call(inputs)


def softmax(x):
    """A user's function of Keras' name, which computes another thing."""
    return keras.activations.softmax(x / 2)


def clipped(name, most=3.0):
    """Return a user's function of the name of Keras' own, which clips its input."""

    def function(x):
        return getattr(keras.activations, name)(ops.clip(x, -most, most))

    function.__name__ = name
    return function


def dense(units=4, activation="softmax"):
    return layers.Dense(units, activation=activation, name="end")


def pixels(x):
    return layers.Conv2D(4, 3, activation="softmax")(x)


def enlarged(x):
    return layers.UpSampling2D(2, interpolation="bilinear")(pixels(x))


def averaged(x):
    return layers.GlobalAveragePooling2D()(pixels(x))


def fully_convolutional(x):
    return layers.Softmax()(layers.GlobalAveragePooling3D()(layers.Conv3D(4, 1)(x)))


def by_keyword(x):
    return Sharpened(4, "softmax")(x, sharpness=3.0)


def by_keywords(x):
    return Sharpened(4, "softmax")(inputs=x, sharpness=3.0)


# End, inputs, kind of activation, and whether the logits are those in front of it.
FOUND = {
    "dense": (dense(), "table", "softmax", True),
    "operation": (lambda x: ops.softmax(dense(4, None)(x)), "table", "softmax", True),
    "sigmoid": (lambda x: ops.sigmoid(dense(4, None)(x)), "table", "sigmoid", True),
    "layer as activation": (dense(4, layers.Softmax()), "table", "softmax", True),
    "keyword": (by_keyword, "table", "softmax", True),
    "keywords alone": (by_keywords, "table", "softmax", True),
    "user's softmax": (dense(4, softmax), "table", "softmax", False),
    "clipped softmax": (dense(4, clipped("softmax")), "table", "softmax", False),
    "clipped sigmoid": (
        lambda x: layers.Activation(clipped("sigmoid"))(dense(4, None)(x)),
        "table",
        "sigmoid",
        False,
    ),
    "behind": (AfterActivation(4, "softmax"), "table", "softmax", False),
    "clipped behind": (Clipped(4, "sigmoid"), "table", "sigmoid", False),
    "as Keras clips": (KerasClipped(4, "softmax"), "table", "softmax", False),
    "floored": (Floored(4, "softmax"), "table", "softmax", False),
    "clipped in front": (
        lambda x: layers.Softmax()(ops.clip(dense(4, None)(x), -3, 3)),
        "table",
        "softmax",
        False,
    ),
    "subclass": (Own(4, "softmax"), "table", "softmax", True),
    "subclass, sigmoid": (Own(4, "sigmoid"), "table", "sigmoid", True),
    "recurrent": (layers.SimpleRNN(4, "softmax"), "steps", "softmax", False),
    "recurrent yes or no": (layers.GRU(3, "sigmoid"), "steps", "sigmoid", False),
    "enlarged": (enlarged, "image", "softmax", False),
    "repeated": (lambda x: layers.UpSampling2D()(pixels(x)), "image", "softmax", True),
    "averaged": (averaged, "image", "softmax", False),
    "volume": (fully_convolutional, "volume", "softmax", True),
}


@pytest.mark.parametrize("name", FOUND)
def test_the_output_is_the_activation_of_the_logits(name):
    end, inputs, kind, in_front = FOUND[name]
    keras.utils.set_random_seed(1)
    base = base_of(end, inputs)
    before = base.get_weights()
    model = ksd.SelfDistiller(base, ["tap"], "deep_supervision")
    assert model.exit_graph.task.activation == kind
    x = batch_of(base)
    expected = to_numpy(base(x))
    found = model.exit_graph.training_network(x, training=False)["exits"]["final"]
    np.testing.assert_allclose(
        activated(to_numpy(found["logits"]), kind), expected, atol=1e-6
    )
    np.testing.assert_array_equal(to_numpy(found["output"]), expected)
    np.testing.assert_array_equal(to_numpy(model(x)["final"]), expected)
    for ours, theirs in zip(base.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    _, _, *ends = [layer for layer in base.layers if layer.weights]
    ends[0].set_weights([1000 * each for each in ends[0].get_weights()])
    found = model.exit_graph.training_network(x, training=False)["exits"]["final"]
    logits = to_numpy(found["logits"])
    np.testing.assert_allclose(
        activated(logits, kind), to_numpy(base(x)), rtol=1e-3, atol=1e-30
    )
    if in_front:  # Not made of probabilities: their size is that of the weights.
        assert np.abs(logits).max() > 100


def test_all_losses_and_outputs_are_those_of_a_clipped_softmax():
    keras.utils.set_random_seed(1)
    base = base_of(dense(4, clipped("softmax")))
    base.set_weights([4 * each for each in base.get_weights()])
    model = ksd.SelfDistiller(base, ["tap"], "deep_supervision", head="linear")
    loss = "sparse_categorical_crossentropy"
    model.compile("sgd", loss, metrics=[loss], run_eagerly=True)
    x, y = 3 * batch_of(base, 12), np.arange(12) % 4
    logits = to_numpy(keras.Model(base.inputs[0], base.layers[-1].input)(x))
    logits = logits @ to_numpy(base.layers[-1].kernel)
    assert np.abs(logits).max() > 6  # Twice the largest that is left.
    p = activated(np.clip(logits, -3, 3), "softmax")
    expected = -np.log(p[np.arange(12), y]).mean()
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    assert logs[loss] == pytest.approx(expected, rel=1e-5)
    found = model.exit_graph.training_network(x, training=False)["exits"]["exit_1"]
    exit_loss = -np.log(activated(to_numpy(found["logits"]), "softmax"))
    exit_loss = exit_loss[np.arange(12), y].mean()
    assert logs["label_loss"] == pytest.approx(expected + exit_loss, rel=1e-5)
    report = ksd.report(model, (x, y), repeats=0, verbose=0)
    assert report["final"].loss == pytest.approx(expected, rel=1e-5)
    fast = ksd.EarlyExit(model, thresholds=2.0).predict(x)
    np.testing.assert_allclose(fast.predictions, p, atol=1e-6)


def over_another_axis(x):
    return layers.Flatten()(layers.Softmax(axis=1)(dense(4, None)(x)))


def cell_of_images(x):
    x = layers.ConvLSTM1D(4, 3, activation="softmax")(ops.expand_dims(x, 1))
    return layers.GlobalAveragePooling1D()(x)


REFUSED = {
    "flattened": (lambda x: layers.Flatten()(dense()(x)), "steps"),
    "recurrent": (layers.GRU(4, "softmax"), "steps"),
    "recurrent, linear": (layers.LSTM(4, None), "steps"),
    "cell of images": (cell_of_images, "steps"),
    "no shares": (AfterActivation(4, "softmax", shares=False), "table"),
    "linear": (AfterActivation(4), "table"),
    "clipped": (Clipped(4, "softmax"), "table"),
    "floored": (Floored(4, "softmax", shares=False), "table"),
    "clipped function": (
        lambda x: layers.Activation(clipped("linear", 0.9))(dense()(x)),
        "table",
    ),
    "clipped operation": (lambda x: ops.clip(dense()(x), 0.02, 0.98), "table"),
    "another axis": (over_another_axis, "steps"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_end_that_is_another_function_is_refused(name):
    base = base_of(*REFUSED[name])
    with pytest.raises(
        ValueError, match=r"Cannot find the logits.*'softmax'\) on its logits"
    ):
        ksd.SelfDistiller(base, ["tap"], "deep_supervision", head="linear")


class HalvedSoftmax(layers.Dense):
    """A softmax of half of what its activation is called with."""

    def call(self, inputs):
        return keras.ops.softmax(0.5 * keras.ops.log(super().call(inputs)))


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("end", ["averaged", "enlarged", "halved"])
def test_rounding_and_many_classes_hide_no_other_function(end, policy, mixed_precision):
    """The probabilities stand, but not those of what the activation is called with."""
    mixed_precision(policy)
    base = base_of(
        *{
            "averaged": (averaged, "image"),
            "enlarged": (enlarged, "image"),
            "halved": (HalvedSoftmax(300, activation="softmax"), "table"),
        }[end]
    )
    found = find_logits(base)
    assert isinstance(producer(found).operation, LogitsOfProbabilities)
    for layer in base.layers:  # As before.
        assert layer.dtype_policy == keras.config.dtype_policy()


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_a_recurrent_end_is_refused_in_any_precision(policy, mixed_precision):
    mixed_precision(policy)
    base = base_of(layers.GRU(60, activation="softmax"), "steps")
    with pytest.raises(ValueError, match="Cannot find the logits"):
        find_logits(base)


def test_numbers_are_kept_where_no_activation_explains_them():
    base = base_of(layers.LSTM(2, activation="tanh"), "steps")
    model = ksd.SelfDistiller(
        base, ["tap"], "deep_supervision", head="linear", task="regression"
    )
    x = batch_of(base)
    found = model.exit_graph.training_network(x, training=False)
    outputs = [to_numpy(each["output"]) for each in found["exits"].values()]
    ensemble = to_numpy(found["ensemble"])
    np.testing.assert_allclose(ensemble, np.mean(outputs, 0), atol=1e-6)
    np.testing.assert_array_equal(outputs[-1], to_numpy(base(x)))


class Noisy(layers.Dense):
    """Normalises, drops, counts its calls and adds a loss."""

    def build(self, input_shape):
        super().build(input_shape)
        self.normalise = layers.BatchNormalization()
        self.normalise.build((None, self.units))
        self.drop = layers.Dropout(0.5, seed=1)
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.python_calls = 0

    def call(self, inputs, training=None):
        if training:
            self.calls.assign_add(1.0)
        self.python_calls += 1
        self.add_loss(0.25 * ops.ones(()))
        logits = ops.matmul(self.drop(inputs, training=training), self.kernel)
        return self.activation(self.normalise(logits, training=training))


def test_the_end_runs_once():
    keras.utils.set_random_seed(2)
    regularizer = keras.regularizers.L1(0.1)
    end = Noisy(4, "softmax", use_bias=False, activity_regularizer=regularizer)
    base = base_of(end)
    calls = end.python_calls
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
    assert end.python_calls == calls
    eager = keras.backend.backend() != "jax"  # Where it is slower than compiling.
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=eager)
    x, y = batch_of(base, 12), np.arange(12) % 4
    logs = model.fit(x, y, batch_size=4, verbose=0).history
    assert to_numpy(end.calls.value) == 3
    terms = sum(logs[name][0] for name in logs if name.endswith("_loss"))
    # Probabilities sum to 1: the regularizer's share of each sample is 0.1.
    assert logs["loss"][0] - terms == pytest.approx(0.25 + 0.1, abs=1e-5)
    if keras.backend.backend() == "torch":
        calls = end.python_calls
        model.fit(x, y, batch_size=4, verbose=0)
        assert end.python_calls == calls + 3
    found = model.exit_graph.training_network(x, training=True)["exits"]["final"]
    np.testing.assert_allclose(
        activated(to_numpy(found["logits"]), "softmax"),
        to_numpy(found["output"]),
        atol=1e-6,
    )
    expected = to_numpy(base(x))
    for deployed in (model.final_model(), model.exit_model("final")):
        np.testing.assert_array_equal(to_numpy(deployed(x)), expected)
    fast = ksd.EarlyExit(model, thresholds=2.0).predict(x)
    np.testing.assert_allclose(fast.predictions, expected, atol=1e-6)


def einsum_dense(activation):
    return layers.EinsumDense("ab,bc->ac", 4, activation=activation, bias_axes="c")


# Keras tells of each layer that it does not quantise.
quantises = pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")


@quantises
@pytest.mark.parametrize("end", [dense, einsum_dense])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    ("mode", "moved"),
    [
        ("int8", 0.03),
        pytest.param("int4", 0.3, marks=pytest.mark.long),
        pytest.param("float8", 0.1, marks=pytest.mark.long),
    ],
)
def test_logits_of_a_wrapper_that_was_quantised(end, kind, mode, moved):
    keras.utils.set_random_seed(4)
    layer = dense(4, kind) if end is dense else einsum_dense(kind)
    base = base_of(layer)
    model = ksd.SelfDistiller(base, ["tap"], "deep_supervision", head="linear")
    x = batch_of(base)
    ensemble = model.ensemble_model()
    before = to_numpy(ensemble(x))
    model.quantize(mode)
    assert layer.quantization_mode == mode
    found = model.exit_graph.training_network(x, training=False)
    final = found["exits"]["final"]
    expected = to_numpy(base(x))
    np.testing.assert_array_equal(to_numpy(final["output"]), expected)
    np.testing.assert_allclose(
        activated(to_numpy(final["logits"]), kind), expected, atol=1e-6
    )
    # Codes of 8 bits move logits of this size by a few hundredths.
    np.testing.assert_allclose(to_numpy(ensemble(x)), before, atol=moved)
    logits = [to_numpy(each["logits"]) for each in found["exits"].values()]
    mean = activated(np.mean(logits, axis=0), kind)
    np.testing.assert_allclose(to_numpy(ensemble(x)), mean, atol=1e-6)


@quantises
def test_an_ensemble_is_quantised_and_a_quantised_wrapper_reported_on():
    keras.utils.set_random_seed(4)
    base = base_of(dense(4))
    model = ksd.SelfDistiller(base, ["tap"], "deep_supervision", head="linear")
    x, y = batch_of(base, 8), np.arange(8) % 4
    ensemble = model.ensemble_model()
    before = to_numpy(ensemble(x))
    ensemble.quantize("int8")
    after = to_numpy(ensemble(x))
    assert 0 < np.abs(after - before).max() < 0.03
    # The layers are those of the wrapper, which is quantised with it.
    assert model.get_layer("end").quantization_mode == "int8"
    report = ksd.report(model, (x, y), repeats=0, verbose=0)
    outputs = {name: to_numpy(each) for name, each in model(x).items()}
    outputs["ensemble"] = after
    for name, probabilities in outputs.items():
        loss = -np.log(probabilities[np.arange(8), y]).mean()
        assert report[name].loss == pytest.approx(loss, rel=1e-4), name


def quantised(**options):
    base = base_of(dense(**options))
    base.quantize("int8")
    return base


@quantises
def test_a_quantised_base_is_wrapped_trained_with_lora_and_loaded(tmp_path):
    keras.utils.set_random_seed(5)
    base = quantised()
    x, y = batch_of(base, 8), np.arange(8) % 4
    for layer in base.layers[1:]:
        layer.enable_lora(2)
    expected = to_numpy(base(x))
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear", teacher=quantised())
    np.testing.assert_array_equal(to_numpy(model(x)["final"]), expected)
    codes = [to_numpy(layer._kernel) for layer in base.layers[1:]]
    adapters = [np.array(to_numpy(each.lora_kernel_b)) for each in base.layers[1:]]
    eager = keras.backend.backend() != "jax"  # Where it is slower than compiling.
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=eager)
    logs = model.fit(x, y, verbose=0).history
    assert logs["nonfinite_steps"] == [0]
    assert logs["external_loss"][0] > 0
    for layer, code, adapter in zip(base.layers[1:], codes, adapters, strict=True):
        np.testing.assert_array_equal(to_numpy(layer._kernel), code)
        assert np.abs(to_numpy(layer.lora_kernel_b) - adapter).max() > 0
    model.save(tmp_path / "wrapper.keras")
    loaded = ksd.load_model(tmp_path / "wrapper.keras")
    base.save(tmp_path / "base.keras")
    # Keras merges adapters into the codes when it saves, which rounds.
    merged = to_numpy(keras.saving.load_model(tmp_path / "base.keras")(x))
    np.testing.assert_allclose(to_numpy(loaded(x)["final"]), merged, atol=1e-6)
    np.testing.assert_allclose(merged, to_numpy(base(x)), atol=0.03)
    assert np.isfinite(loaded.train_on_batch(x, y, return_dict=True)["loss"])


@quantises
def test_a_report_on_a_quantised_base_and_its_profile():
    keras.utils.set_random_seed(6)
    base = quantised()
    x, y = batch_of(base, 8), np.arange(8) % 4
    report = ksd.report(base, (x, y))
    loss = -np.log(to_numpy(base(x))[np.arange(8), y]).mean()
    assert report["final"].loss == pytest.approx(loss, rel=1e-5)

    def costs(model):
        profile = ksd.profile(model)
        return {name: (cost.macs, cost.unknown) for name, cost in profile.items()}

    plain = base_of(dense())
    assert costs(base) == costs(plain) == {"final": (5 * 8 + 8 * 8 + 8 * 4, ())}
    one, other = (
        ksd.SelfDistiller(each, ["tap"], "byot", head="linear")
        for each in (base, plain)
    )
    assert costs(one) == costs(other)


@quantises
def test_a_quantised_model_nested_in_a_base():
    stack = [keras.Input((5,)), layers.Dense(8, "relu", name="tap")]
    inner = keras.Sequential(
        [*stack, layers.Dense(8, "relu", name="end")], name="inner"
    )
    inputs = keras.Input((5,))
    base = keras.Model(inputs, dense()(inner(inputs)))  # Two layers named "end".
    base.quantize("int8")
    model = ksd.SelfDistiller(base, ["inner/tap"], "byot", head="linear")
    x = batch_of(base)
    np.testing.assert_array_equal(to_numpy(model(x)["final"]), to_numpy(base(x)))


def tagger(end):
    """Return a model that predicts for each word, and masks padding."""
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(20, 6, mask_zero=True)(inputs)
    x = layers.SimpleRNN(6, return_sequences=True, name="tap")(x)
    x = layers.SimpleRNN(5, return_sequences=True)(x)
    return keras.Model(inputs, end(x), name="tagger")


@pytest.mark.parametrize(
    "end",
    [
        lambda x: dense(3)(x),
        lambda x: layers.Activation("softmax")(dense(3, None)(x)),
        lambda x: layers.SimpleRNN(3, "softmax", return_sequences=True)(x),
    ],
    ids=["inside", "layer", "of probabilities"],
)
def test_metrics_of_all_exits_leave_padding_out(end):
    keras.utils.set_random_seed(7)
    model = ksd.SelfDistiller(tagger(end), ["tap"], "byot")
    loss = "sparse_categorical_crossentropy"
    eager = keras.backend.backend() != "jax"  # Where it is slower than compiling.
    model.compile("sgd", loss, metrics=["accuracy"], run_eagerly=eager)
    random = np.random.default_rng(0)
    x, y = random.integers(1, 20, (4, 7)), random.integers(0, 3, (4, 7))
    x[:, 4:] = 0
    found = model.exit_graph.training_network(x, training=False)
    outputs = {name: each["output"] for name, each in found["exits"].items()}
    outputs["ensemble"] = found["ensemble"]
    for labels in (y, np.where(x == 0, (y + 1) % 3, y)):
        logs = model.evaluate(x, labels, verbose=0, return_dict=True)
        for name, values in outputs.items():
            right = to_numpy(values).argmax(axis=-1) == y
            metric = "accuracy" if name == "final" else f"{name}_accuracy"
            assert logs[metric] == pytest.approx(right[:, :4].mean(), abs=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_an_output_that_lost_its_mask_counts_padding_as_keras_does(activation):
    keras.utils.set_random_seed(7)
    operation = getattr(ops, activation)
    base = tagger(lambda x: operation(dense(3, None)(x)))
    model = ksd.SelfDistiller(base, ["tap"], "byot")
    loss = keras.losses.CategoricalCrossentropy()
    if activation == "sigmoid":
        loss = keras.losses.BinaryCrossentropy()
    model.compile("sgd", loss, metrics=["mse"], run_eagerly=True)
    random = np.random.default_rng(0)
    x, y = random.integers(1, 20, (4, 7)), np.eye(3)[random.integers(0, 3, (4, 7))]
    x[:, 2:] = 0
    outputs = {name: to_numpy(value) for name, value in model(x).items()}
    p = outputs["final"]
    terms = y * np.log(p)
    if activation == "sigmoid":
        terms = (terms + (1 - y) * np.log(1 - p)) / 3
    step = model.run_exits(x, y, None, training=False)
    found = model._objective._label_loss(
        y, model.exit_graph.training_network(x)["exits"]["final"], None
    )
    assert float(to_numpy(found)) == pytest.approx(-terms.sum(axis=-1).mean(), abs=1e-5)
    outputs["ensemble"] = to_numpy(step.outputs["ensemble"])
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    for name, values in outputs.items():
        metric = "mse" if name == "final" else f"{name}_mse"
        assert logs[metric] == pytest.approx(((values - y) ** 2).mean(), abs=1e-5)


@pytest.fixture
def float64():
    """Keras with 64 bits, which JAX has only where it was started with them."""
    if keras.backend.backend() == "jax":
        pytest.skip("JAX computes in float32")
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


def test_training_in_float64(float64):
    keras.utils.set_random_seed(8)
    base = base_of(dense())
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.1, 0.5])
    model = ksd.SelfDistiller(
        base,
        ["tap"],
        ksd.recipes.BYOT(alpha=rate),
        head="linear",
        teacher=base_of(dense()),
    )
    loss = keras.losses.SparseCategoricalCrossentropy()
    model.compile("sgd", loss, metrics=["accuracy"], log_gradients=True)
    x, y = batch_of(base, 8).astype("float64"), np.arange(8) % 4
    model.fit(x, y, sample_weight=np.ones(8), verbose=0)
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    outputs = {name: to_numpy(value) for name, value in model(x).items()}
    assert {value.dtype for value in outputs.values()} == {np.dtype("float64")}
    own = {name: -np.log(v[np.arange(8), y]).mean() for name, v in outputs.items()}
    # The steps of the schedule are over: the exit's labels weigh 1 − 0.1.
    expected = own["final"] + 0.9 * own["exit_1"]
    assert logs["label_loss"] == pytest.approx(expected, rel=1e-6)
