"""An export replaces only an earlier one of the same format, exactly as it was written.

Each export contains `early_exit.json`, a list of its files with their digests; a
LiteRT file has it in a zip at its end, as TensorFlow Lite attaches files to models.
"""

import hashlib
import io
import json
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Mapping

from keras_selfdistill.files.archive import check_members
from keras_selfdistill.files.digest import sha256, sha256_of_file
from keras_selfdistill.files.regular_files import is_regular_file, open_regular

LIST = "early_exit.json"
_MODEL = "model"  # The part of a LiteRT file before the zip.
_VERSION = 1
_LONGEST_LIST = 1 << 24  # Bytes.
# Python writes these beside the runner of sections, or Triton's model, if it runs them.
_CACHED = re.compile(
    r"(__pycache__/section_runner|\w+/1/__pycache__/model)\.[\w.\-]+\.pyc"
)


def write_list(folder: pathlib.Path, format: str) -> None:
    """Write the list of the files of an exported folder into it.

    Args:
        folder: Path of the folder, complete but for the list.
        format: Format of the export.
    """
    (folder / LIST).write_text(_text(format, _digests(folder)), encoding="utf-8")


def attach_list(content: bytes, path: pathlib.Path) -> None:
    """Write an exported LiteRT model and its list to a file that does not exist.

    Args:
        content: The model.
        path: Path of the file.
    """
    digests = {_MODEL: hashlib.sha256(content).hexdigest()}
    path.write_bytes(content + _zipped(_text("litert", digests)))


def check_earlier_export(format: str) -> Callable[[pathlib.Path], None]:
    """Return a check that refuses to replace anything but an earlier export.

    Args:
        format: Format of the new export.

    Returns:
        Function of an existing path, which raises a `FileExistsError` that says what
        exists there. An empty folder passes, or an empty file for `"litert"`.
    """
    find_problem = _problem_of_file if format == "litert" else _problem_of_folder

    def refuse(path: pathlib.Path) -> None:
        problem = find_problem(path, format)
        if problem:
            raise FileExistsError(
                "An export replaces only an earlier export of the same format. "
                f"Received: path={str(path)!r}, format={format!r}, where {problem}. "
                "Expected: a path that does not exist. Choose another path, or remove "
                "what exists there."
            )

    return refuse


def _problem_of_file(path: pathlib.Path, format: str) -> str | None:
    """Return the reason not to replace a path by a file; `None` without a reason."""
    if not is_regular_file(path):
        return _kind(path)
    if not path.stat().st_size:
        return None
    try:
        with open_regular(path, follow_links=False) as file:
            with zipfile.ZipFile(file) as archive:
                check_members(archive, path.stat().st_size, {LIST})
                text = archive.read(LIST).decode()
                start = archive.getinfo(LIST).header_offset
            file.seek(0)
            found = {_MODEL: sha256(file, start)}
            same_end = file.read() == _zipped(text)
    except Exception:  # Other files may make zipfile raise anything.
        return "there is a file that no export wrote"
    if not same_end:
        return "the end of an earlier export was changed"
    return _difference(text, format, found)


def _zipped(text: str) -> bytes:
    """Return a zip of a list of files, always the same for the same list."""
    store = io.BytesIO()
    with zipfile.ZipFile(store, "w") as archive:
        archive.writestr(zipfile.ZipInfo(LIST), text)
    return store.getvalue()


def _problem_of_folder(path: pathlib.Path, format: str) -> str | None:
    if path.is_symlink() or not path.is_dir():
        return _kind(path)
    if not os.listdir(path):
        return None
    try:
        with open_regular(path / LIST, follow_links=False) as file:
            text = file.read(_LONGEST_LIST).decode()
    except (OSError, ValueError):
        return _kind(path)
    return _difference(text, format, _digests(path))


def _difference(text: str, format: str, found: Mapping[str, str | None]) -> str | None:
    """Return how files differ from those of a list; `None` if they are the same."""
    if text == _text(format, found):
        return None
    try:
        document = json.loads(text)
        written, files = document["format"], dict(document["files"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{LIST!r} is not as an export writes it"
    if written != format:
        return f"there is an export of format {str(written)[:50]!r}"
    others = sorted(found.keys() - files)
    if others:
        return f"there is an earlier export, but also {_some(others)}"
    changed = sorted(name for name in files if files[name] != found.get(name))
    return (
        "files of an earlier export were changed or removed: "
        f"{_some(changed or [LIST])}"
    )


def _text(format: str, files: Mapping[str, str | None]) -> str:
    document = {"format": format, "version": _VERSION, "files": dict(files)}
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def _digests(folder: pathlib.Path) -> dict[str, str | None]:
    """Return the digests of all files but the list, by path in the folder.

    Empty folders, links and devices have `None`.
    """
    found = {}
    for place, folders, names in os.walk(folder):
        ends = [*names, *(each for each in folders if not _is_full(place, each))]
        for path in (pathlib.Path(place, name) for name in ends):
            name = path.relative_to(folder).as_posix()
            if name != LIST and not _CACHED.fullmatch(name):
                found[name] = sha256_of_file(path) if is_regular_file(path) else None
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
    return "there is a file" if path.is_file() else "there is a device or pipe"


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
