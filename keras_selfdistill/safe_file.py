"""Read a `.keras` file that a stranger may have written.

Every size is compared with the file's own before anything of that size is made: the
archive's parts, the arrays of its weights, and the weights that its config asks for.
"""

import concurrent.futures
import io
import json
import math
import os
import pathlib
import reprlib
import stat
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import h5py
import keras
import numpy as np
from keras.src.backend.common.global_state import get_global_attribute

from keras_selfdistill.safe_config import check_config

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_ASSETS = "assets"
_LONGEST_TEXT = 1 << 26  # Bytes of a JSON document; the largest of Keras' are 2 MB.
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

    Args:
        path: Of the file; it ends in `.keras`.

    Raises:
        RefusedFileError: The file is damaged or holds anything else; the error says
            what. It is a `ValueError`.
        OSError: The file cannot be opened.

    Example:
        `model = ksd.load_model("model.keras")`
    """
    path = pathlib.Path(path)
    with open(path, "rb") as file:
        # By which Keras chooses how it reads a file that may be of two formats at once.
        if path.suffix != ".keras":
            raise RefusedFileError(path, f"its name ends in {path.suffix!r}.")
        try:
            _check_file(file)
            return keras.saving.load_model(path, safe_mode=True)
        # Whatever a made-up file makes Keras, HDF5 or a backend raise, it is this.
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error)[:2000]}"
            raise RefusedFileError(path, reason) from error


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
        stored = _stored_bytes(archive.read(_WEIGHTS))
    # In a thread, because Keras keeps the scope, names and variables of each by itself.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        needed = thread.submit(_needed_bytes, config).result()
    if needed > stored + _SLACK:
        raise ValueError(
            f"its config asks for {needed} bytes of weights, but it holds {stored}."
        )


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
    arguments = found.pop("compile_config", None)
    if isinstance(arguments, dict):
        compiled.append({k: v for k, v in arguments.items() if k != "optimizer"})
    return found


def _stored_bytes(content: bytes) -> int:
    """Return the size of all arrays of an HDF5 file, each of which it holds whole.

    Raises:
        ValueError: There is a link, a loop, or an array that is elsewhere, compressed
            or of objects.
    """
    total, seen = 0, set()
    with h5py.File(io.BytesIO(content), "r") as file:
        groups = [file]
        while groups:
            group = groups.pop()
            for name in group:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise ValueError(f"{name!r} in {_WEIGHTS} is a link.")
                item = group[name]
                place = h5py.h5o.get_info(item.id).addr
                if place in seen:
                    raise ValueError(f"{name!r} in {_WEIGHTS} is there twice.")
                seen.add(place)
                if isinstance(item, h5py.Group):
                    groups.append(item)
                else:
                    total += _array_bytes(item, name)
    return total


def _array_bytes(item, name):
    if (
        not isinstance(item, h5py.Dataset)
        or item.shape is None
        or item.dtype.kind not in "biufcV"
        or item.external
        or item.is_virtual
        or item.nbytes > item.id.get_storage_size()
    ):
        raise ValueError(f"{name!r} in {_WEIGHTS} is no array that is whole there.")
    return item.nbytes
