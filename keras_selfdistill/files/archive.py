"""Read a `.keras` file that a stranger may have written.

Every size is compared with the file's own before anything of that size is made: the
archive's parts, the arrays of its weights, and the weights that its config asks for.
"""

import concurrent.futures
import contextlib
import errno
import json
import math
import os
import pathlib
import reprlib
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras.src.backend.common.global_state import get_global_attribute

from keras_selfdistill.files.config_budget import check_budget
from keras_selfdistill.files.config_check import check_config
from keras_selfdistill.files.regular_files import copy_regular
from keras_selfdistill.files.weights_file import stored_bytes

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_ASSETS = "assets"
_COPY = "model.keras"
# What an operating system says where it is at its limits or forbids; HDF5 and zip
# readers, about what a file holds, give no number or EINVAL.
_OF_THE_MACHINE = {
    getattr(errno, name)
    for name in (
        *("EACCES", "EDQUOT", "EFBIG", "EIO", "EMFILE", "ENFILE", "ENOMEM", "ENOSPC"),
        *("EPERM", "EROFS", "ESTALE"),
    )
    if hasattr(errno, name)  # Windows lacks some.
}
_LONGEST_TEXT = 1 << 26  # Bytes of a JSON document; the largest of Keras' are 2 MB.
_QUANTISED = 8  # Bytes of a weight in float32 for those that int4 has of it, in halves.
_SLACK = 1 << 26  # Bytes of variables that no file holds: seeds and metrics' counts.


class RefusedFileError(ValueError):
    """A file was not loaded: it is changed, cut off, foreign or dangerous."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(
            "The file was refused: it is changed, truncated, or holds what this "
            f"library does not write. Received: {str(path)!r}; {reason}"
        )
        self.reason = reason


def load_model(path: str | os.PathLike) -> keras.Model:
    """Load a saved wrapper, or a model made from one, from an untrusted `.keras` file.

    It does what `keras.saving.load_model` does in safe mode, for files that hold data
    alone and no more than they need: layers of Keras and registered ones, no `Lambda`
    or other code, no names to import, no paths; parts as Keras writes them, stored
    uncompressed; arrays that are whole in the file; and a config that asks for no more
    weights than there are.

    The file is copied into a folder of this process' own first, so that what is loaded
    is what was checked, whoever writes to the path meanwhile.

    Args:
        path: Path of the file; it ends in `.keras`. A link to it is followed.

    Raises:
        RefusedFileError: The file is damaged or holds anything else; the error says
            what. It is a `ValueError`.
        OSError: The file cannot be opened, is no regular file, or the temporary folder
            has no room for the copy.

    Example:
        `model = ksd.load_model("model.keras")`
    """
    path = pathlib.Path(path)
    with private_copy(path) as copy:
        # By which Keras chooses how it reads a file that may be of two formats at once.
        if path.suffix != ".keras":
            raise RefusedFileError(path, f"its name ends in {path.suffix!r}.")
        with refusing(path):
            return load_private(copy)


@contextlib.contextmanager
def private_copy(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Give the path of a copy of a file, in a folder of this process' own.

    Raises:
        OSError: The file cannot be opened or is no regular file, or there is no room.
    """
    with tempfile.TemporaryDirectory(prefix="keras_selfdistill_") as folder:
        copy = pathlib.Path(folder) / _COPY
        copy_regular(path, copy)
        yield copy


@contextlib.contextmanager
def refusing(path: str | os.PathLike) -> Iterator[None]:
    """Make one error of whatever a made-up file makes Keras, HDF5 or a backend raise.

    What the machine lacks, such as memory or room on a disk, is no fault of the file
    and stays what it is.

    Raises:
        RefusedFileError: The file cannot be used.
    """
    try:
        yield
    except RefusedFileError as error:
        raise RefusedFileError(path, error.reason) from error
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            raise
        reason = f"{type(error).__name__}: {str(error)[:2000]}"
        raise RefusedFileError(path, reason) from error


def load_private(path: pathlib.Path) -> keras.Model:
    """Check and load a `.keras` file that no other process writes to.

    Raises:
        Exception: Anything; see `refusing`.
    """
    with open(path, "rb") as file:
        _check_file(file)
    return keras.saving.load_model(path, safe_mode=True)


