"""The batches of `cifar100.Augmented`, made where the network trains.

The images lie in device memory. The host draws which of them a batch has and how each
is cropped, 16 bytes an image; a compiled function gathers, crops and normalizes them
there. It copies bytes and looks their values up in a table, so the batches are equal to
NumPy's bit by bit, on every device.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from shared import cifar100
from shared.environment import accelerators


def default_place() -> str:
    """Returns `"device"` where a training on the backend gains by it, else `"host"`.

    On TensorFlow, Keras passes what a generator yields through tf.data, on the host:
    images of a device would travel to the host and back.
    """
    on_host = keras.backend.backend() == "tensorflow" or not accelerators()
    return "host" if on_host else "device"


def augmented(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    place: str,
    crop_padding: int = 4,
) -> cifar100.Augmented:
    """Returns the augmented images as `place` makes them: `"device"` or `"host"`.

    The other arguments are those of `cifar100.Augmented`.
    """
    made = {"device": AugmentedOnDevice, "host": cifar100.Augmented}[place]
    return made(images, labels, batch_size, seed=seed, crop_padding=crop_padding)


class AugmentedOnDevice(cifar100.Augmented):
    """`cifar100.Augmented` whose images are tensors of the backend, on its device.

    All images are copied to the device at once, three bytes a pixel: 154 MB for
    CIFAR-100.

    Args:
        images: (n, height, width, 3), uint8.
        labels: (n, ...), returned as they are.
        batch_size: Images per batch; the last batch of an epoch may be smaller.
        seed: Non-negative integer.
        crop_padding: Width of the black border around an image, in pixels.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        *,
        seed: int,
        crop_padding: int = 4,
    ) -> None:
        super().__init__(
            images, labels, batch_size, seed=seed, crop_padding=crop_padding
        )
        levels = np.arange(256, dtype="uint8")[:, None].repeat(3, axis=1)
        self._on_device = [
            ops.convert_to_tensor(images),
            ops.convert_to_tensor(cifar100.normalize(levels).reshape(-1)),
        ]

    def __getitem__(self, index: int) -> tuple[Any, np.ndarray]:
        """Returns batch `index` of the epoch: float32 images and their labels."""
        drawn = self.draw(index)
        # One array: each one costs a transfer of its own.
        columns = [drawn.indices, *drawn.corners.T, drawn.mirrored]
        plan = np.stack(columns, axis=-1).astype("int32")
        images = _compiled()(*self._on_device, plan, padding=self._crop_padding)
        return images, self._labels[drawn.indices]


def _gather(images: Any, levels: Any, plan: Any, padding: int) -> Any:
    """Returns the normalized crops that the rows of `plan` describe.

    Args:
        images: (m, height, width, 3), uint8.
        levels: (768,), the normalized value of each level of each channel, level by
            level. A formula would be rounded in other ways by other compilers.
        plan: (n, 4), int32: image, row and column of the crop, whether it is mirrored.
        padding: Width of the black border around an image, in pixels.
    """
    _, height, width, channels = images.shape
    index, top, left, mirrored = ops.unstack(ops.convert_to_tensor(plan), axis=-1)
    border = [padding, padding]
    chosen = ops.take(images, index, axis=0)
    padded = ops.pad(chosen, [[0, 0], border, border, [0, 0]])
    across = ops.arange(width, dtype="int32")
    across = ops.where(mirrored[:, None] == 1, width - 1 - across, across)
    rows = top[:, None] + ops.arange(height, dtype="int32")
    columns = left[:, None] + across
    pixels = ops.take_along_axis(padded, rows[:, :, None, None], axis=1)
    pixels = ops.take_along_axis(pixels, columns[:, None, :, None], axis=2)
    places = ops.cast(pixels, "int32") * channels + ops.arange(channels, dtype="int32")
    return ops.take(levels, places, axis=0)


@functools.cache
def _compiled() -> Callable[..., Any]:
    """Returns `_gather`, compiled where the backend can; PyTorch runs its few calls."""
    match keras.backend.backend():
        case "jax":
            import jax

            return jax.jit(_gather, static_argnames="padding")
        case "tensorflow":
            import tensorflow as tf

            return tf.function(_gather)
    return _gather
