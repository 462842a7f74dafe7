"""Bases with models nested in them, shared layers, several inputs, no classifier."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.early_exit.section_models import cut_sections
from keras_selfdistill.graph.flatten import flatten
from keras_selfdistill.graph.shells import Renamed
from tests.conftest import marks_long_on, to_numpy

# A network is traced for each.
pytestmark = marks_long_on("jax", "tensorflow")


def stage(width, name):
    return keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            layers.Conv2D(width, 3, padding="same", use_bias=False, name="conv"),
            layers.BatchNormalization(name="bn"),
            layers.ReLU(name="relu"),
        ],
        name=name,
    )


def backbone():
    """A functional model with two Sequential ones in it, whose layers share names."""
    inputs = keras.Input((8, 8, 3), name="pixels")
    x = layers.Conv2D(4, 1, name="stem")(inputs)
    x = stage(4, "first")(x)
    x = layers.Add(name="sum")([x, stage(4, "second")(x)])
    return keras.Model(inputs, x, name="backbone")


def nested_base(front=(), training=None):
    inputs = keras.Input((8, 8, 3), name="image")
    x = inputs
    for layer in front:
        x = layer(x)
    x = backbone()(x, training=training)
    x = layers.Conv2D(8, 3, strides=2, name="last")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(4, activation="softmax", name="predictions")(x)
    return keras.Model(inputs, x, name="nested")


TAPS = ["backbone/first/relu", "backbone/sum"]


def outputs_of(model, x):
    return {name: to_numpy(value) for name, value in model(x, training=False).items()}


def compiled(model):
    model.compile(
        keras.optimizers.SGD(0.1),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def test_layers_of_nested_models_are_tapped(batch):
    x, y = batch
    base = nested_base()
    expected = to_numpy(base(x))
    model = compiled(ksd.SelfDistiller(base, TAPS, "byot"))
    assert model.taps == TAPS
    outputs = outputs_of(model, x)
    np.testing.assert_array_equal(outputs["final"], expected)
    model.fit(x, y, epochs=1, verbose=0)
    outputs = outputs_of(model, x)
    for name in model.exit_names:
        part = model.exit_model(name)
        np.testing.assert_allclose(to_numpy(part(x)), outputs[name], atol=1e-6)
    assert np.abs(outputs["final"] - expected).max() > 1e-4
    # What was trained is the user's own model, its nested ones included.
    np.testing.assert_allclose(to_numpy(base(x)), outputs["final"], atol=1e-6)


def test_the_final_model_is_the_base():
    base = nested_base()
    final = ksd.SelfDistiller(base, TAPS, "byot").final_model()
    assert final.layers == base.layers
    assert [layer.name for layer in final.layers].count("backbone") == 1
    assert final.count_params() == base.count_params()


def test_an_exit_holds_what_it_needs_alone():
    model = ksd.SelfDistiller(nested_base(), TAPS, "byot", head="linear")
    names = {layer.name for layer in model.exit_model("exit_1").layers}
    assert "last" not in names
    assert "backbone" not in names
    assert "stem" in names


def test_layers_of_one_name_are_told_apart(batch):
    x, _ = batch
    base = nested_base()
    flat = flatten(base)
    renamed = [layer for layer in flat.model.layers if isinstance(layer, Renamed)]
    assert {layer.name for layer in renamed} >= {"backbone_second_conv"}
    np.testing.assert_array_equal(to_numpy(flat.model(x)), to_numpy(base(x)))
    assert flat.model.count_params() == base.count_params()
    assert len(flat.model.trainable_variables) == len(base.trainable_variables)


def test_costs_are_those_of_the_same_layers_side_by_side():
    model = ksd.SelfDistiller(nested_base(), TAPS, "byot")
    # stem, two 3×3 convolutions at 8×8, one at 3×3, the classifier
    by_hand = 64 * 3 * 4 + 2 * 64 * 9 * 4 * 4 + 9 * 9 * 4 * 8 + 8 * 4
    assert ksd.profile(model)["final"].macs == by_hand


def test_exits_are_placed_inside_nested_models():
    model = ksd.SelfDistiller(nested_base(), 2, "byot")
    assert model.taps == ["backbone/first/relu", "backbone/sum"]


def test_a_wrapper_comes_back_from_a_file(batch, tmp_path):
    x, y = batch
    model = compiled(ksd.SelfDistiller(nested_base(), TAPS, "byot"))
    model.fit(x, y, epochs=1, verbose=0)
    model.save(tmp_path / "wrapper.keras")
    loaded = keras.saving.load_model(tmp_path / "wrapper.keras")
    assert loaded.taps == TAPS
    before, after = outputs_of(model, x), outputs_of(loaded, x)
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, atol=1e-6)
    logs = [each.train_on_batch(x, y, return_dict=True) for each in (model, loaded)]
    assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], rel=1e-5)
    part = model.exit_model("exit_2")
    part.save(tmp_path / "exit_2.keras")
    part_loaded = keras.saving.load_model(tmp_path / "exit_2.keras")
    np.testing.assert_allclose(to_numpy(part_loaded(x)), to_numpy(part(x)), atol=1e-6)


def test_a_loaded_base_is_wrapped(batch, tmp_path):
    x, _ = batch
    nested_base().save(tmp_path / "base.keras")
    base = keras.saving.load_model(tmp_path / "base.keras")
    model = ksd.SelfDistiller(base, TAPS, "byot")
    np.testing.assert_array_equal(outputs_of(model, x)["final"], to_numpy(base(x)))


def test_sections_of_a_nested_base(batch):
    x, _ = batch
    model = ksd.SelfDistiller(nested_base(), TAPS, "byot")
    outputs, alive = outputs_of(model, x), [x]
    for section in cut_sections(model.exit_graph):
        found = section(alive)
        alive = found["alive"]
        np.testing.assert_allclose(
            to_numpy(found["output"]), outputs[section.exit_name], atol=1e-6
        )
    fast = ksd.EarlyExit(model, thresholds=2.0)
    np.testing.assert_allclose(fast.predict(x).predictions, outputs["final"], atol=1e-6)
    assert fast.macs_ratios["final"] == pytest.approx(
        ksd.profile(model)["ensemble"].macs_ratio
    )


@pytest.mark.parametrize("training", [None, False, True])
def test_normalisation_follows_the_way_in_which_the_nested_model_is_called(
    batch, training
):
    """As Keras itself does, in training and in inference."""
    x, y = batch
    plain, wrapped = nested_base(training=training), nested_base(training=training)
    wrapped.set_weights(plain.get_weights())
    model = compiled(ksd.SelfDistiller(wrapped, TAPS, "byot", head="linear"))
    compiled(plain)
    expected = to_numpy(plain(x, training=False))
    np.testing.assert_allclose(outputs_of(model, x)["final"], expected, atol=1e-6)
    plain.fit(x, y, verbose=0)
    model.fit(x, y, verbose=0)
    moved = [
        to_numpy(
            base.get_layer("backbone").get_layer("first").get_layer("bn").moving_mean
        )
        for base in (plain, wrapped)
    ]
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-4, atol=1e-6)


def test_preprocessing_and_augmentation_in_front(batch):
    x, y = batch
    pixels = np.clip(128 + 50 * x, 0, 255).astype("uint8")
    front = [layers.Rescaling(1 / 255), layers.RandomFlip("horizontal", seed=1)]
    base = nested_base(front)
    model = compiled(ksd.SelfDistiller(base, 2, "byot"))
    assert all(tap.startswith("backbone/") for tap in model.taps)
    expected = to_numpy(base(pixels, training=False))
    np.testing.assert_allclose(outputs_of(model, pixels)["final"], expected, atol=1e-6)
    logs = model.fit(pixels, y, epochs=6, verbose=0).history["loss"]
    assert logs[-1] < logs[0]


def test_a_nested_model_casts_its_input_as_keras_does():
    inputs = keras.Input((4,), dtype="int32", name="counts")
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(5, name="a")], name="in")
    x = layers.Dense(6, activation="relu", name="b")(inner(inputs))
    base = keras.Model(inputs, layers.Dense(4, name="logits")(x))
    model = ksd.SelfDistiller(base, ["in/a"], "byot", head="linear")
    counts = np.arange(64, dtype="int32").reshape(16, 4)
    np.testing.assert_array_equal(
        outputs_of(model, counts)["final"], to_numpy(base(counts))
    )


def test_each_call_of_a_shared_layer_is_a_tap(batch):
    inputs = keras.Input((8,))
    shared = layers.Dense(8, activation="relu", name="shared")
    x = shared(shared(shared(inputs)))
    base = keras.Model(inputs, layers.Dense(4, name="logits")(x))
    with pytest.raises(ValueError, match=r"called 3 times.*'shared@1', 'shared@2'"):
        ksd.SelfDistiller(base, ["shared"], "byot", head="linear")
    model = ksd.SelfDistiller(base, ["shared@1", "shared@2"], "byot", head="linear")
    assert model.taps == ["shared@1", "shared@2"]
    data = np.random.default_rng(0).normal(size=(5, 8)).astype("float32")
    by_hand = shared(shared(data))
    head = model.get_layer("exit_2_feature")
    seen = keras.Model(model.inputs[0], head.output)
    np.testing.assert_allclose(to_numpy(seen(data)), to_numpy(head(by_hand)), atol=1e-6)
    assert ksd.SelfDistiller(base, 2, "byot", head="linear").taps == model.taps


def test_one_encoder_for_two_inputs():
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    stack = [keras.Input((6,)), layers.Dense(5, "relu", name="hidden")]
    encoder = keras.Sequential(stack, name="encoder")
    x = layers.Concatenate(name="both")([encoder(left), encoder(right)])
    x = layers.Dense(7, "relu", name="joined")(x)
    x = layers.Dense(6, "relu", name="last")(x)
    inputs = {"left": left, "right": right}
    base = keras.Model(inputs, layers.Dense(3, "softmax", name="predictions")(x))
    random = np.random.default_rng(0)
    data = {name: random.normal(size=(9, 6)).astype("float32") for name in inputs}
    model = ksd.SelfDistiller(
        base, ["encoder@2/hidden", "joined"], "byot", head="linear"
    )
    outputs = outputs_of(model, data)
    np.testing.assert_array_equal(outputs["final"], to_numpy(base(data)))
    # The first exit hears the right side alone.
    part = model.exit_model("exit_1")
    assert [tensor.name for tensor in part.inputs] == ["right"]
    np.testing.assert_allclose(
        to_numpy(part(data["right"])), outputs["exit_1"], atol=1e-6
    )
    with pytest.raises(ValueError, match=r"'encoder@1/hidden', 'encoder@2/hidden'"):
        ksd.SelfDistiller(base, ["encoder/hidden"], "byot", head="linear")
    compiled(model).fit(data, np.arange(9) % 3, verbose=0)


def test_inputs_of_a_nested_model_are_given_by_name():
    """In another order than the nested model's own, which Keras goes by."""
    left, right = keras.Input((4,), name="b"), keras.Input((4,), name="a")
    inside = [layers.Dense(3, name="first")(left), layers.Dense(3)(right)]
    inner = keras.Model([left, right], layers.Subtract()(inside), name="inner")
    x, y = keras.Input((4,), name="x"), keras.Input((4,), name="y")
    joined = layers.Dense(5, "relu")(inner({"a": y, "b": x}))
    base = keras.Model([x, y], layers.Dense(2, "softmax")(joined))
    model = ksd.SelfDistiller(base, ["inner/first"], "byot", head="linear")
    data = list(np.random.default_rng(1).normal(size=(2, 3, 4)).astype("float32"))
    np.testing.assert_array_equal(
        outputs_of(model, data)["final"], to_numpy(base(data))
    )
    tapped = inner.get_layer("first")(data[0])
    head = model.get_layer("exit_1_feature")
    seen = keras.Model(model.inputs, head.output)
    np.testing.assert_allclose(
        to_numpy(seen(data)), to_numpy(head(tapped)), rtol=1e-5, atol=1e-6
    )


