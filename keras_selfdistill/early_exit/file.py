"""The file format of an `EarlyExit`: a zip of a model and its settings, with a digest.

The comment of the zip, which ends the file, is the SHA-256 digest of all bytes before
it, so that changes and truncation are detected.
"""

import json
import math
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_selfdistill.files.archive import (
    RefusedFileError,
    check_fields,
    check_members,
    load_private,
    private_copy,
    read_json,
    refusing,
)
from keras_selfdistill.files.atomic import check_replaceable_file, replacing
from keras_selfdistill.files.config_budget import check_budget
from keras_selfdistill.files.config_check import check_config
from keras_selfdistill.files.digest import sha256
from keras_selfdistill.utils.number_checks import is_finite_number, is_positive_integer
from keras_selfdistill.utils.type_aliases import Check, ConfigDict, PathLike

_FORMAT = "keras_selfdistill.early_exit"
_VERSION = 1
_MODEL, _SETTINGS = "model.keras", "early_exit.json"
_DIGEST_LENGTH = 64  # SHA-256 in hexadecimal digits.


def write_early_exit(
    path: PathLike, model: keras.Model, settings: dict[str, Any]
) -> None:
    """Write a model and its settings to one file, atomically.

    Args:
        path: Path of the file.
        model: A `SelfDistiller`.
        settings: Fields of the file but for format and version.

    Raises:
        ValueError: A setting does not fit the schema of the file.
        FileExistsError: Something exists at the path that is not such a file.
        OSError: The file cannot be written. The path stays as it was.
    """
    path = pathlib.Path(path)
    document = {"format": _FORMAT, "version": _VERSION, **_encoded(settings)}
    _check(document, path)
    text = json.dumps(document, indent=2, allow_nan=False)
    with replacing(path, _check_earlier_file) as whole:
        model_path = whole.parent / "parts" / _MODEL
        model_path.parent.mkdir()
        model.save(model_path)
        with zipfile.ZipFile(whole, "x", zipfile.ZIP_STORED) as archive:
            archive.writestr(_SETTINGS, text)
            archive.write(model_path, _MODEL)
            archive.comment = b"0" * _DIGEST_LENGTH
        with open(whole, "r+b") as file:
            size = os.path.getsize(whole) - _DIGEST_LENGTH
            digest = sha256(file, size).encode()
            file.seek(size)
            file.write(digest)


def read_early_exit(path: PathLike) -> tuple[Any, dict[str, Any]]:
    """Return the model and the settings of a file, which may be untrusted.

    Args:
        path: Path of the file.

    Raises:
        RefusedFileError: The file was changed, truncated, or not written by
            `write_early_exit`.
        OSError: The file cannot be opened.
    """
    path = pathlib.Path(path)
    with private_copy(path) as copy, refusing(path):
        _check_digest(copy)
        with zipfile.ZipFile(copy) as archive:
            check_members(archive, os.path.getsize(copy), {_MODEL, _SETTINGS})
            document = read_json(archive, _SETTINGS)
            _complete(document)
            _check(document, path)
            inside = archive.extract(_MODEL, copy.parent / "inside")
        model = load_private(pathlib.Path(inside))
    return model, _decoded(document)


def as_bytes(save: Callable[[PathLike], None]) -> bytes:
    """Return what a function writes to the path of a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "pickled.earlyexit"
        save(path)
        return path.read_bytes()


def from_bytes(load: Callable[[PathLike], Any], content: bytes) -> Any:
    """Return what a function loads from a file of the given content."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "pickled.earlyexit"
        path.write_bytes(content)
        return load(path)


def _check_earlier_file(path: pathlib.Path) -> None:
    """Refuse to replace anything but an early-exit file or an empty one."""
    check_replaceable_file(path)
    if not path.stat().st_size:
        return
    try:
        with zipfile.ZipFile(path) as archive:
            is_ours = sorted(archive.namelist()) == [_SETTINGS, _MODEL]
    except zipfile.BadZipFile:
        is_ours = False
    if not is_ours:
        raise FileExistsError(
            "EarlyExit.save replaces only a file that it wrote. Received: path="
            f"{str(path)!r}, where there is a file of another kind, or a truncated "
            "one. Expected: a path that does not exist. Choose another path, or remove "
            "that file."
        )


