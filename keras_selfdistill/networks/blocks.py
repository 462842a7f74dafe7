"""What the blocks of several networks are made of."""

from collections.abc import Callable, Sequence

from keras import layers

from keras_selfdistill.networks.builder import Tensor, Width
from keras_selfdistill.utils.image_format import channel_axis


def conv(
    x: Tensor, filters: int, kernel: int, name: str, stride: int = 1, groups: int = 1
) -> Tensor:
    """Add a convolution without bias, padded alike on all sides."""
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


def bn(x: Tensor, name: str) -> Tensor:
    """Add batch normalization."""
    return layers.BatchNormalization(
        axis=channel_axis(), momentum=0.9, epsilon=1e-5, name=f"{name}_bn"
    )(x)


def bn_relu(x: Tensor, name: str) -> Tensor:
    """Add batch normalization and ReLU."""
    return layers.ReLU(name=f"{name}_relu")(bn(x, name))


def conv_bn_relu(
    x: Tensor, filters: int, kernel: int, name: str, stride: int = 1, groups: int = 1
) -> Tensor:
    """Add a convolution, batch normalization and ReLU."""
    return bn_relu(conv(x, filters, kernel, name, stride, groups), name)


def stages(
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
