"""Shards: images in a few large files, read by Grain, by each process its own share.

    FOLDER/shards.json                        classes, and of every file its labels
    FOLDER/train-00000-of-00002.array_record  the bytes of image files, one a record
    FOLDER/validation-00000-of-00001.array_record ...

A file of the ArrayRecord format gives any of its records at once, so the order of an
epoch is one of all training images, and a share of it is no file or run of files. No
TensorFlow is needed.
"""

import dataclasses
import importlib.util
import io
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import app
from PIL import Image

from images import batches, folder, split
from shared import run_folder

INDEX = "shards.json"
_SUFFIX = ".array_record"
# One record is read at a time, and files of images can hardly be made smaller.
_OPTIONS = "group_size:1,uncompressed"


class Part(NamedTuple):
    """Images of one part.

    Args:
        source: Grain's source of the bytes of their files.
        labels: Class indices.
        ends: How many images there are up to the end of each shard.
    """

    source: Any
    labels: np.ndarray
    ends: np.ndarray

    def read(self, index: int) -> Image.Image:
        """Returns an image as RGB.

        Raises:
            OSError: The shard is damaged there.
        """
        try:
            return folder.read(io.BytesIO(self.source[index]))
        # Riegeli and Pillow raise what they like.
        except Exception as error:
            shard = self.source.paths[np.searchsorted(self.ends, index, side="right")]
            raise OSError(
                f"Image {index} cannot be read; it is in {shard}, which is damaged. "
                f"Copy it again, or write the shards again. {error}"
            ) from error


