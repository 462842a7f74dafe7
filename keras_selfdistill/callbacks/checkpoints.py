"""A folder of checkpoints, of which every one is whole or refused.

A file is a line of its own with a digest of all bytes after it, then a zip of arrays as
NumPy writes it. It comes to its name only when it is complete on disk. Regular files
with whole names of checkpoints are read and removed, nothing else in the folder.
"""

import json
import math
import os
import pathlib
import re
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 (gives NumPy the names of types like bfloat16)
import numpy as np
from absl import logging

from keras_selfdistill.files.archive import check_fields, check_members
from keras_selfdistill.files.atomic import replacing
from keras_selfdistill.files.digest import sha256
from keras_selfdistill.files.regular_files import open_regular

_FORMAT = b"keras_selfdistill checkpoint 1 SHA-256 "
_DIGEST_LENGTH = 64  # In hexadecimal digits.
_NAME = "epoch_{epoch:06d}_batch_{batch:08d}.checkpoint"
_PATTERN = re.compile(r"epoch_(\d+)_batch_(\d+)\.checkpoint", re.ASCII)
_LARGEST = 2**31 - 1  # Epochs or batches.


class Checkpoint(NamedTuple):
    """The state of a run between two of its batches."""

    epoch: int  # In which the next batch is.
    batch: int  # Number of that epoch's batches that are done.
    arrays: list[np.ndarray]
    about: dict[str, Any]  # What else there is, as JSON can hold it.


class Checkpoints:
    """The last checkpoints of one run.

    Args:
        directory: Where they lie; made when the first is written.
        keep: Number of checkpoints to keep.
    """

    def __init__(self, directory: str | os.PathLike, keep: int):
        self.directory = pathlib.Path(directory).expanduser()
        self._keep = keep
        self._refused: set[pathlib.Path] = set()

    def newest(self, check: Callable[[Checkpoint], None]) -> Checkpoint | None:
        """Return the newest checkpoint that can be used, or `None` if there is none.

        A file that cannot be used is left where it is, and named in the log.

        Args:
            check: Raises `ValueError` where a checkpoint is another run's.

        Raises:
            ValueError: There are checkpoints, but none can be used.
        """
        reasons = []
        for path in reversed(self._paths()):
            try:
                found = read(path)
                check(found)
            except (OSError, ValueError) as error:
                self._refused.add(path)
                reasons.append(f"{path}: {error}")
                logging.error("Checkpoint refused: %s", reasons[-1])
                continue
            if reasons:
                logging.warning("The one before is used: %s", path)
            return found
        if reasons:
            raise ValueError(
                "None of the checkpoints can be used. Received: "
                + "; ".join(reasons)
                + ". Repeat the program that wrote them, choose another directory, or "
                "remove them to begin anew."
            )
        return None

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint atomically, and remove those past the last few.

        Raises:
            OSError: It cannot be written. Those before are as they were.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        name = _NAME.format(epoch=checkpoint.epoch, batch=checkpoint.batch)
        path = self.directory / name
        with replacing(path) as new, open(new, "x+b") as file:
            _write(file, checkpoint)
        self._refused.discard(path)
        usable = [each for each in self._paths() if each not in self._refused]
        for old in usable[: -self._keep]:
            old.unlink()

    def _paths(self):
        """Return the files of all checkpoints, from old to new.

        What has another name or is no file, such as a link, is none of ours: it is
        neither read nor removed.
        """
        try:
            entries = list(os.scandir(self.directory))
        except FileNotFoundError:
            return []
        found = [
            (numbers, self.directory / entry.name)
            for entry in entries
            if (numbers := _numbers(entry.name))
            and entry.is_file(follow_symlinks=False)
        ]
        return [path for _, path in sorted(found)]


def _numbers(name):
    """Return the epoch and the batch in a checkpoint's name, `None` in another name."""
    match = _PATTERN.fullmatch(name)
    if match is None:
        return None
    epoch, batch = map(int, match.groups())
    return (epoch, batch) if name == _NAME.format(epoch=epoch, batch=batch) else None


def _write(file, checkpoint):
    about = {
        **checkpoint._asdict(),
        "arrays": [each.dtype.name for each in checkpoint.arrays],
    }
    text = np.frombuffer(json.dumps(about).encode(), "uint8")
    # As bits, because NumPy's format does not know the types of ml_dtypes.
    bits = {str(i): _bits(each) for i, each in enumerate(checkpoint.arrays)}
    file.write(_FORMAT + b"0" * _DIGEST_LENGTH + b"\n")
    start = file.tell()
    np.savez(file, about=text, **bits)
    file.seek(start)
    digest = sha256(file)
    file.seek(len(_FORMAT))
    file.write(digest.encode())


def read(path: str | os.PathLike) -> Checkpoint:
    """Return the content of a checkpoint.

    Raises:
        ValueError: The file is cut off, changed, or was written by something else.
        OSError: It cannot be read.
    """
    with open_regular(path, follow_links=False) as file:
        if file.read(len(_FORMAT)) != _FORMAT:
            raise ValueError("it is no checkpoint of this version of the library")
        digest = file.read(_DIGEST_LENGTH + 1)
        start = file.tell()
        if sha256(file).encode() + b"\n" != digest:
            raise ValueError("its digest does not match its content")
        try:
            found = _content(file, start)
        except (OSError, MemoryError):
            raise
        # Whatever an archive with a digest of its own makes NumPy or zipfile raise.
        except Exception as error:
            raise ValueError(f"its content is of another form: {error!r}") from error
    if _numbers(pathlib.Path(path).name) not in (None, (found.epoch, found.batch)):
        raise ValueError(f"it holds epoch {found.epoch}, batch {found.batch}")
    return found


def _content(file, start):
    """Return the checkpoint in an archive of which nothing is known but its digest."""
    with zipfile.ZipFile(file) as archive:
        numbers = range(len(archive.namelist()) - 1)
        members = {"about.npy", *(f"{i}.npy" for i in numbers)}
        check_members(archive, os.fstat(file.fileno()).st_size, members)
        for name in members:
            _check_length(archive, name)
    file.seek(start)
    with np.load(file, allow_pickle=False) as stored:
        document = json.loads(stored["about"].tobytes())
        check_fields(document, _SCHEMA)
        names = document.pop("arrays")
        if len(names) != len(numbers):
            raise ValueError(f"{len(numbers)} arrays, expected {len(names)}")
        arrays = [stored[str(i)].view(np.dtype(name)) for i, name in enumerate(names)]
    return Checkpoint(arrays=arrays, **document)


def is_count(value: Any) -> bool:
    """Tell whether a value is an integer of at least 0 that can count epochs."""
    return type(value) is int and 0 <= value <= _LARGEST


_SCHEMA: dict[str, Callable[[Any], bool]] = {
    "epoch": is_count,
    "batch": is_count,
    "arrays": lambda value: (
        isinstance(value, list) and all(isinstance(each, str) for each in value)
    ),
    "about": lambda value: isinstance(value, dict),
}


def _bits(array):
    if array.dtype.isbuiltin == 1:
        return array
    return array.view(f"uint{8 * array.dtype.itemsize}")


def _check_length(archive, name):
    """Refuse an array of another length than its header announces.

    NumPy allocates what the header announces before it reads.
    """
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        if version != (1, 0):  # What `np.save` writes of shapes and plain dtypes.
            raise ValueError(f"{name} is of version {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        length = archive.getinfo(name).file_size - member.tell()
    announced = math.prod(shape) * dtype.itemsize
    if announced != length or min(shape, default=0) < 0:
        raise ValueError(f"{name} has {length} bytes, its header says {announced}")
