"""The CIFAR-100 examples' data: order, subsets, augmentation, epochs under `fit`."""

import collections
import importlib.util
import io
import sys
import types

import numpy as np
import pytest
from PIL import Image

from shared import cifar100

PARTS = ["cifar100-0.npz", "cifar100-1.npz", "cifar100-2.npz"]


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def write_npz(folder, images, labels, is_test):
    """Writes the three parts as described for machines without TensorFlow."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(
        PARTS, np.array_split(np.arange(len(labels)), 3), strict=True
    ):
        files = [images[row] for row in rows]
        np.savez(
            folder / name,
            png=np.frombuffer(b"".join(files), "uint8"),
            offset=np.cumsum([0, *map(len, files)]),
            label=labels[rows],
            coarse_label=labels[rows] // 5,
            split=is_test[rows].astype("uint8"),
        )


def write_fake(folder, train_per_class=6, test_per_class=1, seed=0):
    """Writes random images in random order; returns images, labels and is_test."""
    rng = np.random.default_rng(seed)
    parts = [
        rng.permutation(np.repeat(np.arange(100), count))
        for count in (train_per_class, test_per_class)
    ]
    labels = np.concatenate(parts)
    is_test = np.arange(len(labels)) >= len(parts[0])
    images = rng.integers(0, 256, (len(labels), 32, 32, 3), "uint8")
    write_npz(folder, [png(image) for image in images], labels, is_test)
    return images, labels, is_test


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar100")
    return folder, *write_fake(folder)


def identities(split):
    return [image.tobytes() for image in split.images]


def first_of_every_class(labels, count):
    seen = collections.Counter()
    rows = []
    for row, label in enumerate(labels):
        seen[label] += 1
        if seen[label] <= count:
            rows.append(row)
    return rows


def test_npz_returns_all_images_in_order(fake):
    folder, images, labels, is_test = fake
    data = cifar100.load(folder)
    assert data.train.images.dtype == data.test.images.dtype == np.uint8
    np.testing.assert_array_equal(data.train.images, images[~is_test])
    np.testing.assert_array_equal(data.train.labels, labels[~is_test])
    np.testing.assert_array_equal(data.test.images, images[is_test])
    np.testing.assert_array_equal(data.test.labels, labels[is_test])
    assert data.validation.images.shape == (0, 32, 32, 3)
    assert data.validation.labels.shape == (0,)


def test_subset_is_the_first_images_of_every_class(fake):
    folder, images, labels, is_test = fake
    for seed in (0, 1):
        train = cifar100.load(
            folder, train_examples=200, validation_examples=100, seed=seed
        ).train
        rows = first_of_every_class(labels[~is_test], 2)
        np.testing.assert_array_equal(train.images, images[~is_test][rows])
        np.testing.assert_array_equal(train.labels, labels[~is_test][rows])


@pytest.mark.parametrize("train_examples", [None, 200])
def test_hold_out_is_balanced_and_disjoint_and_never_test(fake, train_examples):
    folder, images, labels, is_test = fake
    data = cifar100.load(folder, train_examples=train_examples, validation_examples=300)
    held_out = identities(data.validation)
    assert len(set(held_out)) == 300
    assert set(held_out).isdisjoint(identities(data.train))
    assert set(np.bincount(data.validation.labels)) == {3}
    assert len(data.train.labels) == (train_examples or 300)
    training_label = {
        image.tobytes(): label
        for image, label in zip(images[~is_test], labels[~is_test], strict=True)
    }
    assert [training_label[image] for image in held_out] == list(data.validation.labels)


def test_hold_out_follows_the_seed(fake):
    held_out = [
        identities(cifar100.load(fake[0], validation_examples=100, seed=seed)[1])
        for seed in (0, 0, 1)
    ]
    assert held_out[0] == held_out[1] != held_out[2]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train_examples": 150}, "train_examples=150; expected a multiple of 100"),
        ({"train_examples": 0}, "train_examples=0; expected a multiple of 100, at lea"),
        ({"validation_examples": -100}, "validation_examples=-100; expected a mult"),
        ({"train_examples": 700}, "expected at most 600 together"),
        ({"train_examples": 400, "validation_examples": 300}, "at most 600 together"),
        ({"validation_examples": 600}, "some of them for training"),
    ],
)
def test_impossible_sizes_are_refused(fake, sizes, message):
    with pytest.raises(ValueError, match=message):
        cifar100.load(fake[0], **sizes)


def test_a_missing_part_is_named(tmp_path):
    write_fake(tmp_path, 1)
    (tmp_path / PARTS[1]).unlink()
    with pytest.raises(FileNotFoundError, match=r"'cifar100-1.npz'.*; expected all"):
        cifar100.load(tmp_path)


def test_without_tensorflow_and_npz_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="tensorflow is not installed; expect"):
        cifar100.load(tmp_path)


def test_a_failed_download_says_what_was_expected(tmp_path, monkeypatch):
    class Builder:
        def is_prepared(self):
            return False

        def download_and_prepare(self):
            raise ConnectionError("no network")

    fake_tf = types.SimpleNamespace(
        config=types.SimpleNamespace(set_visible_devices=lambda *devices: None)
    )
    fake_tfds = types.SimpleNamespace(builder=lambda name, data_dir: Builder())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "tensorflow", fake_tf)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake_tfds)
    with pytest.raises(FileNotFoundError, match="does not hold CIFAR-100, and the do"):
        cifar100.load(tmp_path)


@pytest.mark.long
@pytest.mark.real_data
def test_tfds_and_npz_hold_the_same_images_in_the_same_order(tfds_folder, tmp_path):
    import tensorflow as tf

    features = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }
    images, labels, is_test = [], [], []
    for split in ("train", "test"):
        (path,) = tfds_folder.glob(f"cifar100/*/cifar100-{split}.tfrecord*")
        for record in tf.data.TFRecordDataset(str(path)).take(1000):
            example = tf.io.parse_single_example(record, features)
            images.append(example["image"].numpy())
            labels.append(int(example["label"]))
            is_test.append(split == "test")
    write_npz(tmp_path, images, np.array(labels), np.array(is_test))
    npz, tfds = cifar100.load(tmp_path), cifar100.load(tfds_folder)
    assert (len(tfds.train.labels), len(tfds.test.labels)) == (50_000, 10_000)
    for ours, theirs in ((npz.train, tfds.train), (npz.test, tfds.test)):
        np.testing.assert_array_equal(ours.images, theirs.images[:1000])
        np.testing.assert_array_equal(ours.labels, theirs.labels[:1000])
    decoded = np.stack([tf.io.decode_png(image).numpy() for image in images[:1000]])
    np.testing.assert_array_equal(npz.train.images, decoded)
    mean = tfds.train.images.mean((0, 1, 2), dtype="float64")
    squares = np.square(tfds.train.images, dtype="uint16")
    std = np.sqrt(squares.mean((0, 1, 2), dtype="float64") - mean**2)
    np.testing.assert_allclose(mean / 255, cifar100.MEAN, atol=1e-4)
    np.testing.assert_allclose(std / 255, cifar100.STD, atol=1e-4)


def test_normalize_equals_the_formula():
    images = np.arange(256, dtype="uint8").repeat(3).reshape(1, 16, 16, 3)
    mean, std = [0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]
    normalized = cifar100.normalize(images)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized, (images / 255 - mean) / std, atol=1e-6)
