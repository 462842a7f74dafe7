"""The file of an `EarlyExit`: a zip of a model and of checked data, with a digest.

The digest of all bytes before it ends the file, as the zip's comment: whatever is
changed or cut off shows.
"""

import hashlib
import json
import math
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Callable
from typing import Any

import keras

from keras_selfdistill.safe_config import check_config
from keras_selfdistill.safe_file import (
    RefusedFileError,
    check_fields,
    check_members,
    load_model,
    read_json,
)

_FORMAT = "keras_selfdistill.early_exit"
_VERSION = 1
_MODEL, _SETTINGS = "model.keras", "early_exit.json"
_DIGEST_LENGTH = 64  # SHA-256 in hexadecimal digits.
_BLOCK = 1 << 20


def write_early_exit(
    path: str | os.PathLike, model: keras.Model, settings: dict[str, Any]
) -> None:
    """Write a model and the settings around it, whole or not at all."""
    path = pathlib.Path(path)
    document = {"format": _FORMAT, "version": _VERSION, **_encoded(settings)}
    _check(document, path)
    text = json.dumps(document, indent=2, allow_nan=False)
    # Beside the target, so that it can be moved there in one step.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".early_exit_") as folder:
        model_path = pathlib.Path(folder) / _MODEL
        model.save(model_path)
        whole = pathlib.Path(folder) / "whole"
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(_SETTINGS, text)
            archive.write(model_path, _MODEL)
            archive.comment = b"0" * _DIGEST_LENGTH
        with open(whole, "r+b") as file:
            digest = _digest(file, os.path.getsize(whole))
            file.seek(-_DIGEST_LENGTH, os.SEEK_END)
            file.write(digest)
            file.flush()
            os.fsync(file.fileno())
        os.replace(whole, path)


def read_early_exit(path: str | os.PathLike) -> tuple[Any, dict[str, Any]]:
    """Return the model and the settings of a file.

    Raises:
        RefusedFileError: The file was changed, truncated, or written by something else.
        OSError: The file cannot be opened.
    """
    path = pathlib.Path(path)
    _check_digest(path)
    try:
        with (
            zipfile.ZipFile(path) as archive,
            tempfile.TemporaryDirectory() as folder,
        ):
            check_members(archive, os.path.getsize(path), {_MODEL, _SETTINGS})
            document = read_json(archive, _SETTINGS)
            _check(document, path)
            model = load_model(archive.extract(_MODEL, folder))
    except RefusedFileError as error:
        raise RefusedFileError(path, error.reason) from error
    # All that a made-up archive makes the zip reader raise.
    except Exception as error:
        raise RefusedFileError(path, f"{type(error).__name__}: {error}") from error
    return model, _decoded(document)


def _digest(file, size):
    """Return the digest of all bytes of a file but the last, which hold it."""
    file.seek(0)
    found, missing = hashlib.sha256(), size - _DIGEST_LENGTH
    while missing > 0:
        block = file.read(min(_BLOCK, missing))
        found.update(block)
        missing -= len(block)
    return found.hexdigest().encode()


def _check_digest(path):
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        found = _digest(file, size)
        stored = file.read()
    if size <= _DIGEST_LENGTH or stored != found:
        raise RefusedFileError(
            path, "its SHA-256 digest does not match its content. Copy or save it again"
        )


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e308  # Neither infinite, nor NaN, nor too large for a float.


def _are_thresholds(value: Any) -> bool:
    words = ("always", "never")
    return isinstance(value, list) and all(
        _is_number(each) or (isinstance(each, str) and each in words) for each in value
    )


def _is_criterion(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"registered_name", "config"}
        and isinstance(value["registered_name"], str)
        and isinstance(value["config"], (dict, type(None)))
    )


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _is_calibration(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == _CALIBRATION.keys()
        and all(check(value[key]) for key, check in _CALIBRATION.items())
    )


_CALIBRATION: dict[str, Callable[[Any], bool]] = {
    "thresholds": _are_thresholds,
    "accuracy": _is_number,
    "base_accuracy": _is_number,
    "flops_ratio": _is_number,
    "samples": lambda value: _is_number(value) and isinstance(value, int),
    "guarantee": _or_none(_is_number),
    "accuracy_drop_bound": _or_none(_is_number),
}
_SCHEMA: dict[str, Callable[[Any], bool]] = {
    "format": lambda value: value == _FORMAT,
    "version": lambda value: value == _VERSION,
    "criterion": _is_criterion,
    "scores_from": lambda value: isinstance(value, str),
    "last_resort": lambda value: isinstance(value, str),
    "thresholds": _or_none(_are_thresholds),
    "calibration": _or_none(_is_calibration),
}


def _check(document, path):
    try:
        check_fields(document, _SCHEMA)
    except ValueError as error:
        raise RefusedFileError(path, f"in {_SETTINGS}, {error}") from error
    check_config(document["criterion"]["config"])


def _encoded(settings):
    """Return the settings with words for infinite thresholds, which JSON has not."""
    return _map_thresholds(settings, {math.inf: "never", -math.inf: "always"})


def _decoded(document):
    return _map_thresholds(document, {"never": math.inf, "always": -math.inf})


def _map_thresholds(settings, words):
    result = dict(settings)
    if isinstance(result.get("thresholds"), (list, tuple)):
        result["thresholds"] = [
            words.get(value, value) for value in result["thresholds"]
        ]
    if result.get("calibration") is not None:
        result["calibration"] = _map_thresholds(result["calibration"], words)
    return result
