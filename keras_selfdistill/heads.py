"""Exit heads: from a tapped tensor to a feature as wide as the base's last one.

A head is a frozen, serialisable object. Called on a symbolic tap it adds plain Keras
layers, so that an exit cut off from its wrapper is a model that needs only Keras.
"""

import dataclasses
from typing import Any

import keras
from keras import layers

from keras_selfdistill.config import PACKAGE, Config, resolve
from keras_selfdistill.fused import use_fused_kernel
from keras_selfdistill.graph import producer


@dataclasses.dataclass(frozen=True)
class Target:
    """What a head has to reach: the end of the base.

    Args:
        width: Width of the base's last feature, C.
        spatial_shape: Spatial sizes of the deepest spatial tensor, e.g. `(4, 4)`,
            `()` if the base has none.
        channels: Channels of that tensor.
        data_format: `"channels_last"` or `"channels_first"`, of the tap too.
    """

    width: int
    spatial_shape: tuple[int, ...]
    channels: int
    data_format: str = "channels_last"


class Head(Config):
    """What every head offers; subclass it as a frozen dataclass."""

    def __call__(self, tap: Any, target: Target, *, name: str, dtype: Any = None):
        """Add layers named `name_...` to a symbolic tap and return the feature.

        Args:
            tap: Symbolic tensor of the base.
            target: The end of the base.
            name: Prefix of the layers' names, the exit's name.
            dtype: Dtype policy of the layers.

        Returns:
            Symbolic tensor of shape `(batch, target.width)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__.")


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
        _check_spatial(tap, target, name)
        x = tap
        if target.data_format == "channels_first":
            x = layers.Permute((2, 3, 1), name=f"{name}_channels_last")(x)
        sizes = zip(x.shape[1:3], target.spatial_shape, strict=True)
        stride = [-(-size // last) for size, last in sizes]
        x = _pad(x, stride, name)
        patches = (x.shape[1] // stride[0]) * (x.shape[2] // stride[1])
        middle = max(1, target.channels // self.reduction)
        x = _pixel_rows(x, stride, name)
        x = _dense_bn_relu(x, middle, f"{name}_reduce", dtype)
        x = _rows(x, (-1, stride[0] * stride[1] * middle), f"{name}_patches")
        x = _dense_bn_relu(x, middle, f"{name}_downsample", dtype)
        x = _dense_bn_relu(x, target.width, f"{name}_expand", dtype)
        x = _rows(x, (-1, patches, target.width), f"{name}_images")
        return layers.GlobalAveragePooling1D(
            data_format="channels_last", name=f"{name}_feature", dtype=dtype
        )(x)


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Head):
    """Pooling and one dense layer with ReLU: the head for taps of any rank.

    The cheapest head, and the one for bases without spatial axes.

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
                data_format=target.data_format, name=f"{name}_pool", dtype=dtype
            )(x)
        return layers.Dense(
            target.width, activation="relu", name=f"{name}_feature", dtype=dtype
        )(x)


_SHORTHANDS = {"bottleneck": Bottleneck, "linear": Linear}


def get(identifier: "str | Head") -> Head:
    """Return the head with a name and default fields, or the head given.

    Raises:
        ValueError: No head has this name.
        TypeError: `identifier` is neither a string nor a `Head`.

    Example:
        >>> get("bottleneck")
        Bottleneck(reduction=4)
    """
    return resolve(identifier, "head", Head, _SHORTHANDS)


def _check_spatial(tap, target, name):
    if len(tap.shape) != 4 or len(target.spatial_shape) != 2:
        raise ValueError(
            f"The bottleneck head of {name!r} needs a tap with two spatial axes in a "
            f"base that keeps them to the end. Received: a tap of shape "
            f"{tuple(tap.shape)}. Expected: (batch, height, width, channels). Tap an "
            "earlier layer, or pass head='linear'."
        )
    if None in tap.shape[1:] or None in target.spatial_shape:
        raise ValueError(
            f"The bottleneck head of {name!r} needs a known size. Received: a tap of "
            f"shape {tuple(tap.shape)}. Expected: a base built with a fixed input "
            "shape, e.g. input_shape=(224, 224, 3)."
        )


def _dense_bn_relu(x, units, name, dtype):
    x = layers.Dense(
        units, use_bias=False, kernel_initializer="he_normal", name=name, dtype=dtype
    )(x)
    normalization = layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, name=f"{name}_bn", dtype=dtype
    )
    x = use_fused_kernel(normalization)(x)
    return layers.ReLU(name=f"{name}_relu", dtype=dtype)(x)


def _pad(x, stride, name):
    missing = [-size % step for size, step in zip(x.shape[1:3], stride, strict=True)]
    if not any(missing):
        return x
    padding = [(gap // 2, gap - gap // 2) for gap in missing]
    return layers.ZeroPadding2D(
        padding, data_format="channels_last", name=f"{name}_pad"
    )(x)


def _pixel_rows(x, stride, name):
    """Return one row for each pixel of a batch, those of a patch in succession."""
    _, height, width, channels = x.shape
    if stride != [1, 1]:
        rows, columns = height // stride[0], width // stride[1]
        split = (rows, stride[0], columns, stride[1], channels)
        x = layers.Reshape(split, name=f"{name}_split")(x)
        x = layers.Permute((1, 3, 2, 4, 5), name=f"{name}_group")(x)
    return _rows(x, (-1, channels), f"{name}_pixels")


def _rows(x, shape, name):
    """Reshape across the batch axis, which `keras.layers.Reshape` cannot."""
    x = keras.ops.reshape(x, shape)
    # Operations take no name when called, and an automatic one may be taken.
    producer(x).operation.name = name
    return x
