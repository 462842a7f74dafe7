"""Parts of train_images.py: folder, split, batches, networks, early stopping."""

import os

import keras
import numpy as np
import pytest
from absl import app
from PIL import Image

import keras_selfdistill as ksd
from images import batches, folder, network, run_readme, shards, split, training
from tests.conftest import ROOT, require_backend, run_python, small_base, to_numpy

pytestmark = pytest.mark.once
CLASSES = ("Zebra", "anatra", "кошки", "犬")  # As Python and Keras sort them.


def make_folder(root, counts=(6, 6, 6, 6), size=(12, 10)):
    """Write images whose class is their strongest channel, or their brightness."""
    random = np.random.default_rng(0)
    for index, (name, count) in enumerate(zip(CLASSES, counts, strict=False)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 90, (*size, 3), "uint8")
            pixels[..., index % 3] += np.uint8(160 if index < 3 else 0)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def make_shards(photos, root):
    """Write a folder of images as shards, of nine at most, and return its split."""
    for name in ("grain", "array_record"):
        require_backend(name)
    root.mkdir()
    images = split.load_or_make(photos, root / "split.json", share=0.3, seed=0)
    shards.write(root, images, images_per_shard=9)
    return images


@pytest.fixture
def root(tmp_path):
    return make_folder(tmp_path / "photos")


def read_split(root, kept, share=0.5, seed=0):
    return split.load_or_make(root, kept, share=share, seed=seed)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras reads by it")
def test_classes_are_numbered_as_keras_does(root):
    reference = keras.utils.image_dataset_from_directory(
        root, shuffle=False, image_size=(12, 10), batch_size=None, verbose=False
    )
    listing = folder.find_images(root)
    assert listing.classes == tuple(reference.class_names) == CLASSES
    paths = [str(root / path) for each in listing.paths for path in each]
    assert paths == list(reference.file_paths)
    labels = np.repeat(np.arange(4), 6)
    part = split.Part(root, tuple(p for each in listing.paths for p in each), labels)
    ours, found = batches.Whole(part, (12, 10), 24)[0]
    theirs = list(reference.as_numpy_iterator())
    np.testing.assert_array_equal(ours, np.stack([image for image, _ in theirs]))
    np.testing.assert_array_equal(found, [label for _, label in theirs])


def test_parts_are_disjoint_and_kept(root, tmp_path, capsys):
    kept = tmp_path / "run" / "split.json"
    first = read_split(root, kept)
    parts = [set(getattr(first, part).paths) for part in split.PARTS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 24
    assert [len(part) for part in parts] == [12, 4, 4, 4]
    for name in split.PARTS:
        part = getattr(first, name)
        for path, label in zip(part.paths, part.labels, strict=True):
            assert path.split("/")[0] == CLASSES[label]
    Image.new("RGB", (9, 9)).save(root / "犬" / "later.png")
    again = read_split(root, kept, share=0.1, seed=5)
    assert [getattr(again, part).paths for part in split.PARTS] == [
        getattr(first, part).paths for part in split.PARTS
    ]
    assert "1 images are not used, because they came after" in capsys.readouterr().out
    assert read_split(root, tmp_path / "a.json", seed=1).test.paths != first.test.paths


@pytest.mark.parametrize("counts", [(2, 2, 3, 40), (3, 3, 2, 2)])
def test_small_classes_have_an_image_to_train_and_one_to_test_on(tmp_path, counts):
    drawn = read_split(make_folder(tmp_path / "few", counts), tmp_path / "split.json")
    for index, count in enumerate(counts):
        of_class = [int((getattr(drawn, p).labels == index).sum()) for p in split.PARTS]
        assert sum(of_class) == count
        assert of_class[0] >= 1
        assert sum(of_class[1:]) >= 1


def test_every_broken_image_is_named_and_nothing_is_written(root, tmp_path):
    whole = (root / "犬" / "0.png").read_bytes()
    broken = {
        "犬/half.png": whole[: len(whole) // 2],
        "犬/empty.jpg": b"",
        "кошки/text.png": b"no image",
        "Zebra/flipped.png": whole[:60] + bytes(40) + whole[100:],
    }
    for name, content in broken.items():
        (root / name).write_bytes(content)
    kept = tmp_path / "run" / "split.json"
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(app.UsageError, match="4 of 28 images that cannot") as error:
        read_split(root, kept)
    for name in broken:
        assert f"\n{name}: " in str(error.value)
    assert not kept.parent.exists()
    assert before == {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "leer").mkdir(), r"leer: no image"),
        (
            lambda root: [path.unlink() for path in (root / "犬").glob("[1-9].png")],
            r"犬: only 犬/0.png",
        ),
    ],
)
def test_classes_that_are_too_small_are_named(root, tmp_path, change, message):
    change(root)
    with pytest.raises(app.UsageError, match=message):
        read_split(root, tmp_path / "split.json")


