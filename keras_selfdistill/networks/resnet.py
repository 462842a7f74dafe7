"""ResNets and ResNeXt."""

from collections.abc import Callable, Sequence
from functools import partial

from keras import layers

from keras_selfdistill.networks.blocks import bn, conv, conv_bn_relu, stages
from keras_selfdistill.networks.builder import Tensor, Width, network
from keras_selfdistill.utils.image_format import channel_axis


def _join(x: Tensor, residual: Tensor, stride: int, name: str) -> Tensor:
    """Add the shortcut of a post-activation block, projected if shapes differ."""
    residual = bn(residual, f"{name}_last")
    filters = residual.shape[channel_axis()]
    if stride > 1 or x.shape[channel_axis()] != filters:
        shortcut = f"{name}_shortcut"
        x = bn(conv(x, filters, 1, shortcut, stride), shortcut)
    x = layers.Add(name=f"{name}_add")([x, residual])
    return layers.ReLU(name=f"{name}_out")(x)


def _basic_block(
    x: Tensor, channels: int, width: Width, stride: int, name: str
) -> Tensor:
    y = conv_bn_relu(x, width(channels), 3, f"{name}_first", stride)
    y = conv(y, width(channels), 3, f"{name}_last")
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
    y = conv_bn_relu(x, width(channels), 1, f"{name}_first")
    y = conv_bn_relu(y, width(channels), 3, f"{name}_middle", stride, groups)
    y = conv(y, width(int(channels * expansion)), 1, f"{name}_last")
    return _join(x, y, stride, name)


def _resnet(
    inputs: Tensor, width: Width, block: Callable[..., Tensor], depths: Sequence[int]
) -> Tensor:
    x = conv_bn_relu(inputs, width(64), 3, "stem")
    return stages(x, block, depths, 64, width)


@network
def resnet18(  # noqa: D417 (the arguments are those of the builder it becomes)
    inputs: Tensor, width: Width
) -> Tensor:
    """ResNet-18 for small images: 2-2-2-2 basic blocks of 64, 128, 256, 512 channels.

    The network of He et al., "Deep Residual Learning for Image Recognition" (CVPR
    2016, arXiv 1512.03385), post-activation and He initialisation, with the CIFAR stem
    that the self-distillation papers use.

    Args:
        input_shape: (height, width, channels) of one image; (channels, height, width)
            if `keras.config.image_data_format()` is `"channels_first"`. By default
            32x32 with 3 channels.
        classes: Number of classes, at least 2.
        width_multiplier: Factor on every layer's channels, above 0; each result is
            rounded to a multiple of 8, at least 8.
        classifier_activation: Activation of the last layer; `None` returns logits.
        paper_initialization: Whether to draw weights as the codes of BYOT and of its
            journal version do: He normal by fan-out, not truncated, and a uniform
            classifier within ±1/√width. By default: He normal by fan-in, truncated, and
            Glorot uniform.
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


@network
def resnet34(inputs: Tensor, width: Width) -> Tensor:
    """ResNet-34 (arXiv 1512.03385): 3-4-6-3 basic blocks. See `resnet18`."""
    return _resnet(inputs, width, _basic_block, (3, 4, 6, 3))


@network
def resnet50(inputs: Tensor, width: Width) -> Tensor:
    """ResNet-50 (arXiv 1512.03385): 3-4-6-3 bottleneck blocks. See `resnet18`."""
    return _resnet(inputs, width, _bottleneck_block, (3, 4, 6, 3))


@network
def resnet101(inputs: Tensor, width: Width) -> Tensor:
    """ResNet-101 (arXiv 1512.03385): 3-4-23-3 bottleneck blocks. See `resnet18`."""
    return _resnet(inputs, width, _bottleneck_block, (3, 4, 23, 3))


@network
def resnet152(inputs: Tensor, width: Width) -> Tensor:
    """ResNet-152 (arXiv 1512.03385): 3-8-36-3 bottleneck blocks. See `resnet18`."""
    return _resnet(inputs, width, _bottleneck_block, (3, 8, 36, 3))


@network
def resnext29_8(inputs: Tensor, width: Width) -> Tensor:
    """ResNeXt-29, 8x64d (Xie et al., CVPR 2017, arXiv 1611.05431).

    Three stages of 3 bottleneck blocks; the 3x3 convolution has 8 groups of 64, 128,
    256 channels, the block ends in 256, 512, 1024. Arguments as in `resnet18`.
    """
    x = conv_bn_relu(inputs, width(64), 3, "stem")
    # Any width is a multiple of 8, so 8 groups always divide it.
    block = partial(_bottleneck_block, expansion=0.5, groups=8)
    return stages(x, block, (3, 3, 3), 8 * 64, width)
