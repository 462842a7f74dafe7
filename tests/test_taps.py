"""Where taps are placed."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.classifier import find_classifier
from keras_selfdistill.exits import node_costs
from keras_selfdistill.taps import block_ends


def ends_of(base):
    feature = find_classifier(base).feature
    return {
        name: share for name, _, share in block_ends(base, feature, node_costs(base))
    }


def chosen(base, taps):
    return ksd.SelfDistiller(base, taps, "byot").taps


def test_the_papers_taps_are_found_by_number():
    base = ksd.networks.resnet18(width_multiplier=0.125)
    assert chosen(base, 3) == [f"stage{i}_block2_out" for i in (1, 2, 3)]
    base = ksd.networks.vgg19_bn(width_multiplier=0.125)
    assert set(chosen(base, 3)) <= set(ends_of(base))


@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("ResNet50", ["conv3_block1_out", "conv4_block1_out", "conv4_block5_out"]),
        ("ResNet50V2", None),
        ("MobileNetV2", None),
        ("DenseNet121", None),
        ("EfficientNetB0", None),
        ("VGG16", None),
    ],
)
def test_applications_are_tapped_at_block_ends(name, taps):
    make = getattr(keras.applications, name)
    base = make(weights=None, input_shape=(64, 64, 3), classes=10)
    found = chosen(base, 3)
    assert len(set(found)) == 3
    shares = [ends_of(base)[tap] for tap in found]
    assert shares == sorted(shares)
    # Nowhere is a block end nearer to a quarter, a half or three quarters.
    for share, target in zip(shares, (0.25, 0.5, 0.75), strict=True):
        nearest = min(abs(other - target) for other in ends_of(base).values())
        assert abs(share - target) == pytest.approx(nearest)
    if taps:
        assert found == taps


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


def test_placing_is_stable():
    def base():
        return ksd.networks.resnet50(width_multiplier=0.125)

    assert chosen(base(), 5) == chosen(base(), 5)


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
    end = find_classifier(base)
    assert end.feature.shape == (None, 256)
    assert {output.shape for output in model.output.values()} == {(None, 7)}
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3))
    logits = keras.Model(base.input, end.logits).predict(x, verbose=0)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(keras.ops.softmax(logits)),
        base.predict(x, verbose=0),
        atol=1e-6,
    )
