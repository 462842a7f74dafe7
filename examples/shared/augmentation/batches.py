"""The usual training batches of CIFAR papers: shuffled, cropped, mirrored, normalized.

`Augmented` makes them with NumPy, `AugmentedOnDevice` where the network trains: the
images lie in device memory; the host draws which of them a batch has and how each is
cropped, 16 bytes an image; a compiled function gathers, crops and normalizes them. It
copies bytes and looks their values up in a table, so the batches are equal to NumPy's
bit by bit, on every device.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from shared import cifar100
from shared.environment import accelerators


class Augmented:
    """Shuffled batches of randomly cropped, randomly mirrored, normalized images.

    The usual training data of CIFAR papers: each image is padded with black pixels,
    cropped back at a random place, and mirrored half of the time. A batch is a pure
    function of (seed, epoch, index), so every epoch differs and epoch 7 of a resumed
    training equals epoch 7 of one that never stopped:

    ```python
    data = Augmented(images, labels, 128, seed=0)
    model.fit(
        data.batches(first_epoch=7),
        steps_per_epoch=data.num_batches,
        initial_epoch=7,
        epochs=200,
        shuffle=False,  # by Keras, which cannot shuffle a generator
    )
    ```

    One generator for all epochs, not a `keras.utils.PyDataset`: that is told no epoch's
    number, and on TensorFlow Keras would make a tf.data pipeline of it for each epoch,
    whose threads end so late that short epochs take half as long again.

    Args:
        images: (n, height, width, 3), uint8.
        labels: (n, ...), returned as they are.
        batch_size: Images per batch; the last batch of an epoch may be smaller.
        seed: Non-negative integer.
        crop_padding: Width of the border around an image, in pixels.
        crop_fill: Its grey level, 0 to 255.
        change: `(images, rng) -> images`, uint8, after cropping; see `policies`.
        mix: `(images, labels, rng) -> images, labels` of normalized ones; see `mixing`.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        *,
        seed: int,
        crop_padding: int = 4,
        crop_fill: int = 0,
        change: Callable[..., np.ndarray] | None = None,
        mix: Callable[..., tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> None:
        if len(images) != len(labels) or batch_size < 1:
            raise ValueError(
                f"Received {len(images)} images, {len(labels)} labels and batch_size="
                f"{batch_size}; expected one label per image and a batch_size of at "
                "least 1."
            )
        self._images = images
        self._labels = labels
        self._batch_size = batch_size
        self._seed = seed
        self._crop_padding = crop_padding
        self._crop_fill = crop_fill
        self._change = change
        self._mix = mix
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Makes the batches those of `epoch`, counted from 0."""
        self._epoch = epoch
        order = np.random.default_rng([self._seed, epoch, 0])
        self._order = order.permutation(len(self._images))

    def batches(self, first_epoch: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the batches of one epoch after the other, without end."""
        for epoch in itertools.count(first_epoch):
            self.set_epoch(epoch)
            for index in range(self.num_batches):
                yield self[index]

    @property
    def num_batches(self) -> int:
        """Number of batches in an epoch."""
        return -(-len(self._images) // self._batch_size)

    def draw(self, index: int) -> "Draw":
        """Returns which images batch `index` of the epoch has, and their crops."""
        if not 0 <= index < self.num_batches:
            raise IndexError(f"Batch {index} of {self.num_batches}.")
        start = index * self._batch_size
        indices = self._order[start : start + self._batch_size]
        # Stream 0 of the epoch shuffled it.
        rng = np.random.default_rng([self._seed, self._epoch, index + 1])
        return Draw(indices, *draw_crops(len(indices), rng, self._crop_padding))

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns batch `index` of the epoch: float32 images and their labels."""
        drawn = self.draw(index)
        images, labels = self._images[drawn.indices], self._labels[drawn.indices]
        border = self._crop_padding, self._crop_fill
        images = crop(images, drawn.corners, drawn.mirrored, *border)
        if self._change is not None:
            images = self._change(images, self._random(index, 1))
        images = cifar100.normalize(images)
        if self._mix is not None:
            images, labels = self._mix(images, labels, self._random(index, 2))
        return images, labels

    def _random(self, index: int, stream: int) -> np.random.Generator:
        """Returns a batch's generator of its own for each use of random numbers."""
        # From 1 on: NumPy fills keys up with zeros, so 0 would be the one of `draw`.
        return np.random.default_rng([self._seed, self._epoch, index + 1, stream])


class Draw(NamedTuple):
    """A batch before augmentation: which images, and how each of them is cropped."""

    indices: np.ndarray
    """(n,), of the images in the data set."""
    corners: np.ndarray
    """(n, 2), rows above and columns left of the crop in the padded image."""
    mirrored: np.ndarray
    """(n,), whether left and right change places."""


def draw_crops(
    count: int, rng: np.random.Generator, padding: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws uniform `corners` (count, 2), 0 to 2 · padding, and `mirrored` (count,)."""
    corners = rng.integers(0, 2 * padding + 1, size=(2, count)).T
    return corners, rng.random(count) < 0.5


def crop(
    images: np.ndarray,
    corners: np.ndarray,
    mirrored: np.ndarray,
    padding: int,
    fill: int = 0,
) -> np.ndarray:
    """Shifts images over black or grey, and mirrors some of them.

    Args:
        images: (n, height, width, channels).
        corners: (n, 2), row and column of the crop's first pixel in the padded image.
        mirrored: (n,), whether to mirror the crop.
        padding: Width of the border around an image, in pixels.
        fill: Its grey level.

    Returns:
        Images of the same shape and type.
    """
    _, height, width, _ = images.shape
    border = (padding, padding)
    around = (0, 0), border, border, (0, 0)
    padded = np.pad(images, around, constant_values=fill)
    cropped = np.empty_like(images)
    # A third of the time that indexing all pixels of all images at once takes.
    for i, (top, left) in enumerate(corners.tolist()):
        found = padded[i, top : top + height, left : left + width]
        cropped[i] = found[:, ::-1] if mirrored[i] else found
    return cropped


class AugmentedOnDevice(Augmented):
    """`Augmented` whose images are tensors of the backend, on its device.

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


def default_place() -> str:
    """Returns `"device"` where a training on the backend gains by it, else `"host"`.

    On TensorFlow, Keras passes what a generator yields through tf.data, on the host:
    images of a device would travel to the host and back.
    """
    on_host = keras.backend.backend() == "tensorflow" or not accelerators()
    return "host" if on_host else "device"


AUGMENTED: dict[str, type[Augmented]] = {
    "device": AugmentedOnDevice,
    "host": Augmented,
}
