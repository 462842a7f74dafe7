"""The networks against parameter counts published or derived without Keras."""

import doctest
import functools
import inspect

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from keras_selfdistill import networks
from keras_selfdistill.networks import builder, pyramidnet

pytestmark = pytest.mark.once

TINY = {"width_multiplier": 0.125, "classes": 10}
FAMILIES = ["resnet18", "resnet50", "vgg19_bn", "wide_resnet20_8", "resnext29_8"]


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def conv(kernel, inputs, outputs, groups=1):
    return kernel * kernel * (inputs // groups) * outputs


def conv_bn(kernel, inputs, outputs, groups=1):
    return conv(kernel, inputs, outputs, groups) + 2 * outputs


def resnet_count(depths, *, inner, expansion, groups=1, bottleneck=True, classes=100):
    """Counts trainable parameters by hand; `inner` is the first stage's width."""
    channels, total = 64, conv_bn(3, 3, 64)
    for stage, depth in enumerate(depths):
        width = inner * 2**stage
        outputs = int(width * expansion)
        for _ in range(depth):
            if bottleneck:
                total += conv_bn(1, channels, width)
                total += conv_bn(3, width, width, groups)
                total += conv_bn(1, width, outputs)
            else:
                total += conv_bn(3, channels, width) + conv_bn(3, width, outputs)
            if channels != outputs:
                total += conv_bn(1, channels, outputs)
            channels = outputs
    return total + channels * classes + classes


def wide_resnet_count(blocks, factor, classes=100):
    channels, total = 16, conv(3, 3, 16)
    for stage in range(3):
        width = 16 * factor * 2**stage
        for _ in range(blocks):
            total += 2 * channels + conv(3, channels, width)
            total += 2 * width + conv(3, width, width)
            if channels != width:
                total += conv(1, channels, width)
            channels = width
    return total + 2 * channels + channels * classes + classes


def vgg19_count(classes=100):
    channels, total = 3, 0
    for width in [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8:
        total += conv_bn(3, channels, width)
        channels = width
    return total + channels * classes + classes


def pyramidnet_count(blocks, widening, classes=100):
    channels, total = 16, conv_bn(3, 3, 16)
    for block in range(1, 3 * blocks + 1):
        width = round(16 + block * widening / (3 * blocks))
        total += 2 * channels  # The block's first batch normalization.
        total += conv_bn(1, channels, width)
        total += conv_bn(3, width, width)
        total += conv_bn(1, width, 4 * width)
        channels = 4 * width
    return total + 2 * channels + channels * classes + classes


BY_HAND = {
    "resnet18": resnet_count((2, 2, 2, 2), inner=64, expansion=1, bottleneck=False),
    "resnet34": resnet_count((3, 4, 6, 3), inner=64, expansion=1, bottleneck=False),
    "resnet50": resnet_count((3, 4, 6, 3), inner=64, expansion=4),
    "resnet101": resnet_count((3, 4, 23, 3), inner=64, expansion=4),
    "resnet152": resnet_count((3, 8, 36, 3), inner=64, expansion=4),
    "vgg19_bn": vgg19_count(),
    "wide_resnet20_8": wide_resnet_count(3, 8),
    "wide_resnet28_12": wide_resnet_count(4, 12),
    "wide_resnet44_8": wide_resnet_count(7, 8),
    "resnext29_8": resnet_count((3, 3, 3), inner=512, expansion=0.5, groups=8),
    "pyramidnet101_240": pyramidnet_count(11, 240),
}

# As printed by widely used PyTorch implementations of the same papers.
PUBLISHED = {
    "resnet18": (BY_HAND["resnet18"], 11_220_132),
    "resnet34": (BY_HAND["resnet34"], 21_328_292),
    "resnet50": (BY_HAND["resnet50"], 23_705_252),
    "resnet101": (BY_HAND["resnet101"], 42_697_380),
    # kuangliu/pytorch-cifar counts 20,040,522; 5,504 of them are convolution biases.
    "vgg19_bn, 10 classes": (vgg19_count(classes=10), 20_040_522 - 5_504),
    "WRN-28-10, 10 classes": (wide_resnet_count(4, 10, classes=10), 36_479_194),
    "ResNeXt-29 8x64d, 10 classes": (
        BY_HAND["resnext29_8"] - 90 * (1024 + 1),
        34_426_698,
    ),
    # Of the authors' definition, depth 101, alpha 240, bottleneck.
    "pyramidnet101_240": (BY_HAND["pyramidnet101_240"], 13_688_174),
}


@pytest.fixture
def cheap_weights(monkeypatch):
    """Zeros: random numbers for 50 million weights would take most of the time."""
    zeros = keras.initializers.Zeros()
    for initializer in (keras.initializers.HeNormal, keras.initializers.GlorotUniform):
        monkeypatch.setattr(initializer, "__call__", zeros.__call__)


def test_every_network_is_counted_by_hand():
    assert set(BY_HAND) == set(networks.NETWORKS)


@pytest.mark.parametrize("name", networks.NETWORKS)
@pytest.mark.usefixtures("cheap_weights")
def test_parameters_equal_the_count_by_hand(name):
    assert trainable(networks.NETWORKS[name]()) == BY_HAND[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_count_by_hand_equals_the_published_count(name):
    by_hand, published = PUBLISHED[name]
    assert by_hand == published


@pytest.mark.parametrize("name", FAMILIES)
def test_model_maps_images_to_probabilities(name):
    model = networks.NETWORKS[name](**TINY)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    probabilities = model.predict_on_batch(images)
    assert model.name == name
    assert [layer.name for layer in model.layers[-2:]] == ["avg_pool", "predictions"]
    assert probabilities.shape == (2, 10)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_config_round_trip_keeps_names_and_shapes(name):
    model = networks.NETWORKS[name](**TINY)
    clone = keras.Model.from_config(model.get_config())
    assert [layer.name for layer in clone.layers] == [x.name for x in model.layers]
    assert [w.shape for w in clone.weights] == [w.shape for w in model.weights]


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        (
            "resnet50",
            {
                "stage1_block3_out": (32, 32, 256),
                "stage2_block4_out": (16, 16, 512),
                "stage3_block6_out": (8, 8, 1024),
                "stage4_block3_out": (4, 4, 2048),
            },
        ),
        ("vgg19_bn", {"stage1_pool": (16, 16, 64), "stage5_pool": (1, 1, 512)}),
        (
            "wide_resnet20_8",
            {"stage1_block3_out": (32, 32, 128), "stage3_block3_out": (8, 8, 512)},
        ),
        (
            "resnext29_8",
            {"stage1_block3_out": (32, 32, 256), "stage3_block3_out": (8, 8, 1024)},
        ),
    ],
)
def test_named_layers_have_the_papers_shapes(name, shapes):
    model = networks.NETWORKS[name](**TINY)
    eighth = {tap: (*hw, channels // 8) for tap, (*hw, channels) in shapes.items()}
    assert {tap: model.get_layer(tap).output.shape[1:] for tap in shapes} == eighth


class Reference:
    """A network's blocks once more in NumPy, written from the papers."""

    def __init__(self, model):
        self.model = model

    def conv(self, x, name, stride=1, groups=1):
        kernel = self.model.get_layer(name).get_weights()[0]
        size, filters = len(kernel), kernel.shape[-1]
        pad = size // 2
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
        windows = windows[:, ::stride, ::stride]
        parts = zip(
            np.split(windows, groups, axis=3),
            np.split(kernel, groups, axis=3),
            strict=True,
        )
        y = [np.einsum("nhwcij,ijcf->nhwf", *part) for part in parts]
        assert sum(part.shape[-1] for part in y) == filters
        return np.concatenate(y, axis=-1)

    def bn(self, x, name):
        gamma, beta, mean, variance = self.model.get_layer(name).get_weights()
        return gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta

    def shortcut(self, x, block):
        x = self.conv(x, f"{block}_shortcut_conv", stride=2)
        return self.bn(x, f"{block}_shortcut_bn")

    def basic(self, x, block):
        y = self.conv(x, f"{block}_first_conv", stride=2)
        y = relu(self.bn(y, f"{block}_first_bn"))
        y = self.bn(self.conv(y, f"{block}_last_conv"), f"{block}_last_bn")
        return relu(self.shortcut(x, block) + y)

    def bottleneck(self, x, block, groups=1):
        y = relu(self.bn(self.conv(x, f"{block}_first_conv"), f"{block}_first_bn"))
        y = self.conv(y, f"{block}_middle_conv", stride=2, groups=groups)
        y = relu(self.bn(y, f"{block}_middle_bn"))
        y = self.bn(self.conv(y, f"{block}_last_conv"), f"{block}_last_bn")
        return relu(self.shortcut(x, block) + y)

    def resnext(self, x, block):
        return self.bottleneck(x, block, groups=8)

    def wide(self, x, block):
        active = relu(self.bn(x, f"{block}_first_bn"))
        y = self.conv(active, f"{block}_first_conv", stride=2)
        y = self.conv(relu(self.bn(y, f"{block}_last_bn")), f"{block}_last_conv")
        return self.conv(active, f"{block}_shortcut_conv", stride=2) + y

    def pyramid(self, x, block):
        y = self.conv(self.bn(x, f"{block}_first_bn"), f"{block}_first_conv")
        y = relu(self.bn(y, f"{block}_middle_bn"))
        y = relu(
            self.bn(self.conv(y, f"{block}_middle_conv", stride=2), f"{block}_last_bn")
        )
        y = self.bn(self.conv(y, f"{block}_last_conv"), f"{block}_end_bn")
        count, height, width, channels = x.shape
        pooled = x.reshape(count, height // 2, 2, width // 2, 2, channels)
        y[..., :channels] += pooled.mean(axis=(2, 4))
        return y


def relu(x):
    return np.maximum(x, 0)


def randomize_batch_normalization(model, rng):
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.gamma.shape
            layer.set_weights([rng.uniform(0.5, 1.5, shape) for _ in range(4)])


def shallow_pyramidnet(**options):
    """Returns three blocks, since compilers take their time for 33."""
    features = functools.partial(pyramidnet._pyramidnet, blocks=1, widening=48)
    features.__name__ = "shallow"
    return builder.network(features)(classes=10, **options)


@pytest.mark.parametrize(
    ("name", "block", "kind"),
    [
        ("resnet18", 2, "basic"),
        ("resnet50", 3, "bottleneck"),
        ("wide_resnet20_8", 3, "wide"),
        ("resnext29_8", 3, "resnext"),
        ("pyramidnet101_240", 1, "pyramid"),
    ],
)
def test_strided_block_equals_the_papers_formula(name, block, kind):
    build = networks.NETWORKS[name]
    model = shallow_pyramidnet() if kind == "pyramid" else build(**TINY)
    rng = np.random.default_rng(1)
    randomize_batch_normalization(model, rng)
    before = model.get_layer(f"stage1_block{block}_out").output
    after = model.get_layer("stage2_block1_out").output
    x = rng.normal(size=(2, *before.shape[1:])).astype("float32")
    expected = getattr(Reference(model), kind)(x, "stage2_block1")
    actual = keras.ops.convert_to_numpy(keras.Model(before, after)(x))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("cheap_weights")
def test_width_multiplier_rounds_to_multiples_of_eight():
    widths = {
        layer.filters
        for layer in networks.resnet18(width_multiplier=0.2).layers
        if isinstance(layer, keras.layers.Conv2D)
    }
    assert widths == {16, 24, 48, 104}  # 12.8, 25.6, 51.2, 102.4
    assert networks.resnet18(width_multiplier=0.01).get_layer("stem_conv").filters == 8


def test_logits_without_activation():
    logits = networks.resnet18(classifier_activation=None, **TINY)
    assert logits.get_layer("predictions").activation is keras.activations.linear


def test_predictions_stay_in_float32_under_mixed_precision():
    policy = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        model = networks.resnet18(**TINY)
    finally:
        keras.config.set_dtype_policy(policy)
    assert model.get_layer("avg_pool").compute_dtype == "bfloat16"
    assert model.output.dtype == "float32"


def test_batch_normalization_follows_the_papers():
    for layer in networks.wide_resnet20_8(**TINY).layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)
        if isinstance(layer, keras.layers.Conv2D):
            assert not layer.use_bias


def test_weights_may_be_drawn_as_by_the_papers_code():
    """Variances by hand: a truncated draw has no value beyond two deviations."""
    keras.utils.set_random_seed(0)
    model = networks.resnext29_8(width_multiplier=0.25, paper_initialization=True)
    plain = networks.resnext29_8(width_multiplier=0.25)
    for name, outputs in (("stage1_block1_first", 128), ("stage2_block1_middle", 256)):
        layer, other = (each.get_layer(f"{name}_conv") for each in (model, plain))
        kernel, truncated = layer.get_weights()[0], other.get_weights()[0]
        positions = kernel.shape[0] * kernel.shape[1]
        deviation = (2 / (outputs * positions)) ** 0.5
        assert kernel.std() == pytest.approx(deviation, rel=0.05)
        assert np.abs(kernel).max() > 3 * deviation
        assert np.abs(truncated).max() < 2.4 * truncated.std()
    kernel, bias = model.get_layer("predictions").get_weights()
    limit = kernel.shape[0] ** -0.5
    for each in (kernel, bias):
        assert 0.9 * limit < np.abs(each).max() <= limit
    assert kernel.std() == pytest.approx(limit / 3**0.5, rel=0.05)
    copied = keras.models.clone_model(model).get_layer("predictions").get_weights()
    assert 0.9 * limit < np.abs(copied[1]).max() <= limit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 1}, "classes=1; expected at least 2"),
        ({"width_multiplier": 0}, "width_multiplier=0; expected a number above 0"),
        ({"input_shape": (32, 32)}, r"input_shape=\(32, 32\); expected \(height"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        networks.resnet18(**arguments)


def test_help_shows_the_arguments_and_the_examples_hold():
    assert list(inspect.signature(networks.resnet34).parameters) == [
        "input_shape",
        "classes",
        "width_multiplier",
        "classifier_activation",
        "paper_initialization",
        "name",
    ]
    for module in (networks.resnet, networks.taps):
        result = doctest.testmod(module)
        assert result.attempted > 0
        assert result.failed == 0


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("resnet18", (2, 2, 2)),
        ("resnet34", (3, 4, 6)),
        ("resnet50", (3, 4, 6)),
        ("wide_resnet20_8", (3, 3)),
    ],
)
def test_the_papers_exits_lie_at_the_ends_of_stages(name, ends):
    expected = [f"stage{i}_block{end}_out" for i, end in enumerate(ends, start=1)]
    assert networks.stage_ends(networks.NETWORKS[name](**TINY)) == expected


