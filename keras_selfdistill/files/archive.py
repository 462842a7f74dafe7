"""Read an untrusted `.keras` file.

Every size is compared with the file's own before memory is allocated: that of the
archive's members, of the arrays of its weights, and of the weights in its config.
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
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import keras
import numpy as np

from keras_selfdistill.files.config_budget import check_budget
from keras_selfdistill.files.config_calls import check_calls
from keras_selfdistill.files.config_check import check_config
from keras_selfdistill.files.model_folder import ASSETS, MEMBERS, local_path, pack
from keras_selfdistill.files.regular_files import copy_regular
from keras_selfdistill.files.weights_file import stored_bytes
from keras_selfdistill.utils.keras_internals import deferred_values
from keras_selfdistill.utils.type_aliases import Check, ConfigDict, PathLike

_CONFIG, _METADATA, _WEIGHTS = MEMBERS
_COPY = "model.keras"
# Errors of the machine: limits and permissions. The HDF5 and zip readers report errors
# of a file's content without a number, or as EINVAL.
_MACHINE_ERRORS = {
    getattr(errno, name)
    for name in (
        *("EACCES", "EDQUOT", "EFBIG", "EIO", "EMFILE", "ENFILE", "ENOMEM", "ENOSPC"),
        *("EPERM", "EROFS", "ESTALE"),
    )
    if hasattr(errno, name)  # Windows lacks some.
}
_LONGEST_TEXT = 1 << 26  # Bytes of a JSON document; the largest of Keras are 2 MB.
_QUANTISED = 8  # Ratio of the sizes of float32 and int4 weights.
_SLACK = 1 << 26  # Bytes of variables that files do not store: seeds, metrics.


class RefusedFileError(ValueError):
    """A file was not loaded: it is damaged, of another format, or dangerous."""

    def __init__(self, path: PathLike, reason: str) -> None:
        super().__init__(
            "The file was refused: it is damaged, or contains something that this "
            f"library does not write. Received: {str(path)!r}; {reason}"
        )
        self.reason = reason


def load_model(path: PathLike) -> keras.Model:
    """Load a saved wrapper, or a model made from one, from an untrusted `.keras` file.

    It loads like `keras.saving.load_model` in safe mode, but accepts only files that
    contain nothing but data: layers of Keras and registered ones, no `Lambda` or other
    code, no names to import, no paths; archive members as Keras writes them, stored
    uncompressed; arrays that the file stores completely; and a config that creates no
    more weights than the file has.

    The file is first copied to a private folder, so that exactly the checked content is
    loaded, even if another process writes to the path meanwhile.

    Args:
        path: Path of the file; it ends in `.keras`. A link to it is followed. Or a
            folder that `keras.saving.save_model(..., zipped=False)` wrote; or such a
            folder on a hub, `"hf://owner/name"` for Hugging Face or
            `"kaggle://owner/name/keras/variation"`, which is downloaded to its cache
            by `huggingface_hub` or `kagglehub`.

    Raises:
        RefusedFileError: The file is damaged or contains anything else; the message
            names it. It is a `ValueError`.
        OSError: The file cannot be read, is not a regular file, or the temporary folder
            has no space for the copy.
        ImportError: The package of the hub is not installed. If a download fails, the
            errors are those of the package.

    Example:
        `model = ksd.load_model("model.keras")`
    """
    path, linked = local_path(path)
    if path.is_dir():
        with private_folder() as folder, refusing(path):
            pack(path, linked, folder / _COPY)
            return load_private(folder / _COPY)
    with private_copy(path) as copy:
        # Keras chooses the reader by the suffix; a file may be valid in two formats.
        if path.suffix != ".keras":
            hint = " EarlyExit.load reads it." if path.suffix == ".earlyexit" else ""
            raise RefusedFileError(path, f"its name ends in {path.suffix!r}.{hint}")
        with refusing(path):
            return load_private(copy)


@contextlib.contextmanager
def private_copy(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the path of a copy of a file in a private temporary folder.

    Raises:
        OSError: The file cannot be read or is not a regular file, or there is no space.
    """
    with private_folder() as folder:
        copy_regular(path, folder / _COPY)
        yield folder / _COPY


@contextlib.contextmanager
def private_folder() -> Iterator[pathlib.Path]:
    """Yield the path of a temporary folder that no other user can read."""
    with tempfile.TemporaryDirectory(prefix="keras_selfdistill_") as folder:
        yield pathlib.Path(folder)


