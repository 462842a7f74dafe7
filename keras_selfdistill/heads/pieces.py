"""Building blocks of heads."""

import keras
from keras import layers

from keras_selfdistill.backend.batch_norm import use_fused_kernel
from keras_selfdistill.graph.layout import data_format_of
from keras_selfdistill.graph.nodes import producer
from keras_selfdistill.heads.base import Target
from keras_selfdistill.utils.type_aliases import DType, SymbolicTensor


def channels_last(tap: SymbolicTensor, target: Target, name: str) -> SymbolicTensor:
    """Return a tap as `(batch, height, width, channels)`, of known size.

    Raises:
        ValueError: The tap or the end of the base does not have two spatial axes of
            known size.
    """
    if len(tap.shape) != 4 or len(target.spatial_shape) != 2:
        raise ValueError(
            f"The head of {name!r} needs a tap with two spatial axes, in a base that "
            f"keeps them to its end. Received: a tap of shape {tuple(tap.shape)}. "
            "Expected: (batch, height, width, channels). Tap an earlier layer, or pass "
            "head='linear'."
        )
    if None in tap.shape[1:] or None in target.spatial_shape:
        raise ValueError(
            f"The head of {name!r} needs a known size. Received: a tap of shape "
            f"{tuple(tap.shape)}. Expected: a base built with a fixed input shape, "
            "such as input_shape=(224, 224, 3)."
        )
    return features_last(tap, target, name)


def features_last(tap: SymbolicTensor, target: Target, name: str) -> SymbolicTensor:
    """Return a tap of any rank with its channels on the last axis."""
    if data_format_of(tap, target.data_format) == "channels_last":
        return tap
    positions = range(2, len(tap.shape))
    return layers.Permute((*positions, 1), name=f"{name}_channels_last")(tap)


def strides_to(image: SymbolicTensor, target: Target) -> tuple[int, int]:
    """Return the ratios of an image's size to the base's last one, rounded up."""
    height, width = (
        -(-size // last)
        for size, last in zip(image.shape[1:3], target.spatial_shape, strict=True)
    )
    return height, width


def he_normal() -> keras.initializers.Initializer:
    """Return a new initializer of He's normal distribution, as in the papers' code.

    Keras' own of this name truncates the distribution at two deviations. On PyTorch it
    is so slow that wrapping would take longer than building the base.
    """
    return keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal")


def dense_bn_relu(
    x: SymbolicTensor, units: int, name: str, dtype: DType
) -> SymbolicTensor:
    """Add a 1×1 convolution, as a dense layer on a matrix of pixels, BN and ReLU."""
    x = layers.Dense(
        units, use_bias=False, kernel_initializer=he_normal(), name=name, dtype=dtype
    )(x)
    return bn_relu(x, name, dtype)


def bn_relu(rows: SymbolicTensor, name: str, dtype: DType) -> SymbolicTensor:
    """Add batch normalisation and ReLU to a matrix of pixels."""
    normalization = layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, name=f"{name}_bn", dtype=dtype
    )
    rows = use_fused_kernel(normalization)(rows)
    return layers.ReLU(name=f"{name}_relu", dtype=dtype)(rows)


def pointwise_bn_relu(
    image: SymbolicTensor, units: int, name: str, dtype: DType
) -> SymbolicTensor:
    """Add a 1×1 convolution with BN and ReLU to an image, and return the image."""
    _, height, width, channels = image.shape
    rows = reshape_rows(image, (-1, channels), f"{name}_pixels")
    rows = dense_bn_relu(rows, units, name, dtype)
    return reshape_rows(rows, (-1, height, width, units), f"{name}_image")


def patch_rows(
    image: SymbolicTensor, stride: tuple[int, int], name: str
) -> tuple[SymbolicTensor, int]:
    """Return one row for each pixel of a batch, and the number of patches per image.

    The rows of a patch are contiguous. If the stride does not divide the image, it is
    first padded with zeros, evenly on both sides.
    """
    gaps = [-size % step for size, step in zip(image.shape[1:3], stride, strict=True)]
    if any(gaps):
        image = layers.ZeroPadding2D(
            [(gap // 2, gap - gap // 2) for gap in gaps],
            data_format="channels_last",
            name=f"{name}_pad",
        )(image)
    _, height, width, channels = image.shape
    rows, columns = height // stride[0], width // stride[1]
    if stride != (1, 1):
        split = (rows, stride[0], columns, stride[1], channels)
        image = layers.Reshape(split, name=f"{name}_split")(image)
        image = layers.Permute((1, 3, 2, 4, 5), name=f"{name}_group")(image)
    return reshape_rows(image, (-1, channels), f"{name}_pixels"), rows * columns


def pool_patches(
    rows: SymbolicTensor,
    patches: int,
    pixels: int,
    widths: tuple[int, int],
    name: str,
    dtype: DType,
) -> SymbolicTensor:
    """Add a convolution over patches and a 1×1 convolution; pool.

    Args:
        rows: Rows as returned by `patch_rows`.
        patches: Number of patches per image.
        pixels: Number of pixels per patch.
        widths: Channels of the two convolutions.
        name: Prefix of the layers' names.
        dtype: Dtype policy of the layers.
    """
    middle, width = widths
    x = reshape_rows(rows, (-1, pixels * rows.shape[-1]), f"{name}_patches")
    x = dense_bn_relu(x, middle, f"{name}_downsample", dtype)
    x = dense_bn_relu(x, width, f"{name}_expand", dtype)
    x = reshape_rows(x, (-1, patches, width), f"{name}_images")
    return layers.GlobalAveragePooling1D(
        data_format="channels_last", name=f"{name}_feature", dtype=dtype
    )(x)


def resize_positions(
    x: SymbolicTensor, positions: tuple[int | None, ...], name: str
) -> SymbolicTensor:
    """Interpolate one or two axes between batch and channels to other sizes.

    Raises:
        ValueError: A size is unknown, or there are more than two axes.
    """
    sizes = tuple(x.shape[1:-1])
    if sizes == tuple(positions):
        return x
    if None in (*sizes, *positions) or len(sizes) != len(positions) or len(sizes) > 2:
        raise ValueError(
            f"Cannot interpolate positions. Received: a tensor of shape "
            f"{tuple(x.shape)} for {name!r}, to reach positions {tuple(positions)}. "
            "Expected: one or two axes of known size, or equal sizes. Tap a layer with "
            "the output's positions, or build the base with a fixed input shape."
        )
    channels = x.shape[-1]
    if len(sizes) == 1:
        x = layers.Reshape((*sizes, 1, channels), name=f"{name}_column")(x)
    x = layers.Resizing(
        *positions,
        *([1] if len(sizes) == 1 else []),
        data_format="channels_last",
        name=name,
        dtype=x.dtype,
    )(x)
    if len(sizes) == 1:
        x = layers.Reshape((*positions, channels), name=f"{name}_row")(x)
    return x


def reshape_rows(
    x: SymbolicTensor, shape: tuple[int, ...], name: str
) -> SymbolicTensor:
    """Reshape including the batch axis, which `keras.layers.Reshape` cannot."""
    x = keras.ops.reshape(x, shape)
    # Operations accept no name when called, and an automatic one may be taken.
    producer(x).operation.name = name
    return x
