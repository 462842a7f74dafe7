"""Augmented batches: what they hold, under `fit`, and the same on the device."""

import collections
import itertools
import types

import keras
import numpy as np
import pytest
from absl import app
from PIL import Image

from shared import augmentation, cifar100, image_sets
from shared.augmentation import batches as batches_module
from shared.augmentation import policies


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
        monkeypatch.setattr(batches_module, "accelerators", lambda f=found: f)
        places.append(augmentation.default_place())
    on_tensorflow = keras.backend.backend() == "tensorflow"
    assert places == ["host", "host" if on_tensorflow else "device"]


RANDOM = np.random.default_rng(7).integers(0, 256, (32, 32, 3), "uint8")
FAR = policies.Strengths(shear=1.0, translate=1.0, rotate=90, enhance=1.0, bits=4)
GREY = np.full_like(RANDOM, 128)


def operate(name, strength, image=RANDOM):
    return np.asarray(policies.operate(Image.fromarray(image), name, strength, FAR))


def test_operations_are_what_their_names_say():
    """Each by hand in NumPy, where it has a short formula."""
    wide = RANDOM.astype(float)
    np.testing.assert_array_equal(operate("Identity", 1), RANDOM)
    np.testing.assert_array_equal(operate("Invert", 0), 255 - RANDOM)
    np.testing.assert_array_equal(operate("Posterize", 0.5), RANDOM & 0b11111100)
    solarized = np.where(RANDOM < 64, RANDOM, 255 - RANDOM)
    np.testing.assert_array_equal(operate("Solarize", 0.75), solarized)
    # What comes from four pixels further right or down; beyond the border it is grey.
    right = np.concatenate([RANDOM[:, 4:], GREY[:, :4]], axis=1)
    np.testing.assert_array_equal(operate("TranslateX", 4 / 32), right)
    up = np.concatenate([GREY[:4], RANDOM[:-4]])
    np.testing.assert_array_equal(operate("TranslateY", -4 / 32), up)
    np.testing.assert_array_equal(operate("Rotate", 1), np.rot90(RANDOM))
    for name, axis in (("ShearX", 0), ("ShearY", 1)):
        sheared = np.swapaxes(operate(name, 0.5), 0, axis)
        for row in (0, 9, 31):  # At half a pixel a row, from the middle of the first.
            shift = int((row + 0.5) / 2 + 0.5)
            moved = np.swapaxes(RANDOM, 0, axis)[row, shift:]
            np.testing.assert_array_equal(sheared[row, : 32 - shift], moved)
            assert np.all(sheared[row, 32 - shift :] == 128)
    brighter = np.clip(1.5 * wide, 0, 255)
    np.testing.assert_allclose(operate("Brightness", 0.5), brighter, atol=1)
    grey = (wide @ [0.299, 0.587, 0.114])[..., None]
    colourless = grey.repeat(3, axis=-1)
    np.testing.assert_allclose(operate("Color", -1), colourless, atol=1)
    flat = np.full_like(wide, grey.mean())
    np.testing.assert_allclose(operate("Contrast", -1), flat, atol=1)
    np.testing.assert_array_equal(operate("Sharpness", 0), RANDOM)
    middle = operate("Sharpness", -1)[5, 6].astype(float)
    weights = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]])[..., None] / 13
    around = (weights * wide[4:7, 5:8]).sum(axis=(0, 1))
    np.testing.assert_allclose(middle, around, atol=1)
    dull = 100 + RANDOM // 4  # 100 to 163
    stretched = (dull - 100.0) * 255 / 63
    np.testing.assert_allclose(operate("AutoContrast", 0, dull), stretched, atol=1)
    counts = np.bincount(operate("Equalize", 0, dull)[..., 0].ravel() // 64)
    assert counts.min() > 150  # Of 1024, in four parts, the first of which was empty.


def test_autoaugment_draws_its_sub_policies_with_their_probabilities(monkeypatch):
    assert len(policies.SUB_POLICIES) == 25
    names = collections.Counter(
        name for pair in policies.SUB_POLICIES for name, _, _ in pair
    )
    # Counted in the paper's table 8.
    assert names["Equalize"] == 9
    assert names["AutoContrast"] == 7
    assert (names["TranslateY"], names["Sharpness"], names["Color"]) == (5, 5, 5)
    assert names.total() == 50
    drawn = collections.Counter()

    def operate(image, name, strength, strengths):
        drawn[name, round(9 * strength)] += 1
        return image

    pairs = ((("Invert", 0.1, 7), ("Rotate", 0.8, 3)), (("Solarize", 1.0, 5),) * 2)
    monkeypatch.setattr(policies, "SUB_POLICIES", pairs)
    monkeypatch.setattr(policies, "operate", operate)
    images = np.zeros((2000, 2, 2, 3), "uint8")
    policies.autoaugment(images, np.random.default_rng(0))
    # About half of the images each; signs only where there are two directions.
    assert {*drawn} == {("Invert", 7), ("Rotate", 3), ("Rotate", -3), ("Solarize", 5)}
    assert drawn["Solarize", 5] == pytest.approx(2000, abs=140)
    assert drawn["Invert", 7] == pytest.approx(100, abs=40)
    for direction in (3, -3):
        assert drawn["Rotate", direction] == pytest.approx(400, abs=80)


def test_trivial_augment_draws_one_operation_of_any_strength(monkeypatch):
    drawn = []

    def operate(image, name, strength, strengths):
        assert strengths is policies.TRIVIAL
        drawn.append((name, round(30 * strength)))
        return image

    monkeypatch.setattr(policies, "operate", operate)
    policies.trivial(np.zeros((4200, 2, 2, 3), "uint8"), np.random.default_rng(0))
    names = collections.Counter(name for name, _ in drawn)
    assert len(names) == 14
    assert 230 < min(names.values()) <= max(names.values()) < 370  # 300 each
    turns = {level for name, level in drawn if name == "Rotate"}
    assert {abs(level) for level in turns} == {*range(31)}
    assert {*turns} > {-30, 30}
    assert {level for name, level in drawn if name == "Solarize"} == {*range(31)}


def test_cutout_blackens_a_square_around_any_pixel():
    white = np.full((500, 32, 32, 3), 255, "uint8")
    sizes = collections.Counter()
    for image in policies.cutout(white, np.random.default_rng(0)):
        black = np.all(image == 0, axis=-1)
        rows, columns = np.flatnonzero(black.any(1)), np.flatnonzero(black.any(0))
        assert black[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert black.sum() == len(rows) * len(columns)
        assert np.all(image[~black] == 255)
        sizes[len(rows)] += 1
    # Half of the centres are so far inside that all 16 rows are; others lose up to 8.
    assert {*sizes} == {*range(8, 17)}
    assert sizes[16] == pytest.approx(500 * 17 / 32, abs=45)
    assert np.all(white == 255)


def build(names, place="host", **options):
    # Of one colour each: how they were mixed can be read from any pixel.
    images = np.arange(12, dtype="uint8")[:, None, None, None] * 20
    images = np.broadcast_to(images, (12, 32, 32, 3)).copy()
    options = {"crop_padding": 0, **options}
    return augmentation.build(
        names, images, np.arange(12), 5, seed=4, place=place, **options
    )


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_labels_are_mixed_by_the_shares_of_the_images(name):
    data = build([name])
    colours = cifar100.normalize(
        np.arange(12, dtype="uint8").repeat(3).reshape(12, 3) * 20
    )
    mixed = 0
    for epoch in range(4):
        for images, shares in epoch_of(data, epoch):
            assert shares.shape == (len(images), 100)
            mixed += np.count_nonzero(shares) - len(images)
            # The mean colour of an image tells the shares, too; of CutMix' boxes, which
            # end between pixels, to half a pixel on either side.
            means = images.mean(axis=(1, 2))
            bound = 1e-4 if name == "mixup" else 2 * 32 / 1024 * np.ptp(colours)
            np.testing.assert_allclose(means, shares[:, :12] @ colours, atol=bound)
            if name == "mixup":  # All pixels alike.
                assert np.ptp(images, axis=(1, 2)).max() < 1e-5
    assert mixed > 10


@pytest.mark.parametrize(
    "names", [["autoaugment", "cutout"], ["trivial"], ["cutout", "mixup"], ["cutmix"]]
)
def test_every_augmentation_depends_on_nothing_but_seed_epoch_and_index(names):
    data = build(names)
    whole = [epoch_of(data, epoch) for epoch in range(3)]
    resumed = build(names)
    assert same(epoch_of(resumed, 2), whole[2])
    assert same([data[2], data[0]], [whole[2][2], whole[2][0]])
    plain = [epoch_of(build(["standard"]), epoch) for epoch in range(3)]
    found, expected = (
        [x for epoch in each for x, _ in epoch] for each in (whole, plain)
    )
    assert [len(x) for x in found] == [len(x) for x in expected]
    assert not all(map(np.array_equal, found, expected))


def test_what_changes_images_draws_from_streams_of_its_own():
    """NumPy fills keys up with zeros: (4, 0, 1) and (4, 0, 1, 0) are one stream."""
    data = build(["standard"])
    numbers = [data._random(0, stream).random() for stream in (1, 2)]
    numbers += [np.random.default_rng([4, 0, index]).random() for index in range(5)]
    assert len({*numbers}) == len(numbers)


def test_augmentations_are_chosen_by_name():
    assert augmentation.chosen(None) == ("standard",)
    assert augmentation.chosen(["standard"]) == ("standard",)
    names = ["cutmix", "standard", "cutout", "trivial"]
    assert augmentation.chosen(names) == ("trivial", "cutout", "cutmix")
    with pytest.raises(
        app.UsageError, match="augmentation=colour; expected some of st"
    ):
        augmentation.chosen(["colour"])
    for pair in ("autoaugment,trivial", "mixup,cutmix"):
        with pytest.raises(
            app.UsageError, match=f"Received --augmentation={pair}; exp"
        ):
            augmentation.chosen(pair.split(","))
    device = augmentation.AugmentedOnDevice
    assert isinstance(build(["standard"], "device"), device)
    for other in (
        build(["cutout"], "device"),
        build(["standard"], "device", crop_fill=9),
    ):
        assert not isinstance(other, device)
    grey = build(["standard"], crop_padding=32, crop_fill=128)
    colours = cifar100.normalize(np.full((1, 1, 1, 3), 128, "uint8"))
    assert np.any(np.all(np.isclose(grey[0][0], colours), axis=-1))


def test_flags_of_augmentation_reach_the_batches(monkeypatch):
    built = []

    class Stop(Exception):
        pass

    def build(names, *args, **options):
        built.append(names)
        raise Stop

    monkeypatch.setattr(augmentation, "build", build)
    images = image_sets.Images("cifar100", (np.zeros((4, 1, 1, 3)), np.zeros(4)), ())
    values = {"epochs": 1, "batch_size": 2, "seed": 0, "data": "cifar100"}
    settings = types.SimpleNamespace(**values, augmentation=["cutout", "trivial"])
    image_sets.check_augmentation(settings)
    with pytest.raises(Stop):
        image_sets.train(None, images, settings)
    assert built == [("trivial", "cutout")]
    settings.augmentation = ["mixup"]
    with pytest.raises(app.UsageError, match="=mixup; expected some of standard, auto"):
        image_sets.check_augmentation(settings)
    settings.data = "digits"
    with pytest.raises(
        app.UsageError, match="=mixup --data=digits; expected --data=cif"
    ):
        image_sets.check_augmentation(settings)
    settings.augmentation = None
    image_sets.check_augmentation(settings)
