"""Where taps are placed."""

import keras
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
