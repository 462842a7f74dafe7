"""CIFAR-100 as NumPy arrays, and batches of them with the usual augmentation.

`load` reads either a TensorFlow Datasets folder or three npz files of PNG images, which
need no TensorFlow. Both hold the images in the same order, so "the first 50 images of
every class" means the same everywhere.

An npz file holds `png` (uint8, its PNG files end to end), `offset` (int64, n + 1, where
each begins and the last ends), `label` (int64, n, 0 to 99) and `split` (uint8, n, 0 for
training images, 1 for test images). All three together hold the training images first.
"""

import importlib.util
import io
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import keras
import numpy as np
from PIL import Image

CLASSES = 100
# Mean and standard deviation of the training images' channels, scaled to [0, 1].
MEAN = np.array([0.5071, 0.4865, 0.4409], "float32")
STD = np.array([0.2673, 0.2564, 0.2762], "float32")
PARTS = tuple(f"cifar100-{part}.npz" for part in range(3))


class Split(NamedTuple):
    """Images of shape (n, 32, 32, 3), uint8, and their labels (n,), 0 to 99."""

    images: np.ndarray
    labels: np.ndarray


class Cifar100(NamedTuple):
    """The three disjoint parts; `validation` is empty unless asked for."""

    train: Split
    validation: Split
    test: Split


class _Encoded(NamedTuple):
    """One split as stored: PNG files and their labels."""

    images: Sequence[bytes]
    labels: np.ndarray

    def decode(self, indices: np.ndarray) -> Split:
        images = np.empty((len(indices), 32, 32, 3), "uint8")
        for image, index in zip(images, indices, strict=True):
            image[:] = Image.open(io.BytesIO(self.images[index]))
        return Split(images, self.labels[indices])


def load(
    data_dir: str | pathlib.Path,
    *,
    train_examples: int | None = None,
    validation_examples: int = 0,
    seed: int = 0,
) -> Cifar100:
    """Reads CIFAR-100.

    Args:
        data_dir: Folder with `cifar100-0.npz` to `cifar100-2.npz`, or a TensorFlow
            Datasets folder. If it has neither, TensorFlow Datasets downloads the images
            into it.
        train_examples: Size of a class-balanced training subset, a multiple of 100: the
            first `train_examples // 100` images of every class. `None` takes all.
        validation_examples: Size of a class-balanced hold-out, a multiple of 100, drawn
            from those training images that are not in the subset. The test images are
            never part of it.
        seed: Chooses the hold-out.

    Returns:
        The training, validation and test split, each in the order of the data set.

    Raises:
        FileNotFoundError: If there are no images and none can be downloaded.
        ValueError: If a size is not a multiple of 100, or more than there is.
    """
    train, test = _read(pathlib.Path(data_dir).expanduser())
    chosen, held_out = _choose(
        train.labels, train_examples, validation_examples, np.random.default_rng(seed)
    )
    return Cifar100(
        train.decode(chosen),
        train.decode(held_out),
        test.decode(np.arange(len(test.labels))),
    )


