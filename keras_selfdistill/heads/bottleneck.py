"""The bottleneck head of *Be Your Own Teacher*."""

import dataclasses
import math

import keras

from keras_selfdistill.heads.base import Head, Target
from keras_selfdistill.heads.pieces import (
    channels_last,
    dense_bn_relu,
    patch_rows,
    pool_patches,
    strides_to,
)
from keras_selfdistill.utils.config import PACKAGE
from keras_selfdistill.utils.number_checks import is_positive_integer
from keras_selfdistill.utils.type_aliases import DType, SymbolicTensor

# The largest `Bottleneck.reduction` of `narrower`: 512 channels become 8.
_LARGEST_REDUCTION = 64


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Bottleneck(Head):
    """The bottleneck head of BYOT (ICCV 2019, figure 2 and its public reproduction).

    Convolution 1×1 to `channels / reduction`, k×k with stride k down to the size of
    the base's last spatial tensor, 1×1 to the width of its feature, each with batch
    normalisation and ReLU; then global average pooling. k is the ratio of the tap's
    size to the last size, rounded up; a tap that does not divide is first padded with
    zeros, evenly on both sides.

    The convolutions are implemented as dense layers on a matrix of pixels: 1×1 is a
    dense layer on each pixel, k×k with stride k one on each of the disjoint patches.
    They compute the same function with the same number of weights, but faster
    (benchmarks/train_step.py): the gradient of a dense layer on a matrix needs no
    transposed copy of the activations.

    If a recipe chooses this head, `reduction` is doubled, up to 64, until all exits
    together add at most 15 % to the base's multiply-adds; a message of level INFO
    says so. The published 4 is within that budget for the papers' basic-block ResNets,
    but not for wide ends: three exits of ResNet50 would add 51 %. A narrower middle
    passes on less of the tap. `head="bottleneck"` uses the published head at any cost.

    Args:
        reduction: Factor by which the middle has fewer channels than the base's last
            spatial tensor.

    Raises:
        ValueError: `reduction` is not a positive integer, or the tap does not have two
            spatial axes of known size.

    Example:
        >>> tap = keras.Input((16, 16, 32))
        >>> target = Target(width=64, spatial_shape=(4, 4), channels=64)
        >>> Bottleneck()(tap, target, name="exit_1").shape
        (None, 64)
    """

    reduction: int = 4

    def __post_init__(self) -> None:
        """Check the fields."""
        if not is_positive_integer(self.reduction):
            raise ValueError(
                "Bottleneck.reduction is out of range. Received: "
                f"reduction={self.reduction!r}. Expected: an integer of at least 1."
            )
        object.__setattr__(self, "reduction", int(self.reduction))  # Not NumPy's.

    def __call__(
        self, tap: SymbolicTensor, target: Target, *, name: str, dtype: DType = None
    ) -> SymbolicTensor:
        """Add the head to a symbolic tap, `(batch, height, width, channels)`."""
        x = channels_last(tap, target, name)
        stride = strides_to(x, target)
        middle = max(1, target.channels // self.reduction)
        rows, patches = patch_rows(x, stride, name)
        rows = dense_bn_relu(rows, middle, f"{name}_reduce", dtype)
        widths = (middle, target.width)
        return pool_patches(rows, patches, math.prod(stride), widths, name, dtype)

    def narrower(self) -> Head | None:
        """Return the head with a middle half as wide, down to 1/64 of the channels."""
        if self.reduction > _LARGEST_REDUCTION // 2:
            return None
        return dataclasses.replace(self, reduction=2 * self.reduction)
