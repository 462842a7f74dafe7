"""Batches of image files: decoded by threads, the same on every backend.

Pillow reads them on TensorFlow, JAX and PyTorch alike, so one image has the same pixels
everywhere, and a batch is a pure function of seed, epoch and place: a training that was
killed goes on with the batches it would have had.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from PIL import Image, ImageOps

from images import split

Size = tuple[int, int]  # Height and width, in pixels.
_AHEAD = 2  # Batches that are decoded while one is trained on.
_AREA = (0.35, 1.0)  # Share of an image that a crop keeps.
_ASPECT = (3 / 4, 4 / 3)  # Its width over its height, as Inception's.
_ATTEMPTS = 10


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1))


def centred(image: Image.Image, size: Size) -> np.ndarray:
    """Returns the largest centred window of the size's shape, resized: (h, w, 3)."""
    return _pixels(ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR))


def augmented(
    image: Image.Image, size: Size, rng: np.random.Generator, *, mirror: bool
) -> np.ndarray:
    """Returns a random window, resized, and mirrored half of the time: (h, w, 3).

    The crops by which the networks of keras.applications were trained on ImageNet
    (Szegedy et al., "Going deeper with convolutions", CVPR 2015), of larger parts, as
    is usual for fine-tuning.

    Args:
        image: RGB image of any size.
        size: Height and width of the result.
        rng: Source of the window and of the choice to mirror.
        mirror: Whether left and right may be exchanged.
    """
    width, height = image.size
    box = None
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*_AREA)
        aspect = np.exp(rng.uniform(*np.log(_ASPECT)))
        across, down = np.sqrt(area * aspect), np.sqrt(area / aspect)
        if across <= width and down <= height:
            left, top = rng.uniform(0, width - across), rng.uniform(0, height - down)
            box = (left, top, left + across, top + down)
            break
    image = image.resize(size[::-1], Image.Resampling.BILINEAR, box=box)
    if mirror and rng.random() < 0.5:
        image = ImageOps.mirror(image)
    return _pixels(image)


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, "float32")


@dataclasses.dataclass(frozen=True)
class Batches:
    """Shuffled, augmented batches of one epoch after the other, without end.

    All have `batch_size` images; those that fill no batch wait for another epoch. Of
    several processes, each has an equal share of every batch, and decodes no other.

    Args:
        part: Images to train on.
        size: Height and width of a batch's images.
        batch_size: Images in a batch, of all processes together.
        seed: Seed of order and augmentation.
        mirror: Whether left and right may be exchanged.
        class_weights: Weight of each class, shape (classes,); `None` for none.
        first_epoch: The epoch to begin with, from 0.
        process: Which share this process has, from 0.
        processes: How many equal shares a batch is cut into.
    """

    part: split.Part
    size: Size
    batch_size: int
    seed: int
    mirror: bool = True
    class_weights: np.ndarray | None = None
    first_epoch: int = 0
    process: int = 0
    processes: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return len(self.part.labels) // self.batch_size

    @property
    def own_size(self) -> int:
        """Images of a batch that this process has."""
        return self.batch_size // self.processes

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        """Begins with `first_epoch`; images (n, h, w, 3) from 0 to 255, labels (n,).

        With class weights, each sample's weight (n,) is the third of a batch.
        """
        places = itertools.chain.from_iterable(
            map(self._places, itertools.count(self.first_epoch))
        )
        waiting: collections.deque = collections.deque()
        for epoch, indices in places:
            read = [_pool().submit(self._image, epoch, index) for index in indices]
            waiting.append((read, indices))
            if len(waiting) > _AHEAD:
                yield self._batch(*waiting.popleft())

    def _places(self, epoch: int) -> Iterator[tuple[int, np.ndarray]]:
        # Stream 0 of an epoch is its order, the others are those of the images.
        rng = np.random.default_rng([self.seed, epoch, 0])
        order = rng.permutation(len(self.part.labels))
        for step in range(self.steps_per_epoch):
            start = step * self.batch_size + self.process * self.own_size
            yield epoch, order[start:][: self.own_size]

    def _image(self, epoch: int, index: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch, int(index) + 1])
        image = self.part.read(int(index))
        return augmented(image, self.size, rng, mirror=self.mirror)

    def _batch(self, read: Any, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        images = np.stack([each.result() for each in read])
        return self._labelled(images, self.part.labels[indices])

    def _labelled(
        self, images: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        if self.class_weights is None:
            return images, labels
        return images, labels, self.class_weights[labels].astype("float32")


class Whole(keras.utils.PyDataset):
    """Every image of a part once, in order, without augmentation.

    Args:
        part: The images.
        size: Height and width of a batch's images.
        batch_size: Images in a batch; the last one may have fewer.
        multiple: Number of devices: fewer images than that may be left out, so that
            each has as many of every batch.
        process: Which of equal shares of all of them this process has, from 0.
        processes: Number of shares, a divisor of `multiple`.
    """

    def __init__(
        self,
        part: split.Part,
        size: Size,
        batch_size: int,
        multiple: int = 1,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        super().__init__()
        count = len(part.labels) // multiple * multiple
        self._part, self._size, self._batch_size = part, size, batch_size
        self._indices = range(process, count, processes)

    def __len__(self) -> int:
        """Returns the number of batches."""
        return -(-len(self._indices) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns images (n, h, w, 3) from 0 to 255, and labels (n,)."""
        first = index * self._batch_size
        chosen = self._indices[first : first + self._batch_size]
        images = _pool().map(self._image, chosen)
        return np.stack(list(images)), self._part.labels[list(chosen)]

    def _image(self, index: int) -> np.ndarray:
        return centred(self._part.read(index), self._size)


def balanced_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns weights by which every class counts the same, of mean 1 over the images.

    Args:
        labels: Class indices of the training images, each class at least once.
        classes: Number of classes.

    Returns:
        Images / (classes * images of the class), shape (classes,).
    """
    return len(labels) / (classes * np.bincount(labels, minlength=classes))