def test_image_and_metadata(batch):
    x, y = batch
    image, age = keras.Input((8, 8, 3), name="image"), keras.Input((2,), name="age")
    features = layers.GlobalAveragePooling2D()(backbone()(image))
    joined = layers.Concatenate()([features, layers.Dense(3, name="meta")(age)])
    joined = layers.Dense(6, "relu", name="joined")(joined)
    joined = layers.Dense(6, "relu", name="last")(joined)
    outputs = layers.Dense(4, "softmax", name="predictions")(joined)
    base = keras.Model({"image": image, "age": age}, outputs)
    model = compiled(
        ksd.SelfDistiller(base, ["backbone/sum", "joined"], "byot", head="linear")
    )
    data = {"image": x, "age": np.ones((16, 2), "float32")}
    logs = model.fit(data, y, epochs=3, verbose=0).history["loss"]
    assert logs[-1] < logs[0]
    found = outputs_of(model, data)
    np.testing.assert_allclose(found["final"], to_numpy(base(data)), atol=1e-6)
    fast = ksd.EarlyExit(model, thresholds=2.0).predict(data)
    np.testing.assert_allclose(fast.predictions, found["final"], atol=1e-5)


def test_a_nested_model_with_several_outputs(batch):
    x, _ = batch
    inputs = keras.Input((8, 8, 3))
    low = layers.Conv2D(4, 3, padding="same", name="low")(inputs)
    high = layers.Conv2D(4, 3, padding="same", name="high")(low)
    pyramid = keras.Model(inputs, {"low": low, "high": high}, name="pyramid")
    image = keras.Input((8, 8, 3))
    both = pyramid(image)
    joined = layers.Add(name="joined")([both["low"], both["high"]])
    pooled = layers.GlobalAveragePooling2D()(joined)
    base = keras.Model(image, layers.Dense(4, "softmax", name="p")(pooled))
    model = ksd.SelfDistiller(base, ["pyramid/low"], "byot")
    np.testing.assert_array_equal(outputs_of(model, x)["final"], to_numpy(base(x)))


