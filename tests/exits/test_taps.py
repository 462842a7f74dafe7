"""Where taps are placed."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.exits.block_ends import block_ends
from keras_selfdistill.exits.placement import node_costs
from keras_selfdistill.graph.ends.base_end import find_base_end
from keras_selfdistill.graph.flatten import flatten

pytestmark = pytest.mark.once


def ends_of(base):
    feature = find_base_end(base).feature
    ends = block_ends(flatten(base), feature, node_costs(base))
    return {name: share for name, _, share in ends}


def chosen(base, taps):
    return ksd.SelfDistiller(base, taps, "byot").taps


def test_the_papers_taps_are_found_by_number():
    base = ksd.networks.resnet18(width_multiplier=0.125)
    assert chosen(base, 3) == [f"stage{i}_block2_out" for i in (1, 2, 3)]


def test_no_block_is_cut_in_the_middle():
    base = keras.applications.ResNet50V2(
        weights=None, input_shape=(64, 64, 3), classes=10
    )
    inside = [name for name in ends_of(base) if "block" in name]
    assert inside
    assert all(name.endswith("_out") for name in inside)
    base = keras.applications.ResNet50(
        weights=None, input_shape=(64, 64, 3), classes=10
    )
    inside = [name for name in ends_of(base) if "block" in name]
    assert all(name.endswith("_out") for name in inside)
    assert len(inside) == 15  # All sixteen blocks but the last, which the final reads.


def test_a_block_of_a_plain_stack_ends_behind_its_activation_and_pooling():
    base = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(4, 3, padding="same", name="conv_1"),
            layers.BatchNormalization(name="bn_1"),
            layers.ReLU(name="relu_1"),
            layers.MaxPooling2D(name="pool_1"),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="conv_2"),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="conv_3"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    assert list(ends_of(base)) == ["pool_1", "conv_2"]
    first, second = 256 * 27 * 4, 64 * 36 * 8
    total = first + second + 64 * 72 * 8 + 8 * 3
    assert ends_of(base)["pool_1"] == pytest.approx(first / total)
    assert ends_of(base)["conv_2"] == pytest.approx((first + second) / total)


def test_each_call_of_a_layer_is_a_block_end():
    inputs = keras.Input((8, 8, 4))
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    x = shared(shared(inputs))
    x = layers.Conv2D(4, 3, padding="same", name="single")(x)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(x))
    base = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    model = ksd.SelfDistiller(base, 1, "byot")
    assert model.taps == ["shared@2"]
    assert ksd.SelfDistiller.from_config(model.get_config()).taps == ["shared@2"]


def test_the_spatial_input_of_several_is_found():
    image, table = keras.Input((8, 8, 3)), keras.Input((4,))
    x = layers.Conv2D(8, 3, padding="same", name="tap")(image)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, strides=2)(x))
    x = layers.Concatenate()([layers.Dense(4)(table), x])
    base = keras.Model([image, table], layers.Dense(3, activation="softmax")(x))
    model = ksd.SelfDistiller(base, ["tap"], "byot")
    assert model.get_layer("exit_1_reduce").units == 2  # A quarter of 8 channels.
    assert model.get_layer("exit_1_expand").units == 12


def test_the_base_keeps_its_own_layers_and_answers(base, batch):
    before = base.predict(batch[0], verbose=0)
    layers_before, config = list(base.layers), base.get_config()
    ksd.SelfDistiller(base, 2, "byot")
    assert base.layers == layers_before
    assert base.get_config() == config
    assert (base.predict(batch[0], verbose=0) == before).all()


def test_sums_and_activations_written_as_operations_can_be_tapped(tmp_path):
    image = keras.Input((8, 8, 3), name="image")
    table = keras.Input((4,), name="table")
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(image)
    x = keras.ops.relu(layers.Conv2D(8, 3, padding="same", name="branch")(x) + x)
    tap = x._keras_history.operation.name
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, strides=2)(x))
    x = layers.Concatenate()([x, layers.Dense(4)(table)])
    outputs = layers.Dense(3, activation="softmax")(x)
    base = keras.Model({"image": image, "table": table}, outputs)
    model = ksd.SelfDistiller(base, [tap], "byot")
    data = {"image": np.zeros((2, 8, 8, 3)), "table": np.zeros((2, 4))}
    expected = model.predict(data, verbose=0)
    # An exit that does not read the table does not ask for it.
    assert [tensor.name for tensor in model.exit_model("exit_1").inputs] == ["image"]
    alone = model.exit_model("exit_1").predict(data["image"], verbose=0)
    np.testing.assert_allclose(alone, expected["exit_1"], atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").predict(data, verbose=0)
    np.testing.assert_allclose(loaded["exit_1"], expected["exit_1"], atol=1e-6)


def test_a_classifier_that_is_a_convolution():
    base = keras.applications.MobileNet(
        weights=None, input_shape=(32, 32, 3), classes=7, alpha=0.25
    )
    model = ksd.SelfDistiller(base, 2, "byot")
    # Of the size of the last map, not of the single pixel that pooling keeps.
    assert ksd.profile(model)["exit_1"].parameters < base.count_params()
    end = find_base_end(base)
    assert end.feature.shape == (None, 256)
    assert {output.shape for output in model.output.values()} == {(None, 7)}
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3))
    logits = keras.Model(base.input, end.logits).predict(x, verbose=0)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(keras.ops.softmax(logits)),
        base.predict(x, verbose=0),
        atol=1e-6,
    )


def test_a_softmax_that_is_reshaped():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="tap")(inputs)
    x = layers.GlobalAveragePooling2D(keepdims=True)(layers.Conv2D(8, 3)(x))
    x = layers.Activation("softmax")(layers.Conv2D(4, 1)(x))
    base = keras.Model(inputs, layers.Reshape((4,))(x))
    end = find_base_end(base)
    assert end.logits.shape == (None, 4)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    logits = keras.Model(base.input, end.logits).predict(images, verbose=0)
    rows = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(rows, base.predict(images, verbose=0), atol=1e-6)


def test_an_explicit_linear_end_of_a_layer_unknown_to_us():
    class Scores(layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], 3))

        def call(self, x):
            return keras.ops.matmul(x, self.kernel)

    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="tap")(inputs)
    x = Scores()(layers.GlobalAveragePooling2D()(x))
    with pytest.raises(ValueError, match=r"Activation\('linear'\)"):
        find_base_end(keras.Model(inputs, x))
    base = keras.Model(inputs, layers.Activation("linear")(x))
    assert find_base_end(base).task.activation == "linear"
