"""Interpolation of images to another image's size."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from keras_selfdistill.utils.config import PACKAGE
from keras_selfdistill.utils.type_aliases import (
    ConfigDict,
    DType,
    SymbolicTensor,
    Tensor,
)


@keras.saving.register_keras_serializable(package=PACKAGE)
class AlignedResizing(layers.Layer):
    """Resizes images bilinearly, so that the centres of corner pixels stay corners.

    PyTorch's `Upsample(mode="bilinear", align_corners=True)`; Keras aligns the centres
    of all pixels.

    Args:
        height: Height of the results.
        width: Width of the results.
        **options: Options of a Keras layer.

    Example:
        >>> image = np.array([0.0, 3.0]).reshape(1, 1, 2, 1)
        >>> found = AlignedResizing(1, 4)(image)
        >>> print(ops.convert_to_numpy(found).ravel())
        [0. 1. 2. 3.]
    """

    def __init__(self, height: int, width: int, **options: Any):
        super().__init__(**options)
        self.height = height
        self.width = width

    def call(self, image: Tensor) -> Tensor:
        """Return images of shape `(batch, height, width, channels)`."""
        return _along(_along(image, 1, self.height), 2, self.width)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple:
        """Return the shape of the results."""
        return (input_shape[0], self.height, self.width, input_shape[3])

    def get_config(self) -> ConfigDict:
        """Return the arguments that make an equal layer."""
        return {**super().get_config(), "height": self.height, "width": self.width}


def _along(image: Tensor, axis: int, new: int) -> Tensor:
    """Interpolate along one axis, from the first position to the last."""
    old = image.shape[axis]
    if old == new:
        return image
    at = np.linspace(0.0, old - 1, new) if new > 1 else np.zeros(1)
    low = np.minimum(at.astype("int32"), max(old - 2, 0))
    shape = [-1 if i == axis else 1 for i in range(4)]
    share = ops.cast((at - low).reshape(shape), image.dtype)
    high = np.minimum(low + 1, old - 1)
    before, after = (ops.take(image, rows, axis=axis) for rows in (low, high))
    return before + share * (after - before)


def _interpolate(
    image: SymbolicTensor, size: Sequence[int], name: str, dtype: DType
) -> SymbolicTensor:
    """Upsample an image by integer factors, and crop it at the end.

    An image that is too large, as a padded tensor near a base's end may be, is resized.
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


def _aligned(
    image: SymbolicTensor, size: Sequence[int], name: str, dtype: DType
) -> SymbolicTensor:
    """Resize an image with aligned corners."""
    if tuple(image.shape[1:3]) == tuple(size):
        return image
    return AlignedResizing(*size, name=name, dtype=dtype)(image)
