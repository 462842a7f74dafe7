"""Augmentation on the device: every batch is the one that NumPy makes."""

import keras
import numpy as np
import pytest

from shared import cifar100, device_augmentation

COUNT = 70


def both(batch_size=32, seed=3, padding=2):
    random = np.random.default_rng(5)
    # All levels are there: a rounding of its own of one of them would show.
    images = random.permuted(np.resize(np.arange(256), (COUNT, 9, 6, 3)).ravel())
    images = images.reshape(COUNT, 9, 6, 3).astype("uint8")
    return [
        device_augmentation.augmented(
            images,
            np.arange(COUNT),
            batch_size,
            seed=seed,
            place=place,
            crop_padding=padding,
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
    device = device_augmentation.AugmentedOnDevice(
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
        monkeypatch.setattr(device_augmentation, "accelerators", lambda f=found: f)
        places.append(device_augmentation.default_place())
    on_tensorflow = keras.backend.backend() == "tensorflow"
    assert places == ["host", "host" if on_tensorflow else "device"]
