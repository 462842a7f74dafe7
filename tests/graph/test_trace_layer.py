"""Layers made of layers: their inside is tapped where a tap's name leads into it."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from tests.conftest import to_numpy

PACKAGE = "test_trace_layer"


@keras.saving.register_keras_serializable(package=PACKAGE)
class Stack(layers.Layer):
    """Residual blocks behind each other, as a transformer's encoder holds them."""

    def __init__(self, width=8, depth=3, rate=0.0, **kwargs):
        super().__init__(**kwargs)
        self.width, self.depth, self.rate = width, depth, rate
        self.blocks = [
            layers.Dense(width, "relu", name=f"block_{i}", dtype=self.dtype_policy)
            for i in range(1, depth + 1)
        ]
        self.drop = layers.Dropout(rate, name="drop", dtype=self.dtype_policy)
        self.norm = layers.BatchNormalization(name="norm", dtype=self.dtype_policy)
        self.supports_masking = True

    def build(self, input_shape):
        for block in self.blocks:
            block.build(input_shape)
        self.norm.build(input_shape)

    def call(self, x, training=None):
        for block in self.blocks:
            x = self.drop(block(x) + x, training=training)
        return self.norm(x, training=training)

    def get_config(self):
        own = {"width": self.width, "depth": self.depth, "rate": self.rate}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package=PACKAGE)
class Biased(Stack):
    """A stack with a weight that belongs to none of its layers."""

    def build(self, input_shape):
        super().build(input_shape)
        self.bias = self.add_weight(shape=(self.width,), name="bias")

    def call(self, x, training=None):
        return super().call(x, training=training) + self.bias


@keras.saving.register_keras_serializable(package=PACKAGE)
class Stubborn(Stack):
    """A stack that looks at the values."""

    def call(self, x, training=None):
        return super().call(x if float(x[0, 0]) else -x, training=training)

    def compute_output_spec(self, x, training=None):
        return keras.KerasTensor(x.shape, x.dtype)


class Branching(Stack):
    """Does more in training than in inference."""

    def call(self, x, training=None):
        x = super().call(x, training=training)
        return 2 * x if training else x


class Scaled(Stack):
    """Multiplies by a number that depends on training."""

    def call(self, x, training=None):
        return super().call(x, training=training) * (0.5 if training else 1.0)


class WithoutTraining(Stack):
    """Behaves differently without `training`."""

    def call(self, x, training=None):
        x = super().call(x, training=training)
        return -x if training is None else x


class Frozen(Stack):
    """Keeps its normalisation in inference mode."""

    def call(self, x, training=None):
        return self.norm(self.blocks[1](self.blocks[0](x)), training=False)


class Tied(Stack):
    """Reads the weights of a layer, transposed."""

    def call(self, x, training=None):
        transposed = keras.ops.transpose(self.blocks[0].kernel)
        return keras.ops.matmul(super().call(x, training=training), transposed)


class Reading(Stack):
    """Reads the weights of a layer as they are."""

    def call(self, x, training=None):
        x = super().call(x, training=training)
        return keras.ops.matmul(x, self.blocks[0].kernel)


class Noisy(Stack):
    """Draws random numbers of its own."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x, training=None):
        noise = keras.random.normal((8,), seed=self.seeds)
        return super().call(x, training=training) + noise


class Losing(Stack):
    """Adds a loss of its layers' weights."""

    def call(self, x, training=None):
        self.add_loss(keras.ops.sum(keras.ops.square(self.blocks[0].kernel)))
        return super().call(x, training=training)


class Wasteful(Stack):
    """Calls a layer for its loss alone."""

    def __init__(self, **options):
        super().__init__(**options)
        self.penalty = layers.ActivityRegularization(l2=1.0, name="penalty")

    def call(self, x, training=None):
        self.penalty(x)
        return super().call(x, training=training)


class Plain(Stack):
    """Says nothing of training, and adds numbers that depend on nothing."""

    def call(self, x):
        for block in self.blocks:
            x = self.drop(block(x)) + keras.ops.arange(8, dtype="float32") / 8
        return self.norm(x)


