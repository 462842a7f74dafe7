"""CIFAR-100 as NumPy arrays.

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
from collections.abc import Iterable, Sequence
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