def check_members(
    archive: zipfile.ZipFile, size: int, required: set[str], folder: str | None = None
) -> None:
    """Refuse an archive whose parts are not as this library or Keras writes them.

    Args:
        archive: Open for reading.
        size: Of its file, in bytes.
        required: Names of its parts.
        folder: Where further parts may lie.

    Raises:
        ValueError: A part is missing, unknown, twice there, a link, outside of the
            folder, compressed, or larger than the file.
    """
    members = archive.infolist()
    names = [each.filename for each in members]
    inside = {name for name in names if folder and _is_inside(name, folder)}
    if len(set(names)) != len(names) or set(names) - inside != required:
        raise ValueError(f"it holds {names[:20]} where {sorted(required)} belong.")
    for each in members:
        is_link = stat.S_ISLNK(each.external_attr >> 16)
        if is_link or each.compress_type != zipfile.ZIP_STORED or each.flag_bits & 1:
            raise ValueError(f"{each.filename!r} is a link, compressed or encrypted.")
    if sum(max(each.file_size, each.compress_size) for each in members) > size:
        raise ValueError("its parts are larger than the file.")


def read_json(archive: zipfile.ZipFile, name: str) -> Any:
    """Return the content of a JSON document in an archive.

    Raises:
        ValueError: It is too long, or no JSON.
    """
    if archive.getinfo(name).file_size > _LONGEST_TEXT:
        raise ValueError(f"{name} is longer than {_LONGEST_TEXT} bytes.")
    try:
        return json.loads(archive.read(name))
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply.") from error


def check_fields(document: Any, schema: Mapping[str, Callable[[Any], bool]]) -> None:
    """Refuse a document that is no mapping of exactly the fields of a schema.

    Args:
        document: Of a file.
        schema: Tells of each field whether its value fits.

    Raises:
        ValueError: Fields are missing or unknown, or a value does not fit.

    Example:
        >>> check_fields({"epoch": 1}, {"epoch": lambda value: value >= 0})
    """
    if not isinstance(document, dict) or document.keys() != schema.keys():
        raise ValueError(f"the fields are not {list(schema)}")
    for field, fits in schema.items():
        if not fits(document[field]):
            raise ValueError(f"{field!r} is {reprlib.repr(document[field])}")


def _is_inside(name, folder):
    first, *rest = name.split("/")
    plain = all(part not in ("", ".", "..") for part in rest)
    return first == folder and bool(rest) and plain and "\\" not in name


def _check_file(file):
    with zipfile.ZipFile(file) as archive:
        size = os.fstat(file.fileno()).st_size
        check_members(archive, size, {_CONFIG, _METADATA, _WEIGHTS}, _ASSETS)
        read_json(archive, _METADATA)
        config = read_json(archive, _CONFIG)
        check_config(config)
        if not isinstance(config, dict):
            raise ValueError(f"{_CONFIG} holds no object.")
        check_budget(config)
        stored = stored_bytes(archive.read(_WEIGHTS), _WEIGHTS)
    # In a thread, because Keras keeps the scope, names and variables of each by itself.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        needed = thread.submit(_needed_bytes, config).result()
    if needed > stored * (_QUANTISED if _quantises(config) else 1) + _SLACK:
        raise ValueError(
            f"its config asks for {needed} bytes of weights, but it holds {stored}."
        )


def _quantises(value):
    """Tell whether a config quantises exits, which are made in full before that."""
    if isinstance(value, list):
        return any(map(_quantises, value))
    if not isinstance(value, dict):
        return False
    return _quantises_itself(value) or any(map(_quantises, value.values()))


def _quantises_itself(fields):
    return "frozen" in fields and bool(fields.get("quantized"))


def _needed_bytes(config):
    """Return the size of all variables that a config makes, without making them."""
    compiled: list[Any] = []
    model = _uncompiled(config, compiled)
    with keras.StatelessScope(initialize_variables=False):
        for each in (model, *compiled):
            keras.saving.deserialize_keras_object(each, safe_mode=True)
    # Also of layers that no output reads, which the model does not list.
    made = get_global_attribute("uninitialized_variables") or []
    return sum(math.prod(each.shape) * np.dtype(each.dtype).itemsize for each in made)


def _uncompiled(value, compiled):
    """Return a config without what models were compiled with; collect it elsewhere.

    Optimizers are left out: theirs are as many bytes as they train, a few times.
    """
    if isinstance(value, list):
        return [_uncompiled(each, compiled) for each in value]
    if not isinstance(value, dict):
        return value
    found = {key: _uncompiled(each, compiled) for key, each in value.items()}
    if _quantises_itself(found):  # Which would compute with the weights.
        found["quantized"] = {}
    arguments = found.pop("compile_config", None)
    if isinstance(arguments, dict):
        compiled.append({k: v for k, v in arguments.items() if k != "optimizer"})
    return found
