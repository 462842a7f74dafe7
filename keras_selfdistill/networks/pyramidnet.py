"""PyramidNet."""

import keras
from keras import layers

from keras_selfdistill.networks.blocks import bn, bn_relu, conv
from keras_selfdistill.networks.builder import Tensor, Width, network
from keras_selfdistill.utils.image_format import channel_axis


def _shortcut(x: Tensor, channels: int, stride: int, name: str) -> Tensor:
    """Average the map if it shrinks, and add channels of zeros."""
    if stride > 1:
        x = layers.AveragePooling2D(stride, padding="same", name=f"{name}_pool")(x)
    axis = channel_axis()
    missing = channels - x.shape[axis]
    padding = 4 * [(0, 0)]
    padding[axis] = (0, missing)
    return keras.ops.pad(x, padding) if missing else x


def _block(x: Tensor, channels: int, stride: int, name: str) -> Tensor:
    """Bottleneck that begins and ends in batch normalization, without a last ReLU."""
    y = conv(bn(x, f"{name}_first"), channels, 1, f"{name}_first")
    y = conv(bn_relu(y, f"{name}_middle"), channels, 3, f"{name}_middle", stride)
    y = conv(bn_relu(y, f"{name}_last"), 4 * channels, 1, f"{name}_last")
    shortcut = _shortcut(x, 4 * channels, stride, name)
    return layers.Add(name=f"{name}_out")([shortcut, bn(y, f"{name}_end")])


def _pyramidnet(inputs: Tensor, width: Width, *, blocks: int, widening: int) -> Tensor:
    """Stack three stages, of blocks that get wider by the same fraction each."""
    first = max(1, round(16 * width.multiplier))
    x = bn(conv(inputs, first, 3, "stem"), "stem")
    for i in range(3 * blocks):
        channels = (16 + (i + 1) * widening / (3 * blocks)) * width.multiplier
        stage, block = divmod(i, blocks)
        stride = 2 if stage > 0 and block == 0 else 1
        name = f"stage{stage + 1}_block{block + 1}"
        x = _block(x, max(first, round(channels)), stride, name)
    return bn_relu(x, "last")


@network
def pyramidnet101_240(inputs: Tensor, width: Width) -> Tensor:
    """PyramidNet-101, widened by 240 (Han et al., CVPR 2017, arXiv 1610.02915).

    Three stages of 11 bottlenecks. Each is 240/33 channels wider than the one before,
    from 16 to 256, and ends in 4 times as many; shortcuts have no weights. Arguments as
    in `resnet18`, but `width_multiplier` scales 16 and 240: widths are whole numbers,
    not multiples of 8.
    """
    return _pyramidnet(inputs, width, blocks=11, widening=240)