def test_what_is_no_folder_of_classes_is_refused(tmp_path):
    with pytest.raises(app.UsageError, match="nowhere, which is no folder"):
        folder.find_images(tmp_path / "nowhere")
    make_folder(tmp_path / "one", (3,))
    with pytest.raises(app.UsageError, match="with 1 sub-folders; expected at least"):
        folder.find_images(tmp_path / "one")


def test_names_that_are_no_unicode_are_kept(root, tmp_path):
    strange = os.fsdecode(b"\xff.png")
    try:
        (root / "犬" / "0.png").rename(root / "犬" / strange)
    except OSError:
        pytest.skip("this file system has Unicode names alone")
    kept = tmp_path / "split.json"
    drawn = read_split(root, kept)
    assert any(f"犬/{strange}" in getattr(drawn, part).paths for part in split.PARTS)
    (root / "犬" / strange).write_bytes(b"")
    with pytest.raises(app.UsageError, match=r"犬/\\udcff.png"):
        read_split(root, tmp_path / "other.json")


def test_images_that_are_lost_or_changed_later_are_named(root, tmp_path):
    kept = tmp_path / "split.json"
    drawn = read_split(root, kept)
    lost, changed = drawn.test.paths[0], drawn.train.paths[0]
    (root / lost).unlink()
    (root / changed).write_bytes(b"other")
    with pytest.raises(app.UsageError, match="2 images that are missing") as error:
        read_split(root, kept)
    assert lost in str(error.value)
    assert changed in str(error.value)
    (root / "new class").mkdir()
    make_folder(root / "new class", (2,))
    with pytest.raises(app.UsageError, match=r"new class.*; expected Zebra, anatra"):
        read_split(root, kept)


def test_other_files_are_told_and_ignored(root, tmp_path, capsys):
    (root / "read me.txt").write_text("hello")
    (root / "犬" / "Thumbs.db").write_text("")
    (root / "犬" / ".DS_Store").write_text("")
    (root / ".git").mkdir()
    assert len(read_split(root, tmp_path / "split.json").classes) == 4
    assert "2 files are ignored" in capsys.readouterr().out


def pixels_of(image, path, **options):
    image.save(path, **options)
    return np.asarray(folder.read(path))


def test_grey_transparent_deep_and_turned_images_become_upright_rgb(tmp_path):
    grey = np.arange(12, dtype="uint8").reshape(3, 4) * 20
    path = tmp_path / "image.png"
    three = np.repeat(grey[..., None], 3, axis=-1)
    np.testing.assert_array_equal(pixels_of(Image.fromarray(grey), path), three)
    deep = Image.fromarray(grey.astype("uint16") * 257)
    np.testing.assert_array_equal(pixels_of(deep, path), three)
    half = np.dstack([three, np.full((3, 4), 0, "uint8")])
    half[0, 0, 3] = 255
    found = pixels_of(Image.fromarray(half), path)
    np.testing.assert_array_equal(found[0, 0], three[0, 0])
    assert (found.reshape(-1, 3)[1:] == 255).all()  # Transparent: white.
    turned = Image.fromarray(three)
    exif = turned.getexif()
    exif[0x0112] = 6  # Orientation: to be turned by a quarter to the right.
    np.testing.assert_array_equal(
        pixels_of(turned, path, exif=exif), np.rot90(three, -1)
    )


def test_what_is_converted_is_told(root, tmp_path, capsys):
    Image.new("L", (9, 9)).save(root / "犬" / "grey.png")
    Image.new("RGBA", (9, 9)).save(root / "кошки" / "clear.png")
    read_split(root, tmp_path / "split.json")
    out = capsys.readouterr().out
    assert "1 images are L, not RGB, and are converted; the first: 犬/grey.png" in out
    assert "1 images are RGBA, not RGB, and are converted, on white" in out


def take(data, count):
    return [batch for batch, _ in zip(data, range(count), strict=False)]