def base(stack=Stack, nested=False, **options):
    """A classifier of rows around one stack, maybe inside a backbone."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8,), name="row")
    x = stack(name="stack", **options)(inputs)
    if nested:
        backbone = keras.Model(inputs, x, name="backbone")
        inputs = keras.Input((8,))
        x = backbone(inputs)
    x = layers.Dense(6, activation="relu", name="feature")(x)
    outputs = layers.Dense(3, activation="softmax", name="classes")(x)
    return keras.Model(inputs, outputs)


ROWS = np.random.default_rng(4).normal(size=(12, 8)).astype("float32")
CLASSES = np.arange(12) % 3


@pytest.mark.parametrize("nested", [False, True])
def test_a_block_inside_is_tapped(nested):
    model = base(nested=nested)
    before = model.predict(ROWS, verbose=0)
    path = "backbone/stack" if nested else "stack"
    wrapper = ksd.SelfDistiller(model, [f"{path}/block_1", f"{path}/block_3"], "byot")
    predictions = wrapper.predict(ROWS, verbose=0)
    np.testing.assert_allclose(predictions["final"], before, rtol=1e-6)
    # By hand: the second block reads the sum behind the first.
    owner = model.get_layer("backbone") if nested else model
    stack = owner.get_layer("stack")
    tap = stack.blocks[0](ROWS)
    head = [wrapper.get_layer(f"exit_1_{part}") for part in ("feature", "logits")]
    expected = keras.ops.softmax(head[1](head[0](tap)))
    np.testing.assert_allclose(predictions["exit_1"], to_numpy(expected), rtol=1e-5)


def test_it_trains_and_comes_back_from_a_file(tmp_path):
    wrapper = ksd.SelfDistiller(base(rate=0.2), ["stack/block_2"], "byot")
    wrapper.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    stack = wrapper.base.get_layer("stack")
    before = [np.array(weight) for weight in stack.weights]
    wrapper.fit(ROWS, CLASSES, verbose=0)
    still = [
        weight.path
        for weight, old in zip(stack.weights, before, strict=True)
        if np.array_equal(weight, old)
    ]
    assert not still  # BatchNorm's statistics too: `training` reaches the inside.
    wrapper.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.taps == ["stack/block_2"]
    for name, prediction in wrapper.predict(ROWS, verbose=0).items():
        again = loaded.predict(ROWS, verbose=0)[name]
        np.testing.assert_allclose(again, prediction, rtol=1e-6)
        alone = wrapper.exit_model(name).predict(ROWS, verbose=0)
        np.testing.assert_allclose(alone, prediction, rtol=1e-6)


def test_the_inside_computes_in_the_layers_own_dtype():
    wrapper = ksd.SelfDistiller(base(dtype="mixed_float16"), ["stack/block_1"], "byot")
    np.testing.assert_allclose(
        wrapper.predict(ROWS, verbose=0)["final"],
        wrapper.base.predict(ROWS, verbose=0),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    ("stack", "reason"),
    [
        (Biased, "weights of its own.*bias"),
        (Stubborn, "fails on symbolic tensors"),
        (Branching, "calls.*in training"),
        (Scaled, "other arguments, in training"),
        (WithoutTraining, "if called without"),
        (Frozen, "calls 'norm' with training=False"),
        (Tied, "other arguments.*other weights"),
        (Reading, "reads weights.*kernel"),
        (Noisy, "assigns variables.*seed"),
        (Losing, "adds losses"),
        (Wasteful, "not need 'penalty'"),
    ],
)
def test_a_layer_that_cannot_be_traced(stack, reason):
    model = base(stack)
    with pytest.raises(ValueError, match=reason) as caught:
        ksd.SelfDistiller(model, ["stack/block_1"], "byot")
    message = str(caught.value)
    assert all(part in message for part in ("'stack'", "Received", "Expected"))
    wrapper = ksd.SelfDistiller(model, ["stack"], "byot")
    found = to_numpy(wrapper(ROWS)["final"])
    if stack is not Noisy:
        np.testing.assert_allclose(found, to_numpy(model(ROWS)), rtol=1e-5)


def test_a_call_without_a_word_on_training_trains_inside():
    """Layers inside follow the call around them, as in Keras."""
    model, plain = base(Plain, rate=0.5), base(Plain, rate=0.5)
    plain.set_weights(model.get_weights())
    wrapper = ksd.SelfDistiller(model, ["stack/block_2"], "byot")
    for training in (None, False):
        found = to_numpy(wrapper(ROWS, training=training)["final"])
        expected = to_numpy(plain(ROWS, training=training))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    norms = [each.get_layer("stack").norm for each in (model, plain)]
    wrapper(ROWS, training=True)
    plain(ROWS, training=True)
    # Dropout's seeds differ: what stays the same is that statistics move.
    assert all(to_numpy(norm.moving_mean.value).any() for norm in norms)


@pytest.mark.parametrize("nested", [False, True])
def test_the_activity_loss_of_what_is_opened_counts(nested):
    penalty = keras.regularizers.L2(0.5)
    model = base(nested=nested, activity_regularizer=penalty)
    path = "backbone/stack" if nested else "stack"
    wrapper = ksd.SelfDistiller(model, [f"{path}/block_1"], "byot")
    stack = (model.get_layer("backbone") if nested else model).get_layer("stack")
    by_hand = 0.5 * np.square(to_numpy(stack(ROWS))).sum() / len(ROWS)
    wrapper(ROWS)
    (found,) = wrapper.losses
    assert float(to_numpy(found)) == pytest.approx(by_hand, rel=1e-5)
    wrapper.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    logs = wrapper.test_on_batch(ROWS, CLASSES, return_dict=True)
    terms = sum(logs[name] for name in logs if name.endswith("_loss"))
    assert logs["loss"] == pytest.approx(terms + by_hand, rel=1e-4)


@pytest.mark.once
def test_looking_into_a_layer_leaves_nothing_behind():
    model = base()
    inside = model.get_layer("stack").blocks
    calls = [len(block._inbound_nodes) for block in inside]
    with pytest.raises(ValueError, match="mean 'stack/block_1'"):
        ksd.SelfDistiller(model, ["stack/blok_1"], "byot")
    for block, before in zip(inside, calls, strict=True):
        assert len(block._inbound_nodes) <= before + 1  # That of the flat model.
        assert not block._losses


@pytest.mark.once
def test_a_name_that_is_not_inside():
    with pytest.raises(ValueError, match="mean 'stack/block_1'"):
        ksd.SelfDistiller(base(), ["stack/blok_1"], "byot")


@pytest.mark.once
def test_a_masked_layer_stays_closed():
    inputs = keras.Input((5,))
    x = layers.Embedding(9, 8, mask_zero=True)(inputs)
    x = Stack(name="stack")(x)
    x = layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    with pytest.raises(ValueError, match="reads a mask"):
        ksd.SelfDistiller(model, ["stack/block_1"], "byot")


@pytest.mark.once
def test_a_stack_with_most_of_the_work_is_opened_to_place_exits():
    base = keras.Sequential(
        [
            keras.Input((8,)),
            Stack(name="stack"),
            layers.Dense(3, activation="softmax", name="top"),
        ]
    )
    # 64 multiply-adds in each of three blocks, and 24 at the top.
    taps = ksd.suggest_taps(base, 2)
    assert [tap.macs_ratio for tap in taps] == pytest.approx([64 / 216, 128 / 216])
    assert all(name.startswith("stack/") for name in taps.names)
    model = ksd.SelfDistiller(base, 2, "byot")
    assert model.taps == taps.names
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(model)
    )
    assert again.taps == taps.names


@pytest.mark.once
def test_a_stack_that_cannot_be_opened_stays_whole_when_exits_are_placed():
    inputs = keras.Input((8,))
    x = layers.Dense(8, name="first")(inputs)
    x = layers.Dense(8, name="last")(Biased(name="stack")(x))
    base = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    assert ksd.suggest_taps(base, 2).names == ["first", "stack"]
