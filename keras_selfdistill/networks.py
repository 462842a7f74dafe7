"""CIFAR-size networks of the self-distillation papers, as Functional models.

They differ from `keras.applications` where small images need it: a 3x3 stem without
pooling, so a 32x32 image reaches the last stage as a 4x4 map (1x1 in VGG, 8x8 in the
wide networks). Every block ends in a layer named `stage{i}_block{j}_out`, every VGG
stage in `stage{i}_pool`; the last two layers are `avg_pool` and `predictions`, which
stays in float32 under mixed precision.

All builders take the arguments described in `resnet18`; `NETWORKS` lists them by name.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import keras
from keras import layers

from keras_selfdistill.utils.initializers import initialize_as_papers

Tensor: TypeAlias = keras.KerasTensor
Width = Callable[[int], int]

NETWORKS: dict[str, Callable[..., keras.Model]] = {}


def _network(features: Callable[[Tensor, Width], Tensor]) -> Callable[..., keras.Model]:
    """Make a listed model builder from a function that returns the last feature map."""

    def build(
        *,
        input_shape: tuple[int, int, int] = (32, 32, 3),
        classes: int = 100,
        width_multiplier: float = 1.0,
        classifier_activation: str | None = "softmax",
        paper_initialization: bool = False,
        name: str = features.__name__,
    ) -> keras.Model:
        _check_arguments(input_shape, classes, width_multiplier)

        def width(channels: int) -> int:
            return max(8, 8 * round(channels * width_multiplier / 8))

        inputs = keras.Input(tuple(input_shape))
        x = layers.GlobalAveragePooling2D(name="avg_pool")(features(inputs, width))
        # A half-precision softmax saturates, and the losses are computed from it.
        predictions = layers.Dense(
            classes, classifier_activation, dtype="float32", name="predictions"
        )
        model = keras.Model(inputs, predictions(x), name=name)
        return initialize_as_papers(model) if paper_initialization else model

    # Not functools.wraps: help() has to show the signature of `build`.
    build.__name__ = build.__qualname__ = features.__name__
    build.__doc__ = features.__doc__
    NETWORKS[features.__name__] = build
    return build


def _check_arguments(
    input_shape: tuple[int, int, int], classes: int, width_multiplier: float
) -> None:
    if len(input_shape) != 3:
        raise ValueError(
            f"Received input_shape={input_shape}; expected (height, width, channels) "
            "without the batch axis, such as (32, 32, 3)."
        )
    if classes < 2:
        raise ValueError(
            f"Received classes={classes}; expected at least 2, one for each label."
        )
    if not width_multiplier > 0:
        raise ValueError(
            f"Received width_multiplier={width_multiplier}; expected a number above "
            "0: 1.0 is the paper's network, 0.25 a quarter of its width."
        )


def _conv(
    x: Tensor, filters: int, kernel: int, name: str, stride: int = 1, groups: int = 1
) -> Tensor:
    if kernel > 1 and stride > 1:
        # "same" pads a strided convolution at the bottom right only; the papers'
        # networks pad all sides alike.
        x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    return layers.Conv2D(
        filters,
        kernel,
        strides=stride,
        padding="valid" if stride > 1 else "same",
        groups=groups,
        use_bias=False,  # the batch normalization that follows has one
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)


def _bn(x: Tensor, name: str) -> Tensor:
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)


def _bn_relu(x: Tensor, name: str) -> Tensor:
    return layers.ReLU(name=f"{name}_relu")(_bn(x, name))


def _conv_bn_relu(
    x: Tensor, filters: int, kernel: int, name: str, stride: int = 1, groups: int = 1
) -> Tensor:
    return _bn_relu(_conv(x, filters, kernel, name, stride, groups), name)


def _join(x: Tensor, residual: Tensor, stride: int, name: str) -> Tensor:
    """Add the shortcut of a post-activation block, projected if shapes differ."""
    residual = _bn(residual, f"{name}_last")
    filters = residual.shape[-1]
    if stride > 1 or x.shape[-1] != filters:
        shortcut = f"{name}_shortcut"
        x = _bn(_conv(x, filters, 1, shortcut, stride), shortcut)
    x = layers.Add(name=f"{name}_add")([x, residual])
    return layers.ReLU(name=f"{name}_out")(x)


def _basic_block(
    x: Tensor, channels: int, width: Width, stride: int, name: str
) -> Tensor:
    y = _conv_bn_relu(x, width(channels), 3, f"{name}_first", stride)
    y = _conv(y, width(channels), 3, f"{name}_last")
    return _join(x, y, stride, name)


def _bottleneck_block(
    x: Tensor,
    channels: int,
    width: Width,
    stride: int,
    name: str,
    *,
    expansion: float = 4,
    groups: int = 1,
) -> Tensor:
    y = _conv_bn_relu(x, width(channels), 1, f"{name}_first")
    y = _conv_bn_relu(y, width(channels), 3, f"{name}_middle", stride, groups)
    y = _conv(y, width(int(channels * expansion)), 1, f"{name}_last")
    return _join(x, y, stride, name)


def _wide_block(
    x: Tensor, channels: int, width: Width, stride: int, name: str
) -> Tensor:
    """Pre-activation block; a projection starts from the activated input."""
    active = _bn_relu(x, f"{name}_first")
    if stride > 1 or x.shape[-1] != width(channels):
        x = _conv(active, width(channels), 1, f"{name}_shortcut", stride)
    y = _conv(active, width(channels), 3, f"{name}_first", stride)
    y = _conv(_bn_relu(y, f"{name}_last"), width(channels), 3, f"{name}_last")
    return layers.Add(name=f"{name}_out")([x, y])


def _stages(
    x: Tensor,
    block: Callable[..., Tensor],
    depths: Sequence[int],
    channels: int,
    width: Width,
) -> Tensor:
    """Stack stages; each after the first halves the map and doubles the channels."""
    for i, depth in enumerate(depths):
        for j in range(depth):
            stride = 2 if i > 0 and j == 0 else 1
            x = block(x, channels * 2**i, width, stride, f"stage{i + 1}_block{j + 1}")
    return x


def _resnet(
    inputs: Tensor, width: Width, block: Callable[..., Tensor], depths: Sequence[int]
) -> Tensor:
    x = _conv_bn_relu(inputs, width(64), 3, "stem")
    return _stages(x, block, depths, 64, width)


@_network
def resnet18(  # noqa: D417 (the arguments are those of the builder it becomes)
    inputs: Tensor, width: Width
) -> Tensor:
    """ResNet-18 for small images: 2-2-2-2 basic blocks of 64, 128, 256, 512 channels.

    The network of He et al., "Deep Residual Learning for Image Recognition" (CVPR
    2016, arXiv 1512.03385), post-activation and He initialisation, with the CIFAR stem
    that the self-distillation papers use.

    Args:
        input_shape: (height, width, channels) of one image.
        classes: Number of classes, at least 2.
        width_multiplier: Factor on every layer's channels, above 0; each result is
            rounded to a multiple of 8, at least 8.
        classifier_activation: Activation of the last layer; `None` returns logits.
        paper_initialization: Whether to draw weights as the code of the papers does:
            He normal by fan-out, not truncated, and a uniform classifier within
            ±1/√width. By default: He normal by fan-in, truncated, and Glorot uniform.
        name: Name of the model.

    Returns:
        A Functional model that maps (batch, *input_shape) to (batch, classes).

    Raises:
        ValueError: If an argument is outside the range given above.

    Example:
        >>> model = resnet18(width_multiplier=0.125)
        >>> model.get_layer("stage4_block2_out").output.shape
        (None, 4, 4, 64)
    """
    return _resnet(inputs, width, _basic_block, (2, 2, 2, 2))


@_network
def resnet34(inputs: Tensor, width: Width) -> Tensor:
    """ResNet-34 (arXiv 1512.03385): 3-4-6-3 basic blocks. See `resnet18`."""
    return _resnet(inputs, width, _basic_block, (3, 4, 6, 3))


@_network
def resnet50(inputs: Tensor, width: Width) -> Tensor:
    """ResNet-50 (arXiv 1512.03385): 3-4-6-3 bottleneck blocks. See `resnet18`."""
    return _resnet(inputs, width, _bottleneck_block, (3, 4, 6, 3))


@_network
def resnet101(inputs: Tensor, width: Width) -> Tensor:
    """ResNet-101 (arXiv 1512.03385): 3-4-23-3 bottleneck blocks. See `resnet18`."""
    return _resnet(inputs, width, _bottleneck_block, (3, 4, 23, 3))


@_network
def resnet152(inputs: Tensor, width: Width) -> Tensor:
    """ResNet-152 (arXiv 1512.03385): 3-8-36-3 bottleneck blocks. See `resnet18`."""
    return _resnet(inputs, width, _bottleneck_block, (3, 8, 36, 3))


@_network
def vgg19_bn(inputs: Tensor, width: Width) -> Tensor:
    """VGG-19 with batch normalization (Simonyan & Zisserman, arXiv 1409.1556).

    Sixteen 3x3 convolutions in stages of 2, 2, 4, 4, 4, each stage closed by a 2x2
    max-pool, and one dense layer in place of the three for ImageNet. Arguments as in
    `resnet18`; the smallest input is 32x32.
    """
    x = inputs
    stages = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
    for i, (channels, depth) in enumerate(stages, start=1):
        for j in range(1, depth + 1):
            x = _conv_bn_relu(x, width(channels), 3, f"stage{i}_block{j}")
        x = layers.MaxPooling2D(name=f"stage{i}_pool")(x)
    return x


def _wide_resnet(inputs: Tensor, width: Width, *, blocks: int, factor: int) -> Tensor:
    x = _conv(inputs, width(16), 3, "stem")
    x = _stages(x, _wide_block, (blocks,) * 3, 16 * factor, width)
    return _bn_relu(x, "last")


@_network
def wide_resnet20_8(inputs: Tensor, width: Width) -> Tensor:
    """Wide ResNet, 8 times as wide, 3 pre-activation blocks a stage.

    BYOT (arXiv 1905.08094) names it without saying n. Zagoruyko & Komodakis (arXiv
    1605.07146) count 6n + 4 layers, which gives no 20; the 6n + 2 of He et al. does,
    with n = 3, so this is WRN-22-8 in their count. Arguments as in `resnet18`.
    """
    return _wide_resnet(inputs, width, blocks=3, factor=8)


@_network
def wide_resnet28_12(inputs: Tensor, width: Width) -> Tensor:
    """WRN-28-12 (arXiv 1605.07146): 4 pre-activation blocks a stage. See `resnet18`."""
    return _wide_resnet(inputs, width, blocks=4, factor=12)


@_network
def wide_resnet44_8(inputs: Tensor, width: Width) -> Tensor:
    """Wide ResNet, 8 times as wide, 7 pre-activation blocks a stage.

    Named by 6n + 2 layers like `wide_resnet20_8`, so n = 7: WRN-46-8 in the count of
    arXiv 1605.07146. Arguments as in `resnet18`.
    """
    return _wide_resnet(inputs, width, blocks=7, factor=8)


@_network
def resnext29_8(inputs: Tensor, width: Width) -> Tensor:
    """ResNeXt-29, 8x64d (Xie et al., CVPR 2017, arXiv 1611.05431).

    Three stages of 3 bottleneck blocks; the 3x3 convolution has 8 groups of 64, 128,
    256 channels, the block ends in 256, 512, 1024. Arguments as in `resnet18`.
    """
    x = _conv_bn_relu(inputs, width(64), 3, "stem")
    # Any width is a multiple of 8, so 8 groups always divide it.
    block = partial(_bottleneck_block, expansion=0.5, groups=8)
    return _stages(x, block, (3, 3, 3), 8 * 64, width)