def test_batches_are_the_same_again_and_others_in_each_epoch(root, tmp_path):
    part = read_split(root, tmp_path / "split.json").train
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    data = batches.Batches(part, (8, 6), 5, 3, class_weights=weights)
    assert data.steps_per_epoch == 2
    first, again = take(data, 4), take(data, 4)
    resumed = take(batches.Batches(part, (8, 6), 5, 3, True, weights, 1), 2)
    for batch, same in zip(first + resumed, again + first[2:], strict=True):
        for array, other in zip(batch, same, strict=True):
            np.testing.assert_array_equal(array, other)
    images, labels, of_samples = first[0]
    assert images.shape == (5, 8, 6, 3)
    assert images.dtype == "float32"
    np.testing.assert_array_equal(of_samples, weights[labels])
    assert not np.array_equal(first[0][0], first[2][0])


def test_crops_are_windows_of_the_image_and_mirrored_if_that_is_allowed():
    # Each pixel is its own place, in steps that resizing keeps in order.
    ramp = np.tile(np.arange(64, dtype="uint8")[None, :, None] * 4, (64, 1, 3))
    image = Image.fromarray(ramp)
    rng = np.random.default_rng(0)
    rows = [
        batches.augmented(image, (16, 16), rng, mirror=True)[0, :, 0] for _ in range(40)
    ]
    falls = [row[0] > row[-1] for row in rows]
    assert 10 < sum(falls) < 30
    assert len({abs(row[-1] - row[0]) for row in rows}) > 10
    for _ in range(20):
        row = batches.augmented(image, (16, 16), rng, mirror=False)[0, :, 0]
        assert row[0] < row[-1]


def test_whole_parts_leave_out_less_than_the_devices(root, tmp_path):
    part = read_split(root, tmp_path / "split.json").train
    whole = batches.Whole(part, (8, 8), 5, multiple=8)
    assert [len(whole[index][1]) for index in range(len(whole))] == [5, 3]


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_sample_weight

    labels = np.array([0, 0, 0, 0, 1, 2, 2])
    weights = batches.balanced_weights(labels, 3)
    np.testing.assert_allclose(
        weights[labels], compute_sample_weight("balanced", labels)
    )
    assert weights[labels].mean() == pytest.approx(1)


def functions():
    return [
        getattr(keras.applications, name)
        for name in ("MobileNetV2", "ResNet50", "DenseNet121", "EfficientNetV2B0")
    ]


@pytest.mark.parametrize("builder", functions(), ids=lambda each: each.__name__)
def test_preprocessing_inside_is_that_of_keras(builder):
    module = getattr(keras.applications, builder.__module__.rsplit(".", 1)[-1])
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 4, 5, 3)).astype("float32")
    image = keras.Input((4, 5, 3))
    end = network.preprocessed(image, network.preprocessing(builder))
    model = keras.Model(image, keras.layers.Identity()(end))
    np.testing.assert_allclose(
        model.predict(pixels, verbose=0),
        module.preprocess_input(pixels.copy(), data_format="channels_last"),
        rtol=1e-4,
        atol=1e-4,
    )


def test_every_network_of_keras_has_a_preprocessing_of_this_form():
    names = [name for name in dir(keras.applications) if name[0].isupper()]
    assert len(names) > 30
    image = keras.Input((8, 8, 3))
    for name in names:
        found = network.preprocessing(getattr(keras.applications, name))
        assert network.preprocessed(image, found).shape == image.shape


def test_networks_that_cannot_be_are_refused():
    def build(name, weights=None, **options):
        network.build(name, size=(32, 32), classes=3, weights=weights, **options)

    with pytest.raises(app.UsageError, match="model=mobilenet_v2; expected a function"):
        build("mobilenet_v2")
    with pytest.raises(app.UsageError, match=r"imagenet, and resnet18 has none"):
        build("resnet18", "imagenet")
    with pytest.raises(app.UsageError, match=r"VGG16 --weights=lost.h5 and images of"):
        build("VGG16", "lost.h5")
    with pytest.raises(app.UsageError, match=r"width_multiplier=0.5, but the network"):
        build("VGG16", width_multiplier=0.5)


def test_weights_that_cannot_be_downloaded_say_what_to_do(monkeypatch):
    def unreachable(*arguments, **options):
        raise Exception("URL fetch failure on https://storage: unreachable")

    # Also where there is a connection.
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", unreachable)
    with pytest.raises(app.UsageError, match=r"URL fetch failure.*\n.*~/.keras/models"):
        network.build("VGG16", size=(32, 32), classes=3, weights="imagenet")


