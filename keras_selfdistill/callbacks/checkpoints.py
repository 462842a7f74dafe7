"""A folder of checkpoints, each written atomically and verified when read.

A file is one line with a digest of all bytes after it, then a zip of arrays in NumPy's
format. It is renamed to its name only when it is complete on disk. Only regular files
with the exact names of checkpoints are read, and only those that begin with that line
are removed, nothing else in the folder.
"""

# Not `keras.callbacks.OrbaxCheckpoint` (Keras 3.15), which saves variables by automatic
# names, on JAX saves the values from before the epoch, keeps no random states, restores
# nothing in `fit`, and ignores errors of its last write.

import json
import math
import os
import pathlib
import re
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes  # noqa: F401 (gives NumPy the names of types like bfloat16)
import numpy as np
from absl import logging

from keras_selfdistill.files.archive import (
    check_fields,
    check_members,
    is_of_machine,
)
from keras_selfdistill.files.atomic import replacing
from keras_selfdistill.files.digest import sha256
from keras_selfdistill.files.regular_files import open_regular
from keras_selfdistill.utils.type_aliases import Check, PathLike

_FORMAT = b"keras_selfdistill checkpoint 1 SHA-256 "
_DIGEST_LENGTH = 64  # SHA-256 in hexadecimal digits.
_NAME = "epoch_{epoch:06d}_batch_{batch:08d}.checkpoint"
_PATTERN = re.compile(r"epoch_(\d+)_batch_(\d+)\.checkpoint", re.ASCII)
_LARGEST = 2**31 - 1  # Epochs or batches.


class Checkpoint(NamedTuple):
    """State of a training between two batches.

    Args:
        epoch: Epoch of the next batch.
        batch: Number of finished batches of this epoch.
        arrays: Values of variables.
        about: Other state, JSON-compatible.
    """

    epoch: int
    batch: int
    arrays: list[np.ndarray]
    about: dict[str, Any]


class Checkpoints:
    """The latest checkpoints of one training.

    Args:
        directory: Path of the folder; created with the first checkpoint.
        keep: Number of checkpoints to keep.
    """

    def __init__(self, directory: PathLike, keep: int):
        self.directory = pathlib.Path(directory).expanduser()
        self._keep = keep
        self._refused: set[pathlib.Path] = set()

    def newest(self, check: Callable[[Checkpoint], None]) -> Checkpoint | None:
        """Return the newest usable checkpoint, or `None` if there is no checkpoint.

        Unusable files are logged, and neither changed nor removed.

        Args:
            check: Function that raises `ValueError` for a checkpoint of another
                training.

        Raises:
            ValueError: There are checkpoints, but none is usable.
            OSError: One cannot be read because of the machine, such as its limits or
                permissions: it may be usable later, so no older one takes its place.
        """
        reasons = []
        for path in reversed(self._paths()):
            try:
                found = read(path)
                check(found)
            except (OSError, ValueError) as error:
                if is_of_machine(error):
                    raise
                self._refused.add(path)
                reasons.append(f"{path}: {error}")
                logging.error("Checkpoint refused: %s", reasons[-1])
                continue
            if reasons:
                logging.warning("An earlier checkpoint is used: %s", path)
            return found
        if reasons:
            raise ValueError(
                "None of the checkpoints can be used. Received: "
                + "; ".join(reasons)
                + ". Run the program that wrote them, choose another directory, or "
                "remove them to start from the beginning."
            )
        return None

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint atomically, and remove all but the latest.

        Args:
            checkpoint: State to write.

        Raises:
            OSError: The file cannot be written. Earlier checkpoints do not change.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        name = _NAME.format(epoch=checkpoint.epoch, batch=checkpoint.batch)
        path = self.directory / name
        with replacing(path) as new, open(new, "x+b") as file:
            _write(file, checkpoint)
        self._refused.discard(path)
        paths = self._paths()
        # Not counted are files with larger numbers, which came meanwhile.
        older = paths[: paths.index(path) + 1]
        ours = [each for each in older if each not in self._refused and _is_ours(each)]
        for old in ours[: -self._keep]:
            old.unlink()

    def check_free(self, newest: Checkpoint | None) -> None:
        """Refuse a folder in which a later checkpoint could not be written.

        Args:
            newest: Checkpoint that the training continues from, if any.

        Raises:
            FileExistsError: A link, a folder or a device has the name of a later one.
        """
        start = (-1, -1) if newest is None else newest[:2]
        for numbers, entry in self._named():
            if numbers > start and not entry.is_file(follow_symlinks=False):
                raise FileExistsError(
                    "Resume could not write its checkpoints. Received: "
                    f"{entry.path!r}, which has the name of a checkpoint, but is a "
                    "link, a folder or a device. Remove or rename it, or choose "
                    "another directory."
                )

    def _paths(self) -> list[pathlib.Path]:
        """Return the paths of all checkpoints, oldest first.

        Files with other names, and links, are not checkpoints of this class.
        """
        return [
            self.directory / entry.name
            for _, entry in self._named()
            if entry.is_file(follow_symlinks=False)
        ]

    def _named(self) -> list[tuple[tuple[int, int], os.DirEntry[str]]]:
        """Return everything with the name of a checkpoint, by its numbers."""
        try:
            entries = list(os.scandir(self.directory))
        except FileNotFoundError:
            return []
        found = [(n, each) for each in entries if (n := _numbers(each.name))]
        return sorted(found, key=lambda item: item[0])


