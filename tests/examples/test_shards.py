"""Shards of images: their batches, for any number of processes, and broken ones."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from absl import app

from images import batches, shards, split
from tests.examples.test_images_parts import CLASSES, make_folder, make_shards

pytestmark = pytest.mark.once
BATCH, SIZE = 8, (12, 10)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder of images, its split, and the folder of shards of both."""
    home = tmp_path_factory.mktemp("shards")
    photos = make_folder(home / "photos", (16, 12, 8, 8))
    images = make_shards(photos, home / "shards")
    return images, home / "shards"


@pytest.fixture
def copy(written, tmp_path):
    """A copy of the shards to damage, and its index."""
    for path in written[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path, json.loads((tmp_path / shards.INDEX).read_text())


def test_a_shard_has_the_files_of_its_part(written):
    images, root = written
    loaded = shards.load(root)
    assert loaded.classes == CLASSES
    assert len(list(root.glob("train-*.array_record"))) == 4  # Of 31 images, 9 at most.
    for name in split.PARTS:
        ours, theirs = getattr(loaded, name), getattr(images, name)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        for index, path in enumerate(theirs.paths):
            assert ours.source[index] == (theirs.root / path).read_bytes()
    ours, theirs = (
        batches.Whole(each.validation, SIZE, 4)[0] for each in (loaded, images)
    )
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def taken(data, count):
    return list(itertools.islice(data, count))


@pytest.mark.parametrize("module", [batches, shards], ids=["folder", "shards"])
def test_batches_are_the_same_on_any_number_of_processes_after_any_kill(
    written, module
):
    def part():
        return (written[0] if module is batches else shards.load(written[1])).train

    weights = np.array([1.0, 2.0, 3.0, 4.0])
    data = module.Batches(part(), SIZE, BATCH, seed=3, class_weights=weights)
    steps = data.steps_per_epoch
    assert steps == 3
    whole = taken(data, 3 * steps)
    for processes in (1, 2, 4):
        # As after a kill in the second epoch: new objects, from its beginning on.
        own = [
            taken(
                module.Batches(
                    part(),
                    *(SIZE, BATCH, 3),
                    class_weights=weights,
                    first_epoch=1,
                    process=process,
                    processes=processes,
                ),
                2 * steps,
            )
            for process in range(processes)
        ]
        for expected, parts in zip(whole[steps:], zip(*own, strict=True), strict=True):
            for arrays, array in zip(zip(*parts, strict=True), expected, strict=True):
                assert len(arrays[0]) == BATCH // processes
                found = np.concatenate(arrays)
                assert found.dtype == array.dtype
                np.testing.assert_array_equal(found, array)
    for _, labels, sample_weights in whole:
        np.testing.assert_array_equal(sample_weights, weights[labels])


def test_an_epoch_has_each_image_once_in_an_order_and_crops_of_its_own(written):
    count = len(written[0].train.labels)
    # Labels that tell the images apart.
    part = shards.load(written[1]).train._replace(labels=np.arange(count))
    data = shards.Batches(part, SIZE, 1, seed=0)
    assert data.steps_per_epoch == count
    drawn = taken(data, 2 * count)
    orders = [[int(label) for _, (label,) in drawn[i::count]] for i in range(count)]
    first, second = zip(*orders, strict=True)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(count))
    pixels = [{image.tobytes() for image, _ in each} for each in (drawn[:count], drawn)]
    assert [len(each) for each in pixels] == [count, 2 * count]
    other = taken(dataclasses.replace(data, seed=1), count)
    assert tuple(int(label) for _, (label,) in other) != first


def missing(root, first, index):
    (root / first["file"]).unlink()


def empty(root, first, index):
    (root / first["file"]).write_bytes(b"")


def cut_off(root, first, index):
    path = root / first["file"]
    path.write_bytes(path.read_bytes()[:-1])


def out_of_range(root, first, index):
    first["labels"][0] = 4


def no_class_index(root, first, index):
    first["labels"][0] = 0.5


def too_many_labels(root, first, index):
    first["labels"].append(0)


def write_records(root, first, records):
    from array_record.python import array_record_module

    path = root / first["file"]
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    first["bytes"] = path.stat().st_size


def no_images(root, first, index):
    write_records(root, first, [b"\n\x07feature"] * len(first["labels"]))


def another_format(root, first, index):
    (root / first["file"]).write_bytes(b"\0" * first["bytes"])


BROKEN = {
    missing: "missing",
    empty: "empty",
    cut_off: r"\d+ bytes, of \d+: cut off or changed",
    out_of_range: "label 4 in shards.json; expected 0 to 3",
    no_class_index: "label 0.5 in shards.json",
    too_many_labels: r"\d images, of \d+ labels",
    no_images: "its first record is not the file of an image: .*cannot identify",
    another_format: "its first record is not the file of an image",
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_shard_is_named_before_training(copy, damage):
    root, index = copy
    first = index["parts"]["train"][1]
    damage(root, first, index)
    (root / shards.INDEX).write_text(json.dumps(index))
    with pytest.raises(app.UsageError) as raised:
        shards.load(root)
    assert raised.match(f"1 of 7 shards(.|\n)*{first['file']}: {BROKEN[damage]}")


def test_shards_without_their_index_are_no_images(copy):
    root, _ = copy
    (root / shards.INDEX).unlink()
    assert shards.is_folder(root)
    with pytest.raises(app.UsageError, match=r"without shards\.json"):
        shards.load(root)
    (root / shards.INDEX).write_text("{}")
    with pytest.raises(app.UsageError, match=r"shards\.json, which is not as"):
        shards.load(root)


def test_damage_within_a_shard_is_told_with_its_name(copy):
    root, index = copy
    second = index["parts"]["train"][1]
    path = root / second["file"]
    content = bytearray(path.read_bytes())
    png = content.rindex(b"\x89PNG")
    content[png : png + 40] = bytes(40)
    path.write_bytes(content)
    part = shards.load(root).train
    last = len(index["parts"]["train"][0]["labels"]) + len(second["labels"]) - 1
    with pytest.raises(OSError, match=f"Image {last} cannot be read; it is in {path}"):
        part.read(last)
    part.read(last + 1)