def test_phases_train_what_they_say():
    base = small_base()
    heads = training.Phase("heads", 1, 0.1, None)
    training.compile_for(base, heads)
    assert [each.path for each in base.trainable_variables] == [
        "predictions/kernel",
        "predictions/bias",
    ]
    training.compile_for(base, training.Phase("all", 1, 0.1, 0.01))
    paths = {each.path for each in base.trainable_variables}
    assert len(paths) > 10
    assert not [path for path in paths if "/gamma" in path]
    training.compile_for(base, training.Phase("all", 1, 0.1, 0.01, statistics=True))
    assert [each.path for each in base.trainable_variables if "/gamma" in each.path]


def test_the_base_learns_at_its_own_rate():
    model = ksd.SelfDistiller(
        small_base(), 1, "byot", head="linear"
    )  # Ends in `predictions`, too.
    before = {each.path: to_numpy(each) for each in model.trainable_variables}
    training.compile_for(model, training.Phase("all", 1, 0.1, 0.0, statistics=True))
    random = np.random.default_rng(0)
    x, y = random.uniform(0, 255, (8, 8, 8, 3)).astype("float32"), np.arange(8) % 3
    model.train_on_batch(x, y)
    moved = {
        each.path
        for each in model.trainable_variables
        if not np.array_equal(before[each.path], to_numpy(each))
    }
    new = {path for path in before if path.startswith(("exit_1", "predictions"))}
    assert len(before) > len(new) > 4
    assert moved == new


class Losses(keras.callbacks.Callback):
    """Gives epochs the validation losses of a table."""

    def __init__(self, losses):
        super().__init__()
        self._losses = losses

    def on_epoch_end(self, epoch, logs=None):
        logs["val_loss"] = self._losses[epoch]


def test_early_stopping_is_that_of_keras_also_after_a_kill(tmp_path):
    losses = [3.0, 2.0, 2.5, 1.0, 1.0, 1.5, 1.2, 0.5]
    x, y = np.ones((2, 1), "float32"), np.ones((2, 1), "float32")

    def model():
        keras.utils.set_random_seed(0)
        made = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        made.compile("sgd", "mse", run_eagerly=True)
        return made

    def fit(made, *callbacks, first=0):
        return made.fit(
            x,
            y,
            epochs=8,
            initial_epoch=first,
            verbose=0,
            callbacks=[Losses(losses), *callbacks],
        ).epoch

    theirs = model()
    epochs = fit(
        theirs, keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True)
    )
    ours = model()
    stop = training.StopEarly(tmp_path, 3)
    assert fit(ours, stop) == epochs == list(range(7))
    assert stop.is_over
    ours.load_weights(stop.file(stop.best_epoch))
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    later = training.StopEarly(tmp_path, 3, losses[:5])
    assert later.best_epoch == 3
    assert not later.is_over
    assert fit(model(), later, first=5) == [5, 6]


def test_cells_keep_to_themselves():
    text = run_readme._table(["a|b", "c"], [["d\n|", 1]])
    assert text.splitlines() == ["| a\\|b | c |", "| --- | --- |", "| d \\| | 1 |"]


# In a program of its own, as TensorFlow Datasets looks for the files of a package.
_PETS = """
import pathlib, sys
import shared.quiet
import numpy as np
import tensorflow_datasets as tfds
from absl import app
from images import tfds_images

class Pets(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(7, 5, 3)),
            "label": tfds.features.ClassLabel(names=["犬", "cat"]),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number, image in enumerate(np.load(sys.argv[1])):
            yield number, {"image": image, "label": number % 2}

folder = pathlib.Path(sys.argv[2])
for name in ("pets", "pets", "dogs"):
    try:
        tfds_images.write_folder(name, folder / "tfds", folder / name)
    except app.UsageError as error:
        print(error)
"""


@pytest.mark.long
@pytest.mark.process
def test_a_data_set_becomes_a_folder_of_its_images(tmp_path):
    require_backend("tensorflow")
    pytest.importorskip("tensorflow_datasets")
    pixels = np.random.default_rng(0).integers(0, 255, (6, 7, 5, 3), "uint8")
    np.save(tmp_path / "pixels.npy", pixels)
    done = run_python(
        *("-c", _PETS, tmp_path / "pixels.npy", tmp_path),
        PYTHONPATH=f"{ROOT / 'examples'}:{ROOT}",
    )
    assert "Received --dataset=dogs" in done.stdout
    assert not (tmp_path / "dogs").exists()
    assert folder.find_images(tmp_path / "pets").classes == ("cat", "犬")
    for number, image in enumerate(pixels):
        name = "cat" if number % 2 else "犬"
        path = tmp_path / "pets" / name / f"{number:07d}.png"
        np.testing.assert_array_equal(folder.read(path), image)