@contextlib.contextmanager
def refusing(path: PathLike) -> Iterator[None]:
    """Convert any error that a crafted file causes in Keras, HDF5 or a backend.

    Errors of the machine, such as too little memory or disk space, are raised as they
    are.

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
        if is_of_machine(error):
            raise
        reason = f"{type(error).__name__}: {str(error)[:2000]}"
        raise RefusedFileError(path, reason) from error


def is_of_machine(error: Exception) -> bool:
    """Return whether an error is about the machine, not about a file's content.

    Example:
        >>> is_of_machine(OSError(errno.EMFILE, "")), is_of_machine(ValueError())
        (True, False)
    """
    return isinstance(error, OSError) and error.errno in _MACHINE_ERRORS


def load_private(path: pathlib.Path) -> keras.Model:
    """Check and load a `.keras` file that no other process writes to.

    Raises:
        Exception: Any error; `refusing` converts them.
    """
    with open(path, "rb") as file:
        _check_file(file)
    return keras.saving.load_model(path, safe_mode=True)


def check_members(
    archive: zipfile.ZipFile, size: int, required: set[str], folder: str | None = None
) -> None:
    """Refuse an archive whose members are not as this library or Keras writes them.

    Args:
        archive: Archive open for reading.
        size: Size of its file in bytes.
        required: Names of its members.
        folder: Name of a folder that may contain further members.

    Raises:
        ValueError: A member is missing, unknown, repeated, a link, outside of the
            folder, compressed, or larger than the file.
    """
    members = archive.infolist()
    names = [each.filename for each in members]
    inside = {name for name in names if folder and _is_inside(name, folder)}
    if len(set(names)) != len(names) or set(names) - inside != required:
        raise ValueError(f"its members are {names[:20]} instead of {sorted(required)}.")
    for each in members:
        is_link = stat.S_ISLNK(each.external_attr >> 16)
        if is_link or each.compress_type != zipfile.ZIP_STORED or each.flag_bits & 1:
            raise ValueError(f"{each.filename!r} is a link, compressed or encrypted.")
    if sum(max(each.file_size, each.compress_size) for each in members) > size:
        raise ValueError("its members are larger than the file.")


def read_json(archive: zipfile.ZipFile, name: str) -> Any:
    """Return the content of a JSON document in an archive.

    Raises:
        ValueError: The document is too long, or not JSON.
    """
    if archive.getinfo(name).file_size > _LONGEST_TEXT:
        raise ValueError(f"{name} is longer than {_LONGEST_TEXT} bytes.")
    try:
        return json.loads(archive.read(name))
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply.") from error


def check_fields(document: object, schema: Mapping[str, Check]) -> None:
    """Refuse a document that is not a mapping of exactly the fields of a schema.

    Args:
        document: JSON document of a file.
        schema: Predicate of the value of each field.

    Raises:
        ValueError: Fields are missing or unknown, or a value is invalid.

    Example:
        >>> check_fields({"epoch": 1}, {"epoch": lambda value: value >= 0})
    """
    if not isinstance(document, dict) or document.keys() != schema.keys():
        raise ValueError(f"the fields are not {list(schema)}")
    for field, fits in schema.items():
        if not fits(document[field]):
            raise ValueError(f"{field!r} is {reprlib.repr(document[field])}")


def _is_inside(name: str, folder: str) -> bool:
    first, *rest = name.split("/")
    plain = all(part not in ("", ".", "..") for part in rest)
    return first == folder and bool(rest) and plain and "\\" not in name


def _check_file(file: BinaryIO) -> None:
    with zipfile.ZipFile(file) as archive:
        size = os.fstat(file.fileno()).st_size
        check_members(archive, size, {_CONFIG, _METADATA, _WEIGHTS}, ASSETS)
        read_json(archive, _METADATA)
        config = read_json(archive, _CONFIG)
        check_config(config)
        if not isinstance(config, dict):
            raise ValueError(f"{_CONFIG} is not a JSON object.")
        check_budget(config)
        check_calls(config)
        stored = stored_bytes(archive.read(_WEIGHTS), _WEIGHTS)
    # In a thread of its own: Keras' scopes, names and variables are thread-local.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        needed = thread.submit(_needed_bytes, config).result()
    if needed > stored * (_QUANTISED if _quantises(config) else 1) + _SLACK:
        raise ValueError(
            f"its config needs {needed} bytes of weights, but it stores {stored}."
        )


def _quantises(value: object) -> bool:
    """Return whether a config quantises exits, which are built in float first."""
    if isinstance(value, list):
        return any(map(_quantises, value))
    if not isinstance(value, dict):
        return False
    return _quantises_itself(value) or any(map(_quantises, value.values()))


def _quantises_itself(fields: ConfigDict) -> bool:
    return "frozen" in fields and bool(fields.get("quantized"))


def _needed_bytes(config: ConfigDict) -> int:
    """Return the size of all variables that a config creates, without creating them."""
    compiled: list[ConfigDict] = []
    model = _uncompiled(config, compiled)
    # Includes layers that no output reads, which the model does not list.
    with deferred_values() as made:
        for each in (model, *compiled):
            keras.saving.deserialize_keras_object(each, safe_mode=True)
    return sum(math.prod(each.shape) * np.dtype(each.dtype).itemsize for each in made)


def _uncompiled(value: Any, compiled: list[ConfigDict]) -> Any:
    """Return a config without the compile configs of its models; collect those apart.

    Optimizers are left out: their variables are a small multiple of the weights.
    """
    if isinstance(value, list):
        return [_uncompiled(each, compiled) for each in value]
    if not isinstance(value, dict):
        return value
    found = {key: _uncompiled(each, compiled) for key, each in value.items()}
    if _quantises_itself(found):  # Quantising would compute with the weights.
        found["quantized"] = {}
    arguments = found.pop("compile_config", None)
    if isinstance(arguments, dict):
        compiled.append({k: v for k, v in arguments.items() if k != "optimizer"})
    return found