def _choose(
    labels: np.ndarray,
    train_examples: int | None,
    validation_examples: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of the training subset and the hold-out, ascending."""
    first = 0 if train_examples is None else train_examples // CLASSES
    count = validation_examples // CLASSES
    for argument, examples, least in (
        ("train_examples", train_examples, CLASSES),
        ("validation_examples", validation_examples, 0),
    ):
        if examples is not None and (examples < least or examples % CLASSES):
            raise ValueError(
                f"Received {argument}={examples}; expected a multiple of {CLASSES}, at "
                f"least {least}: the same number of images of every class."
            )
    by_class = [np.flatnonzero(labels == label) for label in range(CLASSES)]
    available = min(map(len, by_class))
    if max(first, 1) + count > available:
        raise ValueError(
            f"Received train_examples={train_examples} and validation_examples="
            f"{validation_examples}; expected at most {CLASSES * available} together, "
            "and some of them for training. Ask for fewer."
        )
    drawn = [rng.choice(indices[first:], count, replace=False) for indices in by_class]
    held_out = np.sort(np.concatenate(drawn))
    if train_examples is None:
        return np.setdiff1d(np.arange(len(labels)), held_out), held_out
    return np.sort(np.concatenate([indices[:first] for indices in by_class])), held_out


def _read(folder: pathlib.Path) -> tuple[_Encoded, _Encoded]:
    missing = [part for part in PARTS if not (folder / part).exists()]
    if len(missing) == len(PARTS):
        return _read_tfds(folder)
    if missing:
        raise FileNotFoundError(
            f"Received data_dir={folder} without {missing}; expected all of "
            f"{list(PARTS)}. Copy what is missing into the folder."
        )
    return _read_npz(folder)


def _read_npz(folder: pathlib.Path) -> tuple[_Encoded, _Encoded]:
    images: list[bytes] = []
    labels, splits = [], []
    for part in PARTS:
        with np.load(folder / part) as arrays:
            png, offset = arrays["png"].tobytes(), arrays["offset"]
            labels.append(arrays["label"])
            splits.append(arrays["split"])
        images += [png[start:end] for start, end in itertools.pairwise(offset)]
    label, is_test = np.concatenate(labels), np.concatenate(splits) == 1

    def split(mask: np.ndarray) -> _Encoded:
        return _Encoded([images[index] for index in np.flatnonzero(mask)], label[mask])

    return split(~is_test), split(is_test)


def _read_tfds(folder: pathlib.Path) -> tuple[_Encoded, _Encoded]:
    for module in ("tensorflow", "tensorflow_datasets"):
        if importlib.util.find_spec(module) is None:
            raise FileNotFoundError(
                f"Received data_dir={folder} without {PARTS[0]}, and {module} is not "
                f"installed; expected {list(PARTS)} there, or tensorflow and "
                "tensorflow_datasets. Install them, or copy the npz files there."
            )
    import tensorflow as tf
    import tensorflow_datasets as tfds

    if keras.backend.backend() != "tensorflow":
        # TensorFlow would take all of the memory that JAX or PyTorch needs.
        tf.config.set_visible_devices([], "GPU")
    builder = tfds.builder("cifar100", data_dir=folder)
    if not builder.is_prepared():
        try:
            builder.download_and_prepare()
        except Exception as error:  # no connection, no space, no permission, ...
            raise FileNotFoundError(
                f"Received data_dir={folder}, which does not hold CIFAR-100, and the "
                f"download failed; expected {list(PARTS)} or a prepared TensorFlow "
                "Datasets folder. Pass the folder that holds the folder `cifar100`."
            ) from error
    train, test = (
        builder.as_dataset(
            split=split,
            batch_size=1000,
            shuffle_files=False,
            # One file at a time, or a set in several shards comes in another order.
            read_config=tfds.ReadConfig(interleave_cycle_length=1),
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        for split in ("train", "test")
    )
    return _encoded(tfds.as_numpy(train)), _encoded(tfds.as_numpy(test))


def _encoded(batches: Iterable[dict[str, np.ndarray]]) -> _Encoded:
    images: list[bytes] = []
    labels = []
    for batch in batches:
        images += batch["image"].tolist()
        labels.append(batch["label"])
    return _Encoded(images, np.concatenate(labels))


def normalize(images: np.ndarray) -> np.ndarray:
    """Maps uint8 images (..., 3) to float32 with mean 0 and variance 1 per channel."""
    # Whole rows of an image at a time: NumPy's loops over three channels are slow.
    *leading, width, channels = images.shape
    rows = images.reshape(*leading, width * channels).astype("float32")
    rows /= np.float32(255)
    rows -= np.tile(MEAN, width)
    rows /= np.tile(STD, width)
    return rows.reshape(images.shape)


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

    `device_augmentation.AugmentedOnDevice` makes the same batches on an accelerator.

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
        images = self._images[drawn.indices]
        images = crop(images, drawn.corners, drawn.mirrored, self._crop_padding)
        return normalize(images), self._labels[drawn.indices]


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
    images: np.ndarray, corners: np.ndarray, mirrored: np.ndarray, padding: int
) -> np.ndarray:
    """Shifts images over black, and mirrors some of them.

    Args:
        images: (n, height, width, channels).
        corners: (n, 2), row and column of the crop's first pixel in the padded image.
        mirrored: (n,), whether to mirror the crop.
        padding: Width of the black border around an image, in pixels.

    Returns:
        Images of the same shape and type.
    """
    _, height, width, _ = images.shape
    border = (padding, padding)
    padded = np.pad(images, ((0, 0), border, border, (0, 0)))
    cropped = np.empty_like(images)
    # A third of the time that indexing all pixels of all images at once takes.
    for i, (top, left) in enumerate(corners.tolist()):
        found = padded[i, top : top + height, left : left + width]
        cropped[i] = found[:, ::-1] if mirrored[i] else found
    return cropped
