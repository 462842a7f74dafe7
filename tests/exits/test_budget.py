"""What heads may cost."""

import keras
import pytest

import keras_selfdistill as ksd
from keras_selfdistill.costs.counting import model_macs
from keras_selfdistill.heads import Bottleneck, Linear, Target

pytestmark = pytest.mark.once


def wrapped(name, **options):
    """A network of keras.applications at the size for which the budget is stated."""
    make = getattr(keras.applications, name)
    base = make(weights=None, input_shape=(224, 224, 3), classes=10)
    model = ksd.SelfDistiller(base, 3, "byot", **options)
    return model, model_macs(model)[0] / model_macs(base)[0]


@pytest.mark.parametrize("size", [(8, 8), (9, 14), (4, 4)])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_the_cost_of_a_bottleneck_is_that_of_its_layers(size, data_format):
    shape = (*size, 6) if data_format == "channels_last" else (6, *size)
    tap = keras.Input(shape)
    target = Target(10, (2, 4), 16, data_format)
    head = Bottleneck(reduction=2)
    model = keras.Model(tap, head(tap, target, name="e"))
    assert head.macs(tap, target) == model_macs(model)[0]


def test_heads_narrow_until_they_are_affordable():
    model, ratio = wrapped("MobileNetV3Small")
    assert 1 < ratio <= 1.15
    reduction = model.head.reduction
    assert reduction > 4
    _, dearer = wrapped("MobileNetV3Small", head=Bottleneck(reduction=reduction // 2))
    assert dearer > 1.15
    # The file says which head it was: nothing is decided again.
    copy = ksd.SelfDistiller.from_config(model.get_config())
    assert copy.head == model.head


def test_a_head_that_is_asked_for_is_left_alone():
    model, ratio = wrapped("MobileNetV3Small", head="bottleneck")
    assert model.head == Bottleneck(reduction=4)
    assert ratio > 1.15


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "vgg19_bn"])
def test_the_papers_networks_keep_the_papers_head(name):
    base = ksd.networks.NETWORKS[name](width_multiplier=0.5)
    assert ksd.SelfDistiller(base, 3, "byot").head == Bottleneck(reduction=4)


def test_a_toy_keeps_its_head():
    """Even the narrowest would cost too much of so little."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 1, name="tap")(inputs)
    x = keras.layers.Conv2D(512, 1, strides=8)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    base = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    assert ksd.SelfDistiller(base, ["tap"], "byot").head == Bottleneck()


def test_heads_of_unknown_cost_are_never_replaced():
    assert Linear().macs(keras.Input((4,)), Target(4, (), 4)) is None
    assert Linear().narrower() is None
    assert Bottleneck(reduction=64).narrower() is None
    unsized = keras.Input((None, None, 3))
    assert Bottleneck().macs(unsized, Target(4, (2, 2), 4)) is None
    assert Bottleneck().macs(keras.Input((3,)), Target(4, (2, 2), 4)) is None
