"""Exit heads: from a tapped tensor to a feature as wide as the base's last one.

A head is a frozen, serialisable object. Called on a symbolic tap it adds plain Keras
layers, so that an exit cut off from its wrapper is a model that needs only Keras.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
from absl import logging
from keras import layers

from keras_selfdistill.config import PACKAGE, resolve
from keras_selfdistill.graph import dtype_policy
from keras_selfdistill.head import (
    Head,
    Target,
    bn_relu,
    channels_last,
    dense_bn_relu,
    he_normal,
    patch_rows,
    pointwise_bn_relu,
    pool_patches,
    reshape_rows,
    resize_positions,
    strides_to,
)
from keras_selfdistill.layout import data_format_of

__all__ = ["Bottleneck", "Head", "Linear", "Separable", "Target", "TopDown", "get"]

# Where `Bottleneck.narrower` ends: of 512 channels it leaves 8.
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

    The convolutions are written as dense layers on rows of pixels: 1×1 is one by
    nature, and k×k with stride k is one on patches that do not overlap. They compute
    the same function with the same number of weights, and faster
    (benchmarks/train_step.py): the gradient of a dense layer on a matrix needs no
    transposed copy of the activations.

    A recipe whose own head this is doubles `reduction`, up to 64, until all exits
    together add at most 15 % to the base's multiply-adds, and says so in the log. The
    published 4 is within that for the papers' basic-block ResNets, not for wide ends:
    three exits of ResNet50 would add 45 %. A narrower middle passes less of the tap on;
    `head="bottleneck"` takes the published head whatever it costs.

    Args:
        reduction: How many times fewer channels the middle has than the base's last
            spatial tensor.

    Raises:
        ValueError: `reduction` is no positive integer, or the tap has no two spatial
            axes of known size.

    Example:
        >>> tap = keras.Input((16, 16, 32))
        >>> target = Target(width=64, spatial_shape=(4, 4), channels=64)
        >>> Bottleneck()(tap, target, name="exit_1").shape
        (None, 64)
    """

    reduction: int = 4

    def __post_init__(self):
        """Check the fields."""
        whole = isinstance(self.reduction, int) and not isinstance(self.reduction, bool)
        if not whole or self.reduction < 1:
            raise ValueError(
                "Bottleneck.reduction is out of range. Received: "
                f"reduction={self.reduction!r}. Expected: an integer of at least 1."
            )

    def __call__(self, tap: Any, target: Target, *, name: str, dtype: Any = None):
        """Add the head to a symbolic tap, `(batch, height, width, channels)`."""
        x = channels_last(tap, target, name)
        stride = strides_to(x, target)
        middle = max(1, target.channels // self.reduction)
        rows, patches = patch_rows(x, stride, name)
        rows = dense_bn_relu(rows, middle, f"{name}_reduce", dtype)
        widths = (middle, target.width)
        return pool_patches(rows, patches, math.prod(stride), widths, name, dtype)

    def multiply_adds(self, tap: Any, target: Target) -> int | None:
        """Return what the feature of one exit costs for a sample, `None` if unknown."""
        sizes = (*tap.shape[1:], *target.spatial_shape)
        if len(sizes) != 5 or None in sizes:
            return None
        first = data_format_of(tap, target.data_format) == "channels_first"
        channels = sizes[0 if first else 2]
        size = sizes[1:3] if first else sizes[:2]
        patches = pixels = 1
        for length, last in zip(size, target.spatial_shape, strict=True):
            stride = -(-length // last)
            pixels *= stride
            patches *= -(-length // stride)
        middle = max(1, target.channels // self.reduction)
        return patches * middle * (pixels * (channels + middle) + target.width)

    def narrower(self) -> Head | None:
        """Return the head with half as wide a middle, down to a 64th of channels."""
        if self.reduction > _LARGEST_REDUCTION // 2:
            return None
        return dataclasses.replace(self, reduction=2 * self.reduction)


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Separable(Head):
    """Depthwise separable blocks, with or without the attention of TPAMI 2021.

    As many blocks as it takes to halve the tap to the size of the base's last spatial
    tensor, log₂ k rounded up, at least one: depthwise 3×3 with stride 2, 1×1, batch
    normalisation, ReLU, depthwise 3×3, 1×1 to twice the width (in the last block to
    the width of the base's feature), batch normalisation, ReLU. Then global average
    pooling. A tap that has the last size already gets one block with stride 1.

    With attention, the tap is first multiplied by a mask: one such block of its own
    width, batch normalisation and ReLU once more, bilinear interpolation to twice the
    size, sigmoid. So does the authors' code of *Self-Distillation: Towards Efficient
    and Compact Neural Networks*, doi 10.1109/TPAMI.2021.3067100; its first version had
    no second batch normalisation and ReLU.

    Args:
        attention: Whether the tap is masked; the head named `"attention"`.

    Raises:
        ValueError: The tap has no two spatial axes of known size.

    Example:
        >>> tap = keras.Input((16, 16, 32))
        >>> target = Target(width=64, spatial_shape=(4, 4), channels=64)
        >>> Separable(attention=True)(tap, target, name="exit_1").shape
        (None, 64)
    """

    attention: bool = False

    def __call__(self, tap: Any, target: Target, *, name: str, dtype: Any = None):
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


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class TopDown(Head):
    """The students of TESKD, fused from the base's end upwards (arXiv 2110.00329).

    Every tap, and the base's last spatial tensor, passes a lateral 1×1 convolution to
    the width C of the base's feature. From the deepest tap to the shallowest:
    `up = conv1×1(bilinear(above))`, `fused = conv1×1(concat(up + lateral, up))`, where
    `above` is the fused tensor of the next deeper level. Each student is a k×k
    convolution with stride k on its fused tensor, a 1×1 convolution, and global
    average pooling. All convolutions have batch normalisation and ReLU.

    The 1×1 convolution of `up` is computed before the interpolation, which gives the
    same function at a fourth of the cost. Interpolation is Keras', between centres of
    pixels; the authors' code aligns corners.

    Raises:
        ValueError: A tap has no two spatial axes of known size.

    Example:
        >>> base = keras.Input((16, 16, 32))
        >>> end = keras.layers.Conv2D(64, 4, strides=4)(base)
        >>> target = Target(width=64, spatial_shape=(4, 4), channels=64, spatial=end)
        >>> TopDown().features({"exit_1": base}, target)["exit_1"].shape
        (None, 64)
    """

    reads_whole_base: ClassVar[bool] = True

    def features(self, taps: Mapping[str, Any], target: Target) -> dict[str, Any]:
        """Add the students of all exits and return their features."""
        deepest = list(taps)[-1]
        above = _lateral(target.spatial, target, f"{deepest}_top")
        features = {}
        for name, tap in reversed(list(taps.items())):
            dtype = dtype_policy(tap)
            lateral = _lateral(tap, target, name)
            up = _enlarge(above, lateral, f"{name}_up", dtype)
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


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Head):
    """Pooling and one dense layer with ReLU: the head for taps of any rank.

    The cheapest head, and the one for bases without spatial axes. Padded steps of a
    sequence are left out of the mean: those of a Keras mask, else those of the base's
    input `padding_mask`, as KerasHub calls it.

    Example:
        >>> tap = keras.Input((32,))
        >>> target = Target(width=64, spatial_shape=(), channels=64)
        >>> Linear()(tap, target, name="exit_1").shape
        (None, 64)
    """

    def __call__(self, tap: Any, target: Target, *, name: str, dtype: Any = None):
        """Add the head to a symbolic tap of shape `(batch, ..., channels)`."""
        pools = {
            3: layers.GlobalAveragePooling1D,
            4: layers.GlobalAveragePooling2D,
            5: layers.GlobalAveragePooling3D,
        }
        x = tap
        if len(tap.shape) in pools:
            x = pools[len(tap.shape)](
                data_format=data_format_of(tap, target.data_format),
                name=f"{name}_pool",
                dtype=dtype,
            )(x, **_padding(tap, target))
        return layers.Dense(
            target.width, activation="relu", name=f"{name}_feature", dtype=dtype
        )(x)


def _padding(tap, target):
    mask = target.padding_mask
    if mask is None or len(tap.shape) != 3 or tap.shape[1] != mask.shape[1]:
        return {}
    return {} if getattr(tap, "_keras_mask", None) is not None else {"mask": mask}


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pointwise(Head):
    """A 1×1 convolution with ReLU, interpolated: for answers at each position.

    The head for segmentation and for labels of time steps. Interpolation is bilinear.

    Raises:
        ValueError: The tap has no positions, or unknown ones have to be interpolated.

    Example:
        >>> tap = keras.Input((16, 16, 32))
        >>> target = Target(
        ...     width=8, spatial_shape=(64, 64), channels=8, positions=(64, 64))
        >>> Pointwise()(tap, target, name="exit_1").shape
        (None, 64, 64, 8)
    """

    def __call__(self, tap: Any, target: Target, *, name: str, dtype: Any = None):
        """Add the head to a symbolic tap of shape `(batch, ..., channels)`."""
        if len(tap.shape) != 2 + len(target.positions):
            raise ValueError(
                f"The head of {name!r} needs a tap with the positions of the output. "
                f"Received: a tap of shape {tuple(tap.shape)}. Expected: "
                f"{2 + len(target.positions)} axes."
            )
        x = layers.Dense(
            target.width, activation="relu", name=f"{name}_feature", dtype=dtype
        )(tap)
        return resize_positions(x, target.positions, f"{name}_positions")


_SHORTHANDS = {
    "bottleneck": Bottleneck,
    "separable": Separable,
    "attention": functools.partial(Separable, attention=True),
    "top_down": TopDown,
    "linear": Linear,
    "pointwise": Pointwise,
}


def get(identifier: "str | Head") -> Head:
    """Return the head with a name and default fields, or the head given.

    Args:
        identifier: `"bottleneck"`, `"separable"`, `"attention"`, `"top_down"`,
            `"linear"`, `"pointwise"`, or a `Head`.

    Raises:
        ValueError: No head has this name.
        TypeError: `identifier` is neither a string nor a `Head`.

    Example:
        >>> get("bottleneck")
        Bottleneck(reduction=4)
    """
    return resolve(identifier, "head", Head, _SHORTHANDS)


def suited(name: str, taps: Sequence[Any], target: Target) -> Head:
    """Return the head with a name, or another where it does not fit the taps.

    That is `Pointwise` where each position has an answer, and `Linear` where a tap is
    no image of known size.

    Args:
        name: Of the recipe's head.
        taps: Symbolic tensors of the base.
        target: The end of the base.
    """
    if target.positions:
        return Pointwise()
    sizes = [(*tap.shape[1:], *target.spatial_shape) for tap in taps]
    images = all(len(each) == 5 and None not in each for each in sizes)
    if images:
        return get(name)
    logging.info("Exits get linear heads: head=%r needs images of known size.", name)
    return Linear()


def _separable_block(x, width, stride, name, dtype):
    x = _depthwise(x, stride, f"{name}_depthwise1", dtype)
    x = pointwise_bn_relu(x, x.shape[-1], f"{name}_pointwise1", dtype)
    x = _depthwise(x, 1, f"{name}_depthwise2", dtype)
    return pointwise_bn_relu(x, width, f"{name}_pointwise2", dtype)


def _depthwise(x, stride, name, dtype):
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


def _attend(tap, name, dtype):
    mask = _separable_block(tap, tap.shape[-1], 2, f"{name}_block", dtype)
    # The block ends in BN and ReLU itself; the authors' code repeats them.
    rows = reshape_rows(mask, (-1, mask.shape[-1]), f"{name}_pixels")
    rows = bn_relu(rows, name, dtype)
    mask = reshape_rows(rows, (-1, *mask.shape[1:]), f"{name}_image")
    mask = _interpolate(mask, tap.shape[1:3], f"{name}_up", dtype)
    mask = layers.Activation("sigmoid", name=f"{name}_mask", dtype=dtype)(mask)
    return layers.Multiply(name=name, dtype=dtype)([mask, tap])


def _lateral(tensor, target, name):
    image = channels_last(tensor, target, name)
    return pointwise_bn_relu(
        image, target.width, f"{name}_lateral", dtype_policy(tensor)
    )


def _enlarge(image, like, name, dtype):
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
    x = _interpolate(x, like.shape[1:3], f"{name}_bilinear", dtype)
    x = reshape_rows(x, (-1, like.shape[-1]), f"{name}_pixels")
    x = bn_relu(x, name, dtype)
    return reshape_rows(x, (-1, *like.shape[1:]), f"{name}_image")


def _interpolate(image, size, name, dtype):
    """Enlarge an image by whole factors, and crop what is too much at the end.

    An image that is too large, as a padded tensor near a base's end may be, is shrunk.
    """
    if any(old > new for old, new in zip(image.shape[1:3], size, strict=True)):
        return layers.Resizing(
            *size, data_format="channels_last", name=name, dtype=dtype
        )(image)
    factors = [-(-new // old) for old, new in zip(image.shape[1:3], size, strict=True)]
    if factors == [1, 1]:
        return image
    image = layers.UpSampling2D(
        factors,
        interpolation="bilinear",
        data_format="channels_last",
        name=name,
        dtype=dtype,
    )(image)
    extra = [now - new for now, new in zip(image.shape[1:3], size, strict=True)]
    if not any(extra):
        return image
    return layers.Cropping2D(
        [(0, gap) for gap in extra], data_format="channels_last", name=f"{name}_crop"
    )(image)