def test_a_network_without_stages_has_no_ends_of_them():
    pools = [f"stage{i}_pool" for i in range(1, 5)]
    assert networks.stage_ends(networks.vgg19_bn(**TINY)) == pools
    with pytest.raises(ValueError, match="'other', without stages; expected a network"):
        networks.stage_ends(keras.Sequential([keras.Input((2,))], name="other"))


@pytest.mark.long
def test_a_pyramidnet_learns_at_its_stage_ends_and_comes_back(tmp_path):
    base = shallow_pyramidnet(input_shape=(8, 8, 3))
    model = ksd.SelfDistiller(base, networks.stage_ends(base), "byot")
    model.compile("sgd", "sparse_categorical_crossentropy")
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 8, 8, 3)).astype("float32")
    before = base.get_layer("stem_conv").get_weights()[0]
    logs = model.train_on_batch(images, np.arange(4), return_dict=True)
    assert np.isfinite(logs["loss"])
    assert not np.array_equal(before, base.get_layer("stem_conv").get_weights()[0])
    model.save(tmp_path / "wrapper.keras")
    loaded = ksd.load_model(tmp_path / "wrapper.keras")
    expected, found = (x.predict_on_batch(images) for x in (model, loaded))
    assert list(found) == ["exit_1", "exit_2", "final"]
    for name, output in expected.items():
        np.testing.assert_allclose(found[name], output, atol=1e-6)
