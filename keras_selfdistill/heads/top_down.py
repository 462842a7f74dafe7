"""The top-down head of *Student Helping Teacher*."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import ClassVar, Self

import keras
from keras import layers

from keras_selfdistill.graph.layout import dtype_policy
from keras_selfdistill.heads.base import Head, Target
from keras_selfdistill.heads.interpolation import _aligned, _interpolate
from keras_selfdistill.heads.pieces import (
    bn_relu,
    channels_last,
    he_normal,
    patch_rows,
    pointwise_bn_relu,
    pool_patches,
    reshape_rows,
    strides_to,
)
from keras_selfdistill.utils.config import PACKAGE
from keras_selfdistill.utils.type_aliases import ConfigDict, DType, SymbolicTensor


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class TopDown(Head):
    """The students of TESKD, fused top-down from the base's end (arXiv 2110.00329).

    A lateral 1×1 convolution maps every tap, and the base's last spatial tensor, to
    the width C of the base's feature. From the deepest tap to the shallowest:
    `up = conv1×1(bilinear(above))`, `fused = conv1×1(concat(up + lateral, up))`, where
    `above` is the fused tensor of the next deeper level. Each student is a k×k
    convolution with stride k on its fused tensor, a 1×1 convolution, and global
    average pooling. All convolutions have batch normalisation and ReLU.

    The 1×1 convolution of `up` is computed before the interpolation, which is the same
    function at a quarter of the cost.

    Args:
        align_corners: Whether the interpolation leaves the centres of corner pixels
            corners, as the authors' code does; else it aligns the centres of all
            pixels, as Keras does and files saved before this option had it.

    Raises:
        TypeError: `align_corners` is not a boolean.
        ValueError: A tap does not have two spatial axes of known size.

    Example:
        >>> base = keras.Input((16, 16, 32))
        >>> end = keras.layers.Conv2D(64, 4, strides=4)(base)
        >>> target = Target(width=64, spatial_shape=(4, 4), channels=64, spatial=end)
        >>> TopDown().features({"exit_1": base}, target)["exit_1"].shape
        (None, 64)
    """

    reads_whole_base: ClassVar[bool] = True

    align_corners: bool = True

    def __post_init__(self) -> None:
        """Check the field."""
        if not isinstance(self.align_corners, bool):
            raise TypeError(
                "TopDown.align_corners must be True or False. Received: "
                f"align_corners={self.align_corners!r}."
            )

    @classmethod
    def from_config(cls, config: ConfigDict) -> Self:
        """Make a head; one saved before there was the option aligned centres."""
        return cls(**{"align_corners": False, **config})

    def features(
        self, taps: Mapping[str, SymbolicTensor], target: Target
    ) -> dict[str, SymbolicTensor]:
        """Add the students of all exits and return their features."""
        deepest = list(taps)[-1]
        above = _lateral(target.spatial, target, f"{deepest}_top")
        features = {}
        for name, tap in reversed(list(taps.items())):
            dtype = dtype_policy(tap)
            lateral = _lateral(tap, target, name)
            interpolate = _aligned if self.align_corners else _interpolate
            up = _enlarge(above, lateral, interpolate, f"{name}_up", dtype)
            both = layers.Add(name=f"{name}_sum", dtype=dtype)([up, lateral])
            both = layers.Concatenate(name=f"{name}_concat", dtype=dtype)([both, up])
            above = pointwise_bn_relu(both, target.width, f"{name}_fuse", dtype)
            stride = strides_to(above, target)
            rows, patches = patch_rows(above, stride, name)
            widths = (target.width, target.width)
            features[name] = pool_patches(
                rows, patches, math.prod(stride), widths, name, dtype
            )
        return {name: features[name] for name in taps}


def _lateral(tensor: SymbolicTensor, target: Target, name: str) -> SymbolicTensor:
    image = channels_last(tensor, target, name)
    return pointwise_bn_relu(
        image, target.width, f"{name}_lateral", dtype_policy(tensor)
    )


def _enlarge(
    image: SymbolicTensor,
    like: SymbolicTensor,
    interpolate: Callable[..., SymbolicTensor],
    name: str,
    dtype: DType,
) -> SymbolicTensor:
    """Add a 1×1 convolution and interpolate to another image's size; BN and ReLU."""
    _, height, width, channels = image.shape
    x = reshape_rows(image, (-1, channels), f"{name}_below")
    x = layers.Dense(
        like.shape[-1],
        use_bias=False,
        kernel_initializer=he_normal(),
        name=name,
        dtype=dtype,
    )(x)
    x = reshape_rows(x, (-1, height, width, like.shape[-1]), f"{name}_small")
    x = interpolate(x, like.shape[1:3], f"{name}_bilinear", dtype)
    x = reshape_rows(x, (-1, like.shape[-1]), f"{name}_pixels")
    x = bn_relu(x, name, dtype)
    return reshape_rows(x, (-1, *like.shape[1:]), f"{name}_image")