@dataclasses.dataclass(frozen=True)
class Batches(batches.Batches):
    """The same as of a folder's images, by Grain, in an order of its own.

    What is in place `i` of step `s` of an epoch, and how it is augmented, is a function
    of the seed, the epoch, `s` and `i` alone; a process has the places of its share. So
    a training that was killed goes on with the same batches, with any number of
    processes that divides `batch_size`.
    """

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        """Begins with `first_epoch`; images (n, h, w, 3) from 0 to 255, labels (n,).

        With class weights, each sample's weight (n,) is the third of a batch.
        """
        import grain

        # A thread makes a whole batch; not more of them are in memory.
        threads = min(16, os.cpu_count() or 1)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        rest = self._all()[self.first_epoch * self.steps_per_epoch :]
        for images, labels in rest.to_iter_dataset(options):
            yield self._labelled(images, labels)

    def _all(self) -> Any:
        """Returns the batches of all epochs, each made when it is asked for."""
        import grain

        order = grain.MapDataset.range(len(self.part.labels)).seed(self.seed).shuffle()
        # Later epochs continue the count of places, by which Grain draws anew.
        full = order[: self.steps_per_epoch * self.batch_size]
        shares = full.random_map(self._sample).batch(self.own_size)
        return shares[self.process :: self.processes].repeat()

    def _sample(
        self, index: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        image = self.part.read(index)
        pixels = batches.augmented(image, self.size, rng, mirror=self.mirror)
        return pixels, self.part.labels[index]


def is_folder(root: pathlib.Path) -> bool:
    """Returns whether a folder holds shards, and not images."""
    return (root / INDEX).is_file() or any(root.glob(f"*{_SUFFIX}"))


def check_installed() -> None:
    """Raises a UsageError unless there is what reads and writes shards."""
    missing = [
        name for name in ("grain", "array_record") if not importlib.util.find_spec(name)
    ]
    if missing:
        raise app.UsageError(
            f"{' and '.join(missing)} not installed, which shards are read and written "
            'by. Expected: python -m pip install -e ".[data]"'
        )


def check_index(root: pathlib.Path) -> None:
    """Raises a UsageError unless there is the file that is written last."""
    if not (root / INDEX).is_file():
        raise app.UsageError(
            f"Received {root} with shards, but without {INDEX}; expected a whole "
            "folder of write_shards.py. Copy it again, or write the shards again."
        )


def write(root: pathlib.Path, images: split.Split, images_per_shard: int) -> None:
    """Writes the images of a split as shards; their files' bytes stay as they are.

    Args:
        root: Folder to write to.
        images: The split of a folder.
        images_per_shard: Images in a file, at most.
    """
    parts = {}
    for name in split.PARTS:
        part = getattr(images, name)
        count = -(-len(part.paths) // images_per_shard)
        parts[name] = []
        for number in range(count):
            path = root / f"{name}-{number:05d}-of-{count:05d}{_SUFFIX}"
            # Of equal size, but for one image.
            own = slice(*(len(part.paths) * i // count for i in (number, number + 1)))
            _write_file(path, [part.root / each for each in part.paths[own]])
            parts[name].append(
                {
                    "file": path.name,
                    "bytes": path.stat().st_size,
                    "labels": part.labels[own].tolist(),
                }
            )
    index = {"classes": list(images.classes), "parts": parts}
    # The last, so that a folder with it is complete.
    run_folder.write(root / INDEX, json.dumps(index).encode() + b"\n")


def _write_file(path: pathlib.Path, images: Sequence[pathlib.Path]) -> None:
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), _OPTIONS)
    try:
        for image in images:
            writer.write(image.read_bytes())
    finally:
        writer.close()


def load(root: pathlib.Path) -> split.Split:
    """Returns the parts of a folder of shards, whose images are read when needed.

    Raises:
        UsageError: A file is missing, or not as it was written.
    """
    check_installed()
    check_index(root)
    path = root / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        classes = tuple(index["classes"])
        files = {part: index["parts"][part] for part in split.PARTS}
        _refuse_changes(
            root, [each for part in files.values() for each in part], classes
        )
        parts = {name: _part(root, part) for name, part in files.items()}
        return split.Split(classes, **parts)
    except (KeyError, TypeError, ValueError) as error:
        raise app.UsageError(
            f"Received {path}, which is not as write_shards.py writes it ({error!r}); "
            "write the shards again."
        ) from error


def _refuse_changes(
    root: pathlib.Path, files: Sequence[Mapping[str, Any]], classes: Sequence[str]
) -> None:
    found = [(each["file"], _problem(root, each, len(classes))) for each in files]
    broken = [f"{folder.shown(name)}: {problem}" for name, problem in found if problem]
    if broken:
        raise app.UsageError(
            f"Received {len(broken)} of {len(files)} shards in {root} that cannot be "
            "trained on; expected all as write_shards.py wrote them. Copy them again, "
            f"or write them again:\n{folder.listed(broken)}"
        )


def _problem(root: pathlib.Path, file: Mapping[str, Any], classes: int) -> str:
    """Returns what is wrong with a shard, if anything is."""
    path, labels = root / file["file"], file["labels"]
    if not path.is_file():
        return "missing"
    if not labels or not path.stat().st_size:
        return "empty"
    if path.stat().st_size != file["bytes"]:
        return f"{path.stat().st_size} bytes, of {file['bytes']}: cut off or changed"
    strange = [
        each for each in labels if type(each) is not int or each not in range(classes)
    ]
    if strange:
        return f"label {strange[0]!r} in {INDEX}; expected 0 to {classes - 1}"
    return _problem_of_records(path, len(labels))


def _problem_of_records(path: pathlib.Path, expected: int) -> str:
    """Reads the first image alone: all of ImageNet would take an hour."""
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(
            str(path), "readahead_buffer_size:0"
        )
        try:
            count = reader.num_records()
            if count != expected:
                return f"{count} images, of {expected} labels in {INDEX}"
            folder.read(io.BytesIO(reader.read([0])[0]))
        finally:
            reader.close()
    # Riegeli and Pillow raise what they like.
    except Exception as error:
        return f"its first record is not the file of an image: {error}"
    return ""


def _part(root: pathlib.Path, files: Sequence[Mapping[str, Any]]) -> Part:
    import grain

    source = grain.sources.ArrayRecordDataSource(
        [str(root / each["file"]) for each in files]
    )
    labels = [np.asarray(each["labels"], "int32") for each in files]
    ends = np.cumsum([len(each) for each in labels])
    return Part(source, np.concatenate(labels), ends)
