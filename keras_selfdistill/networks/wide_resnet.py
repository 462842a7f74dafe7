"""Wide ResNets."""

from keras import layers

from keras_selfdistill.networks.blocks import bn_relu, conv, stages
from keras_selfdistill.networks.builder import Tensor, Width, network
from keras_selfdistill.utils.image_format import channel_axis


def _wide_block(
    x: Tensor, channels: int, width: Width, stride: int, name: str
) -> Tensor:
    """Pre-activation block; a projection starts from the activated input."""
    active = bn_relu(x, f"{name}_first")
    if stride > 1 or x.shape[channel_axis()] != width(channels):
        x = conv(active, width(channels), 1, f"{name}_shortcut", stride)
    y = conv(active, width(channels), 3, f"{name}_first", stride)
    y = conv(bn_relu(y, f"{name}_last"), width(channels), 3, f"{name}_last")
    return layers.Add(name=f"{name}_out")([x, y])


def _wide_resnet(inputs: Tensor, width: Width, *, blocks: int, factor: int) -> Tensor:
    x = conv(inputs, width(16), 3, "stem")
    x = stages(x, _wide_block, (blocks,) * 3, 16 * factor, width)
    return bn_relu(x, "last")


@network
def wide_resnet20_8(inputs: Tensor, width: Width) -> Tensor:
    """Wide ResNet, 8 times as wide, 3 pre-activation blocks a stage.

    BYOT (arXiv 1905.08094) names it without saying n. Zagoruyko & Komodakis (arXiv
    1605.07146) count 6n + 4 layers, which gives no 20; the 6n + 2 of He et al. does,
    with n = 3, so this is WRN-22-8 in their count. Arguments as in `resnet18`.
    """
    return _wide_resnet(inputs, width, blocks=3, factor=8)


@network
def wide_resnet28_12(inputs: Tensor, width: Width) -> Tensor:
    """WRN-28-12 (arXiv 1605.07146): 4 pre-activation blocks a stage. See `resnet18`."""
    return _wide_resnet(inputs, width, blocks=4, factor=12)


@network
def wide_resnet44_8(inputs: Tensor, width: Width) -> Tensor:
    """Wide ResNet, 8 times as wide, 7 pre-activation blocks a stage.

    Named by 6n + 2 layers like `wide_resnet20_8`, so n = 7: WRN-46-8 in the count of
    arXiv 1605.07146. Arguments as in `resnet18`.
    """
    return _wide_resnet(inputs, width, blocks=7, factor=8)
