"""Checks that an export replaces only an earlier export of the same format."""

import json
import os
import pathlib
from collections.abc import Callable

from keras_selfdistill.early_exit.export import section_runner
from keras_selfdistill.files.digest import sha256_of_file

SAVED_MODEL_MANIFEST = "early_exit.json"
_SAVED_MODEL_FORMAT = "keras_selfdistill.saved_model"
_LITERT_MARK = b"TFL3"  # Bytes 4 to 8 of every such file.


def write_saved_model_manifest(folder: pathlib.Path) -> None:
    """Write a list of the files of an exported SavedModel, with digests, into it.

    Args:
        folder: Path of the SavedModel.
    """
    files = {name: _digest_or_none(folder / name) for name in sorted(_files(folder))}
    document = {"format": _SAVED_MODEL_FORMAT, "version": 1, "files": files}
    text = json.dumps(document, indent=2) + "\n"
    (folder / SAVED_MODEL_MANIFEST).write_text(text, encoding="utf-8")


def check_earlier_export(format: str) -> Callable[[pathlib.Path], None]:
    """Return a check that refuses to replace anything but an earlier export.

    Args:
        format: Format of the new export.

    Returns:
        Function of an existing path, which raises a `FileExistsError` that says what
        exists there.
    """

    def find_problem(path: pathlib.Path) -> str | None:
        if format == "litert":
            return _problem_of_litert(path)
        if path.is_symlink() or not path.is_dir():
            return _kind(path)
        if not os.listdir(path):
            return None
        if format == "tf_saved_model":
            return _problem_of_saved_model(path)
        return _problem_of_sections(path, format)

    def refuse(path: pathlib.Path) -> None:
        problem = find_problem(path)
        if problem:
            raise FileExistsError(
                "An export replaces only an earlier export of the same format. "
                f"Received: path={str(path)!r}, format={format!r}, where {problem}. "
                "Expected: a path that does not exist. Choose another path, or remove "
                "what exists there."
            )

    return refuse


def _problem_of_litert(path: pathlib.Path) -> str | None:
    """Return the reason not to replace a path by a file; `None` without a reason."""
    if not section_runner.is_plain_file(path):
        return _kind(path)
    with open(path, "rb") as file:
        ours = file.read(8)[4:] == _LITERT_MARK
    return None if ours else "there is a file that is no LiteRT model"


def _problem_of_saved_model(path: pathlib.Path) -> str | None:
    try:
        document = json.loads((path / SAVED_MODEL_MANIFEST).read_text("utf-8"))
        if document["format"] != _SAVED_MODEL_FORMAT:
            return "there is a folder of another format"
        files = dict(document["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return _kind(path)
    same = {name: _digest_or_none(path / name) for name in _files(path) & set(files)}
    changed = [name for name, found in same.items() if found != files[name]]
    return _foreign(path, {SAVED_MODEL_MANIFEST, *files}, changed)


def _problem_of_sections(path: pathlib.Path, format: str) -> str | None:
    try:
        manifest = section_runner.read_manifest(path)  # Compares digests, too.
    except (ValueError, OSError) as error:
        return f"{_kind(path)}: {error}"
    if manifest["runtime"] != format:
        return f"there is an export of format {manifest['runtime']!r}"
    expected = {"manifest.json", "section_runner.py"}
    expected.update(name for part in manifest["sections"] for name in part["files"])
    # Python writes these beside the runner if a program imports it.
    expected.update(
        name for name in _files(path) if name.startswith("__pycache__/section_runner.")
    )
    return _foreign(path, expected, [])


def _foreign(path: pathlib.Path, expected: set[str], changed: list[str]) -> str | None:
    others = sorted(_files(path) - expected)
    if others:
        return f"there is an earlier export, but also {_some(others)}"
    if changed:
        return f"files of an earlier export were changed: {_some(sorted(changed))}"
    return None


def _digest_or_none(path: pathlib.Path) -> str | None:
    """Return the digest of a regular file; `None` for an empty folder or a link."""
    return sha256_of_file(path) if section_runner.is_plain_file(path) else None


def _files(folder: pathlib.Path) -> set[str]:
    """Return the relative paths of all files and empty folders in a folder."""
    found = set()
    for place, folders, names in os.walk(folder):
        ends = [*names, *(each for each in folders if not _is_full(place, each))]
        found |= {
            pathlib.Path(place, name).relative_to(folder).as_posix() for name in ends
        }
    return found


def _is_full(place: str, name: str) -> bool:
    path = os.path.join(place, name)
    return not os.path.islink(path) and bool(os.listdir(path))


def _kind(path: pathlib.Path) -> str:
    if path.is_symlink():
        return f"there is a link to {os.readlink(path)!r}"
    if path.is_dir():
        names = sorted(each.name for each in path.iterdir())
        return f"there is a folder of {_some(names)}" if names else "there is a folder"
    return "there is a file"


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
