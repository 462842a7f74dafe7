"""What heads may cost."""

import dataclasses
import math
import random

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from keras_selfdistill.costs.counting import model_macs
from keras_selfdistill.exits.head_budget import features_macs, features_within_budget
from keras_selfdistill.heads import Bottleneck, Linear, Target
from tests.conftest import small_base

pytestmark = pytest.mark.once


def wrapped(name, **options):
    """A network of keras.applications at the size for which the budget is stated."""
    make = getattr(keras.applications, name)
    base = make(weights=None, input_shape=(224, 224, 3), classes=10)
    model = ksd.SelfDistiller(base, 3, "byot", **options)
    return model, model_macs(model)[0] / model_macs(base)[0]


def bottleneck_macs(size, channels, last, middle, width):
    """The multiply-adds of one bottleneck, by hand."""
    strides = [-(-length // end) for length, end in zip(size, last, strict=True)]
    patches = math.prod(
        -(-length // stride) for length, stride in zip(size, strides, strict=True)
    )
    pixels = math.prod(strides)
    return patches * middle * (pixels * (channels + middle) + width)


@pytest.mark.parametrize("size", [(8, 8), (9, 14), (4, 4)])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_the_cost_of_a_bottleneck_is_that_of_its_layers(size, data_format):
    shape = (*size, 6) if data_format == "channels_last" else (6, *size)
    inputs = keras.Input(shape)
    base = keras.Model(inputs, keras.layers.Activation("relu")(inputs))
    target = Target(10, (2, 4), 16, data_format)
    features = Bottleneck(reduction=2).features({"exit_1": base.outputs[0]}, target)
    expected = bottleneck_macs(size, 6, (2, 4), 8, 10)
    assert features_macs(base, features) == (expected, ())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wide(ksd.heads.Head):
    """A head of one's own, with nothing said of its cost."""

    units: int = 4096

    def __call__(self, tap, target, *, name, dtype=None):
        x = keras.layers.GlobalAveragePooling2D(name=f"{name}_mean")(tap)
        x = keras.layers.Dense(self.units, name=f"{name}_wide")(x)
        return keras.layers.Dense(target.width, name=f"{name}_feature")(x)

    def narrower(self):
        return Wide(units=self.units // 2) if self.units > 1 else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class WideRecipe(ksd.recipes.BYOT):
    head = Wide()


def test_a_head_of_ones_own_is_counted_and_narrowed():
    base = small_base()
    readers = {layer.name: len(layer._outbound_nodes) for layer in base.layers}
    model = ksd.SelfDistiller(base, ["stem_relu", "out_1"], WideRecipe())
    of_base = model_macs(base).macs

    def added(units):
        heads = sum(channels * units + units * 16 for channels in (8, 8))
        return heads + 2 * 16 * 4

    units = 4096
    while added(units) > 0.15 * of_base:
        units //= 2
    assert 1 < units < 4096
    assert model.head == Wide(units=units)
    # Heads that were built to be counted leave nothing behind.
    assert {layer.name: len(layer._outbound_nodes) for layer in base.layers} == readers


def test_heads_that_are_dropped_change_no_weights():
    weights, head = [], None
    for recipe in (WideRecipe(), ksd.recipes.BYOT()):
        base = small_base()
        keras.utils.set_random_seed(0)
        model = ksd.SelfDistiller(base, ["stem_relu", "out_1"], recipe, head=head)
        weights.append(model.get_layer("exit_2_logits").get_weights()[0])
        head = model.head  # In the second round as asked for, without a search.
    np.testing.assert_array_equal(*weights)


def test_heads_narrow_until_within_budget(caplog):
    with caplog.at_level("INFO", logger="absl"):
        model, ratio = wrapped("MobileNetV3Small")
    assert 1 < ratio <= 1.15
    # Information, where someone looks for it: no warning at first contact.
    told = [each for each in caplog.records if "adds" in each.getMessage()]
    assert [each.levelname for each in told] == ["INFO"]
    assert repr(model.head) in told[0].getMessage()
    assert f"adds {100 * (ratio - 1):.0f} %" in told[0].getMessage()
    assert "recipe's own Bottleneck(reduction=4)" in told[0].getMessage()
    reduction = model.head.reduction
    assert reduction > 4
    _, dearer = wrapped("MobileNetV3Small", head=Bottleneck(reduction=reduction // 2))
    assert dearer > 1.15
    # The file says which head it was: nothing is decided again.
    copy = ksd.SelfDistiller.from_config(model.get_config())
    assert copy.head == model.head


def narrowed_at_two_taps():
    """A base whose wide end makes bottlenecks of 4 too expensive, and its head."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(16, 3, padding="same", name="conv_1")(inputs)
    x = keras.layers.Conv2D(16, 3, strides=2, padding="same", name="conv_2")(x)
    x = keras.layers.Conv2D(16, 3, padding="same", name="conv_3")(x)
    x = keras.layers.Conv2D(128, 1, name="wide")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    base = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    head = ksd.SelfDistiller(base, 2).head
    assert head.reduction > 4
    return base, head


def test_narrowed_heads_are_in_the_suggestion_and_in_the_report(capsys):
    base, head = narrowed_at_two_taps()
    keras.utils.set_random_seed(0)
    before = random.getstate()
    taps = ksd.suggest_taps(base, 2)
    assert random.getstate() == before  # The next initial weights are the same.
    own = "Bottleneck(reduction=4)"
    note = f"heads: {head} with the default recipe, whose own is {own}."
    assert str(taps).splitlines()[-2:] == ["", note]
    model = ksd.SelfDistiller(base, taps)
    data = np.zeros((2, 8, 8, 3), "float32"), np.zeros(2, int)
    report = ksd.report(model, data, repeats=0, verbose=0)
    assert f"heads: {head}; the recipe's own: {own}." in str(report).splitlines()
    with_own = ksd.SelfDistiller(base, taps, head="bottleneck")
    assert "heads:" not in str(ksd.report(with_own, data, repeats=0, verbose=0))


def test_heads_that_are_not_narrowed_are_not_mentioned(base):
    assert ksd.suggest_taps(base, 2).heads == ""
    table = keras.Sequential([keras.Input((8,)), *map(keras.layers.Dense, (4, 4, 3))])
    assert ksd.suggest_taps(table, 1).heads == (
        "Linear() with the default recipe, whose own is Bottleneck(reduction=4)"
    )


def test_the_default_recipe_is_byot(base):
    model = ksd.SelfDistiller(base, ["out_1"])
    assert model.recipe == ksd.recipes.BYOT()
    assert model.head == ksd.heads.get(ksd.recipes.BYOT.head)


@pytest.mark.parametrize("name", ["BYOT", "Byot", "byott"])
def test_a_recipe_in_other_letters(base, name):
    with pytest.raises(ValueError, match=rf"recipe.*{name!r}.*Did you mean 'byot'\?"):
        ksd.SelfDistiller(base, ["out_1"], recipe=name)


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
    class Unknown(keras.layers.Layer):
        def call(self, x):
            return keras.ops.fft2((x, x))[0]

        def compute_output_shape(self, shape):
            return shape

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Fourier(Wide):
        def __call__(self, tap, target, *, name, dtype=None):
            return super().__call__(Unknown()(tap), target, name=name, dtype=dtype)

    head, taps = Fourier(), {"exit_1": (base := small_base()).get_layer("out_1").output}
    target = Target(16, (4, 4), 16)
    found, features = features_within_budget(base, head, taps, target, 4)
    assert found is head
    assert features_macs(base, features).unknown
    assert Linear().narrower() is None
    assert Bottleneck(reduction=64).narrower() is None