def _complete(document: object) -> None:
    """Give a file of an earlier version the fields of this one."""
    if not isinstance(document, dict):
        return
    document.setdefault("latencies_ms", None)
    document.setdefault("temperatures", None)
    found = document.get("calibration")
    if isinstance(found, dict):
        found.setdefault("latency_ms", None)
        if "flops_ratio" in found:  # The earlier name.
            found.setdefault("macs_ratio", found.pop("flops_ratio"))


def _check_digest(path: pathlib.Path) -> None:
    size = os.path.getsize(path) - _DIGEST_LENGTH
    with open(path, "rb") as file:
        found = sha256(file, size).encode()
        stored = file.read()
    if size <= 0 or stored != found:
        raise RefusedFileError(
            path,
            "its SHA-256 digest does not match its content. Copy or save it again. A "
            ".keras file is read by load_model",
        )


def _are_thresholds(value: object) -> bool:
    words = ("always", "never")
    return isinstance(value, list) and all(
        is_finite_number(each) or (isinstance(each, str) and each in words)
        for each in value
    )


def _are_temperatures(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(map(is_finite_number, value))


def _are_latencies(value: object) -> bool:
    return isinstance(value, dict) and all(map(is_finite_number, value.values()))


def _is_criterion(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"registered_name", "config"}
        and isinstance(value["registered_name"], str)
        and isinstance(value["config"], (dict, type(None)))
    )


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _is_calibration(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == _CALIBRATION.keys()
        and all(check(value[key]) for key, check in _CALIBRATION.items())
    )


_CALIBRATION: dict[str, Check] = {
    "thresholds": _are_thresholds,
    "accuracy": is_finite_number,
    "base_accuracy": is_finite_number,
    "macs_ratio": _or_none(is_finite_number),
    "samples": is_positive_integer,
    "guarantee": _or_none(is_finite_number),
    "accuracy_drop_bound": _or_none(is_finite_number),
    "latency_ms": _or_none(is_finite_number),
}
_SCHEMA: dict[str, Check] = {
    "format": lambda value: value == _FORMAT,
    "version": lambda value: value == _VERSION,
    "criterion": _is_criterion,
    "scores_from": lambda value: isinstance(value, str),
    "last_resort": lambda value: isinstance(value, str),
    "thresholds": _or_none(_are_thresholds),
    "temperatures": _or_none(_are_temperatures),
    "latencies_ms": _or_none(_are_latencies),
    "calibration": _or_none(_is_calibration),
}


def _check(document: ConfigDict, path: pathlib.Path) -> None:
    try:
        check_fields(document, _SCHEMA)
    except ValueError as error:
        raise RefusedFileError(path, f"in {_SETTINGS}, {error}") from error
    check_config(document["criterion"]["config"])
    check_budget(document["criterion"]["config"])


def _encoded(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without infinity and NaN, which JSON does not have."""
    settings = _map_thresholds(settings, {math.inf: "never", -math.inf: "always"})
    found = settings["calibration"]
    if found is not None and math.isnan(found["macs_ratio"]):
        settings["calibration"] = {**found, "macs_ratio": None}
    return settings


def _decoded(document: dict[str, Any]) -> dict[str, Any]:
    settings = _map_thresholds(document, {"never": math.inf, "always": -math.inf})
    found = settings["calibration"]
    if found is not None and found["macs_ratio"] is None:
        settings["calibration"] = {**found, "macs_ratio": math.nan}
    return settings


def _map_thresholds(
    settings: dict[str, Any], words: Mapping[Any, Any]
) -> dict[str, Any]:
    result = dict(settings)
    if isinstance(result.get("thresholds"), (list, tuple)):
        result["thresholds"] = [
            words.get(value, value) for value in result["thresholds"]
        ]
    if result.get("calibration") is not None:
        result["calibration"] = _map_thresholds(result["calibration"], words)
    return result