def test_an_external_teacher_may_be_nested(batch):
    x, y = batch
    recipe = ksd.recipes.BYOT(external_weight=1.0)
    teacher, base = nested_base(), nested_base()
    model = compiled(ksd.SelfDistiller(base, TAPS, recipe, teacher=teacher))
    before = to_numpy(teacher(x))
    assert model.train_on_batch(x, y, return_dict=True)["external_loss"] > 0
    np.testing.assert_array_equal(to_numpy(teacher(x)), before)


def test_freeze_reaches_nested_models(batch):
    x, y = batch
    base = nested_base()
    before = to_numpy(base(x))
    model = compiled(ksd.SelfDistiller(base, TAPS, "byot", freeze="base"))
    model.fit(x, y, epochs=2, verbose=0)
    np.testing.assert_array_equal(to_numpy(base(x)), before)


@pytest.mark.parametrize("pooling", [None, "avg"])
def test_a_classifier_is_added(batch, tmp_path, pooling):
    x, y = batch
    features = backbone()
    if pooling:
        pooled = layers.GlobalAveragePooling2D()(features.output)
        features = keras.Model(features.input, pooled, name="pooled")
    model = ksd.SelfDistiller(features, ["first/relu"], "byot", classes=4)
    compiled(model).fit(x, y, verbose=0)
    outputs = outputs_of(model, x)
    assert outputs["final"].shape == (16, 4)
    np.testing.assert_allclose(outputs["final"].sum(axis=-1), 1, rtol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(outputs_of(loaded, x)["final"], outputs["final"])


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        (1, ValueError, "at least 2"),
        (2.5, TypeError, "an integer"),
        (True, TypeError, "an integer"),
        (4, ValueError, "is a classifier already"),
    ],
)
def test_a_classifier_that_cannot_be_added(classes, error, message):
    with pytest.raises(error, match=message):
        ksd.SelfDistiller(nested_base(), TAPS, "byot", classes=classes)


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("backbone", "tapped at one of its layers.*'backbone/sum'"),
        ("sum", "Did you mean 'backbone/sum'"),
        ("backbone/sun", "Did you mean 'backbone/sum'"),
    ],
)
def test_a_path_that_leads_nowhere(tap, message):
    with pytest.raises(ValueError, match=message):
        ksd.SelfDistiller(nested_base(), [tap], "byot")


def test_a_model_with_a_call_of_its_own_stays_whole(batch):
    class Doubled(keras.Model):
        def __init__(self):
            super().__init__(name="doubled")
            self.dense = layers.Dense(5)

        def call(self, inputs):
            return 2 * self.dense(inputs)

    inputs = keras.Input((4,))
    x = layers.Dense(5, name="before")(inputs)
    x = layers.Dense(6, name="after")(Doubled()(x))
    base = keras.Model(inputs, layers.Dense(3, name="logits")(x))
    flat = flatten(base)
    assert flat.model is base
    assert "doubled" in flat.calls
