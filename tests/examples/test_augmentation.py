"""Augmented batches: what they hold, under `fit`, and the same on the device."""

import collections
import itertools

import keras
import numpy as np
import pytest

from shared import augmentation, cifar100


def test_crops_are_shifts_over_black_and_half_are_mirrored():
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (2000, 6, 6, 3), "uint8")
    drawn = augmentation.draw_crops(len(images), np.random.default_rng(1), 1)
    augmented = augmentation.crop(images, *drawn, 1)
    found = collections.Counter()
    for image, result in zip(images, augmented, strict=True):
        canvas = np.zeros((8, 8, 3), "uint8")
        canvas[1:7, 1:7] = image
        for top, left, mirror in itertools.product(range(3), range(3), (False, True)):
            crop = canvas[top : top + 6, left : left + 6]
            if np.array_equal(result, crop[:, ::-1] if mirror else crop):
                found[top, left, mirror] += 1
    assert found.total() == 2000
    assert len(found) == 18
    # 2000 / 18 = 111 expected, standard deviation 10; 1000 and 22 for the mirrored.
    assert 60 < min(found.values()) <= max(found.values()) < 160
    assert 900 < sum(found[key] for key in found if key[2]) < 1100


def augmented(count=10, batch_size=4, seed=0):
    images = np.random.default_rng(5).integers(0, 256, (count, 6, 6, 3), "uint8")
    return augmentation.Augmented(
        images, np.arange(count), batch_size, seed=seed, crop_padding=2
    )


def epoch_of(data, epoch):
    data.set_epoch(epoch)
    return [data[index] for index in range(data.num_batches)]


def same(one, other):
    return all(
        np.array_equal(x, y) for x, y in zip(sum(one, ()), sum(other, ()), strict=True)
    )


def test_an_epoch_holds_every_image_once():
    for epoch in range(3):
        batches = epoch_of(augmented(), epoch)
        assert [len(labels) for _, labels in batches] == [4, 4, 2]
        labels = np.concatenate([labels for _, labels in batches])
        assert sorted(labels) == list(range(10))
        assert list(labels) != list(range(10))
        assert all(images.dtype == np.float32 for images, _ in batches)


def test_epochs_and_seeds_differ_in_order_and_in_augmentation():
    data = augmented()
    first, second = epoch_of(data, 0), epoch_of(data, 1)
    other_seed = epoch_of(augmented(seed=1), 0)
    for batches in (second, other_seed):
        assert [list(y) for _, y in batches] != [list(y) for _, y in first]
        by_label = [
            {label: x for images, y in b for x, label in zip(images, y, strict=True)}
            for b in (first, batches)
        ]
        changed = [
            not np.array_equal(by_label[0][label], by_label[1][label])
            for label in range(10)
        ]
        assert sum(changed) >= 7  # of 10; one shift in 50 repeats by chance


def test_a_batch_depends_on_nothing_but_seed_epoch_and_index():
    data = augmented()
    uninterrupted = [epoch_of(data, epoch) for epoch in range(4)]
    resumed = augmented()
    assert same(epoch_of(resumed, 3), uninterrupted[3])
    assert same([data[2], data[0]], [uninterrupted[3][2], uninterrupted[3][0]])


