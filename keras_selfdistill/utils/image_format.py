"""Where images have their channels: Keras' global setting."""

from collections.abc import Sequence

import keras

_COLORS = (1, 3)  # Channels of grey and of colour images.


def channel_axis() -> int:
    """Return the axis of the channels in a batch of images: -1, or 1 if they are first.

    Example:
        >>> channel_axis()
        -1
    """
    return -1 if keras.config.image_data_format() == "channels_last" else 1


def image_shape(given: Sequence[int] | None) -> tuple[int, ...]:
    """Return the shape of one image, in the image data format.

    Args:
        given: Shape given by a user; `None` for 32x32 with 3 channels.

    Raises:
        ValueError: There are not three axes, or the channels are not where Keras has
            them.

    Example:
        >>> image_shape(None)
        (32, 32, 3)
    """
    last = channel_axis() == -1
    order = "(height, width, channels)" if last else "(channels, height, width)"
    if given is None:
        return (32, 32, 3) if last else (3, 32, 32)
    # Such a network would convolve over an axis of channels without a word.
    axes = (-1, 0) if last else (0, -1)  # Of the channels, and of a size.
    if len(given) != 3 or (given[axes[0]] not in _COLORS and given[axes[1]] in _COLORS):
        raise ValueError(
            f"Received input_shape={given}; expected {order} without the batch axis, "
            f"such as {(32, 32, 3) if last else (3, 32, 32)}, because "
            f"keras.config.image_data_format() is "
            f"{keras.config.image_data_format()!r}."
        )
    return tuple(given)