def _numbers(name: str) -> tuple[int, int] | None:
    """Return the epoch and the batch in the name of a checkpoint, else `None`."""
    match = _PATTERN.fullmatch(name)
    if match is None:
        return None
    epoch, batch = map(int, match.groups())
    return (epoch, batch) if name == _NAME.format(epoch=epoch, batch=batch) else None


def _is_ours(path: pathlib.Path) -> bool:
    """Return whether a file begins as checkpoints do."""
    try:
        with open_regular(path, follow_links=False) as file:
            return file.read(len(_FORMAT)) == _FORMAT
    except OSError:  # It stays.
        return False


def _write(file: BinaryIO, checkpoint: Checkpoint) -> None:
    about = {
        **checkpoint._asdict(),
        "arrays": [each.dtype.name for each in checkpoint.arrays],
    }
    text = np.frombuffer(json.dumps(about).encode(), "uint8")
    # As bits, because NumPy's format does not support the types of ml_dtypes.
    bits: dict[str, Any] = {
        str(i): _bits(each) for i, each in enumerate(checkpoint.arrays)
    }
    file.write(_FORMAT + b"0" * _DIGEST_LENGTH + b"\n")
    start = file.tell()
    np.savez(file, about=text, **bits)
    file.seek(start)
    digest = sha256(file)
    file.seek(len(_FORMAT))
    file.write(digest.encode())


def read(path: PathLike) -> Checkpoint:
    """Return the checkpoint in a file, which may be untrusted.

    Args:
        path: Path of the file.

    Raises:
        ValueError: The file is truncated, changed, or not a checkpoint.
        OSError: The file cannot be read.
    """
    with open_regular(path, follow_links=False) as file:
        if file.read(len(_FORMAT)) != _FORMAT:
            raise ValueError("it is not a checkpoint of this version of the library")
        digest = file.read(_DIGEST_LENGTH + 1)
        start = file.tell()
        if sha256(file).encode() + b"\n" != digest:
            raise ValueError("its digest does not match its content")
        try:
            found = _content(file, start)
        except (OSError, MemoryError):
            raise
        # A forged archive may make NumPy or zipfile raise anything.
        except Exception as error:
            raise ValueError(f"its content is not valid: {error!r}") from error
    if _numbers(pathlib.Path(path).name) not in (None, (found.epoch, found.batch)):
        raise ValueError(f"it contains epoch {found.epoch}, batch {found.batch}")
    return found


def _content(file: BinaryIO, start: int) -> Checkpoint:
    """Return the checkpoint in an untrusted archive whose digest is correct."""
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


def is_count(value: object) -> bool:
    """Return whether a value is an integer from 0 that may be an epoch or batch."""
    return type(value) is int and 0 <= value <= _LARGEST


_SCHEMA: dict[str, Check] = {
    "epoch": is_count,
    "batch": is_count,
    "arrays": lambda value: (
        isinstance(value, list) and all(isinstance(each, str) for each in value)
    ),
    "about": lambda value: isinstance(value, dict),
}


def _bits(array: np.ndarray) -> np.ndarray:
    if array.dtype.isbuiltin == 1:
        return array
    return array.view(f"uint{8 * array.dtype.itemsize}")


def _check_length(archive: zipfile.ZipFile, name: str) -> None:
    """Refuse an array whose header announces another length.

    NumPy allocates the announced length before it reads.
    """
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        if version != (1, 0):  # The version that `np.save` writes for plain dtypes.
            raise ValueError(f"{name} has version {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        length = archive.getinfo(name).file_size - member.tell()
    announced = math.prod(shape) * dtype.itemsize
    if announced != length or min(shape, default=0) < 0:
        raise ValueError(f"{name} has {length} bytes, its header says {announced}")