class LossOfEveryBatch(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.epochs = {}

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs[epoch] = self._losses = []

    def on_train_batch_end(self, batch, logs=None):
        self._losses.append(float(logs["loss"]))


def fit(data, first_epoch, epochs):
    """Trains a constant model whose loss tells which batch it was given."""
    model = keras.Sequential(
        [keras.layers.Flatten(), keras.layers.Dense(1, kernel_initializer="ones")]
    )
    model.compile(keras.optimizers.SGD(0.0), loss="mean_squared_error")
    losses = LossOfEveryBatch()
    model.fit(
        data.batches(first_epoch),
        steps_per_epoch=data.num_batches,
        initial_epoch=first_epoch,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[losses],
    )
    return losses.epochs


def expected_losses(data, epoch):
    """What `fit` logs: the mean loss of the images of this epoch so far."""
    errors, means = [], []
    for images, labels in epoch_of(data, epoch):
        sums = images.reshape(len(images), -1).sum(axis=-1, dtype="float64")
        errors.extend((sums - labels) ** 2)
        means.append(np.mean(errors))
    return means


@pytest.mark.parametrize("count", [10, 200])
def test_fit_draws_every_epochs_own_batches_also_after_resuming(count):
    whole = fit(augmented(count), first_epoch=0, epochs=4)
    resumed = fit(augmented(count), first_epoch=2, epochs=4)
    expected = {epoch: expected_losses(augmented(count), epoch) for epoch in range(4)}
    assert [list(whole), list(resumed)] == [[0, 1, 2, 3], [2, 3]]
    for losses in (whole, resumed):
        for epoch in losses:
            np.testing.assert_allclose(losses[epoch], expected[epoch], rtol=1e-4)
    firsts = [losses[0] for losses in expected.values()]
    assert np.diff(sorted(firsts)).min() > 1e-2 * min(firsts)  # the epochs differ


def test_wrong_arguments_are_refused():
    images = np.zeros((4, 6, 6, 3), "uint8")
    with pytest.raises(ValueError, match="4 images, 3 labels and batch_size=2; expec"):
        augmentation.Augmented(images, np.zeros(3), 2, seed=0)
    with pytest.raises(ValueError, match="batch_size=0; expected"):
        augmentation.Augmented(images, np.zeros(4), 0, seed=0)
    with pytest.raises(IndexError, match="Batch 3 of 3"):
        augmented()[3]


COUNT = 70


def both(batch_size=32, seed=3, padding=2):
    random = np.random.default_rng(5)
    # All levels are there: a rounding of its own of one of them would show.
    images = random.permuted(np.resize(np.arange(256), (COUNT, 9, 6, 3)).ravel())
    images = images.reshape(COUNT, 9, 6, 3).astype("uint8")
    return [
        augmentation.AUGMENTED[place](
            images, np.arange(COUNT), batch_size, seed=seed, crop_padding=padding
        )
        for place in ("host", "device")
    ]


@pytest.mark.parametrize("padding", [0, 2])
def test_every_batch_is_numpys_bit_by_bit(padding):
    host, device = both(padding=padding)
    assert host.num_batches == device.num_batches == 3
    for epoch in (0, 4):
        host.set_epoch(epoch)
        device.set_epoch(epoch)
        for index in range(host.num_batches):
            expected, images = host[index][0], device[index][0]
            assert keras.ops.is_tensor(images)
            assert not isinstance(images, np.ndarray)
            assert keras.backend.standardize_dtype(images.dtype) == "float32"
            found = keras.ops.convert_to_numpy(images)
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(device[index][1], host[index][1])
    assert len(host[2][1]) == COUNT % 32  # The last is smaller.
    with pytest.raises(IndexError, match="Batch 3 of 3"):
        device[3]


def test_every_level_of_every_channel_is_normalized_as_by_numpy():
    levels = np.arange(256, dtype="uint8")[None, :, None, None].repeat(3, axis=-1)
    device = augmentation.AugmentedOnDevice(
        levels, np.zeros(1), 1, seed=0, crop_padding=0
    )
    found = keras.ops.convert_to_numpy(device[0][0])
    np.testing.assert_array_equal(found, cifar100.normalize(levels))


def test_a_training_is_the_same():
    weights = []
    for data in both():
        model = keras.Sequential(
            [keras.layers.Flatten(), keras.layers.Dense(1, kernel_initializer="zeros")]
        )
        model.compile(keras.optimizers.SGD(1e-5), loss="mean_squared_error")
        model.fit(
            data.batches(first_epoch=1),
            steps_per_epoch=data.num_batches,
            initial_epoch=1,
            epochs=3,
            shuffle=False,
            verbose=0,
        )
        weights.append(model.get_weights())
    host, device = weights
    assert np.any(host[0])
    for expected, found in zip(host, device, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_an_accelerator_is_used_unless_batches_come_from_the_host(monkeypatch):
    places = []
    for found in ([], ["a card"]):
        monkeypatch.setattr(augmentation, "accelerators", lambda f=found: f)
        places.append(augmentation.default_place())
    on_tensorflow = keras.backend.backend() == "tensorflow"
    assert places == ["host", "host" if on_tensorflow else "device"]
