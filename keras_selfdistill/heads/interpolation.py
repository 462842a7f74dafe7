"""Interpolation of images to another image's size."""

from collections.abc import Sequence

from keras import layers

from keras_selfdistill.utils.type_aliases import DType, SymbolicTensor


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
