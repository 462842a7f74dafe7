"""The separable head of the journal version, with or without its attention mask."""

import dataclasses
import math

import keras
from keras import layers

from keras_selfdistill.heads.base import Head, Target
from keras_selfdistill.heads.interpolation import _interpolate
from keras_selfdistill.heads.pieces import (
    bn_relu,
    channels_last,
    he_normal,
    pointwise_bn_relu,
    reshape_rows,
    strides_to,
)
from keras_selfdistill.utils.config import PACKAGE
from keras_selfdistill.utils.type_aliases import DType, SymbolicTensor


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Separable(Head):
    """Depthwise separable blocks, with or without the attention of TPAMI 2021.

    There are log₂ k blocks, rounded up and at least one, where k is the ratio of the
    tap's size to that of the base's last spatial tensor. A block is a depthwise 3×3
    convolution with stride 2, 1×1, batch normalisation, ReLU, depthwise 3×3, 1×1 to
    twice the width (in the last block to the width of the base's feature), batch
    normalisation, ReLU. Global average pooling follows. A tap of the last size already
    gets one block with stride 1.

    With attention, the tap is first multiplied by a mask: one such block of the tap's
    width, batch normalisation and ReLU once more, bilinear interpolation to twice the
    size, sigmoid. This follows the authors' code of *Self-Distillation: Towards
    Efficient and Compact Neural Networks*, doi 10.1109/TPAMI.2021.3067100; its first
    version had no second batch normalisation and ReLU.

    Args:
        attention: Whether the tap is masked, as in the head named `"attention"`.

    Raises:
        ValueError: The tap does not have two spatial axes of known size.

    Example:
        >>> tap = keras.Input((16, 16, 32))
        >>> target = Target(width=64, spatial_shape=(4, 4), channels=64)
        >>> Separable(attention=True)(tap, target, name="exit_1").shape
        (None, 64)
    """

    attention: bool = False

    def __call__(
        self, tap: SymbolicTensor, target: Target, *, name: str, dtype: DType = None
    ) -> SymbolicTensor:
        """Add the head to a symbolic tap, `(batch, height, width, channels)`."""
        x = channels_last(tap, target, name)
        halvings = math.ceil(math.log2(max(strides_to(x, target))))
        if self.attention:
            x = _attend(x, f"{name}_attention", dtype)
        blocks = max(1, halvings)
        for i in range(1, blocks + 1):
            width = target.width if i == blocks else 2 * x.shape[-1]
            stride = 2 if halvings else 1
            x = _separable_block(x, width, stride, f"{name}_block{i}", dtype)
        return layers.GlobalAveragePooling2D(
            data_format="channels_last", name=f"{name}_feature", dtype=dtype
        )(x)


def _separable_block(
    x: SymbolicTensor, width: int, stride: int, name: str, dtype: DType
) -> SymbolicTensor:
    x = _depthwise(x, stride, f"{name}_depthwise1", dtype)
    x = pointwise_bn_relu(x, x.shape[-1], f"{name}_pointwise1", dtype)
    x = _depthwise(x, 1, f"{name}_depthwise2", dtype)
    return pointwise_bn_relu(x, width, f"{name}_pointwise2", dtype)


def _depthwise(
    x: SymbolicTensor, stride: int, name: str, dtype: DType
) -> SymbolicTensor:
    if stride > 1:
        # "same" pads a strided convolution at the bottom right only; the authors' code
        # pads all sides alike.
        x = layers.ZeroPadding2D(1, data_format="channels_last", name=f"{name}_pad")(x)
    return layers.DepthwiseConv2D(
        3,
        strides=stride,
        padding="valid" if stride > 1 else "same",
        use_bias=False,
        depthwise_initializer=he_normal(),
        data_format="channels_last",
        name=name,
        dtype=dtype,
    )(x)


def _attend(tap: SymbolicTensor, name: str, dtype: DType) -> SymbolicTensor:
    mask = _separable_block(tap, tap.shape[-1], 2, f"{name}_block", dtype)
    # The block ends in BN and ReLU itself; the authors' code repeats them.
    rows = reshape_rows(mask, (-1, mask.shape[-1]), f"{name}_pixels")
    rows = bn_relu(rows, name, dtype)
    mask = reshape_rows(rows, (-1, *mask.shape[1:]), f"{name}_image")
    mask = _interpolate(mask, tap.shape[1:3], f"{name}_up", dtype)
    mask = layers.Activation("sigmoid", name=f"{name}_mask", dtype=dtype)(mask)
    return layers.Multiply(name=name, dtype=dtype)([mask, tap])
