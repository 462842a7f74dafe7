"""The files of one run: written atomically, and of one set of flags."""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
from absl import app, flags

from keras_selfdistill.files import atomic


def begin(
    folder: str | pathlib.Path, settings: Mapping[str, Any], *, kept: str
) -> pathlib.Path:
    """Returns a run's folder, made if missing, with the settings in `flags.json`.

    Args:
        folder: Path of the folder, perhaps with `~`.
        settings: What decides the run's result; see `own_settings`.
        kept: Name of the file that a later part of the run goes on from.

    Raises:
        UsageError: That file is there, but was made with other settings.
    """
    folder = pathlib.Path(folder).expanduser()
    begun = folder / "flags.json"
    if (folder / kept).exists():
        refuse_changes(
            folder / kept,
            json.loads(begun.read_text()),
            settings,
            advice="Repeat them to go on, or choose another --output_dir.",
        )
    write_json(begun, settings)
    return folder


def trim_history(path: pathlib.Path, finished_epochs: int) -> None:
    """Drops the rows of epochs that ended after the checkpoint was saved."""
    lines = path.read_bytes().splitlines(keepends=True) if finished_epochs else []
    # The first line names the columns.
    write(path, b"".join(lines[: 1 + finished_epochs]))


def own_settings(flag: str, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """Returns what decides a script's result: its flags, as parsed, and the backend.

    Args:
        flag: Name of a flag that no other module defines: it tells the script.
        without: Names of the script's flags that decide nothing.
    """
    module = flags.FLAGS.find_module_defining_flag(flag)
    own = flags.FLAGS.get_flags_for_module(module)
    found = {each.name: each.value for each in own if each.name not in without}
    return {**found, "backend": keras.backend.backend()}


def refuse_changes(
    path: pathlib.Path, begun: Mapping[str, Any], now: Mapping[str, Any], *, advice: str
) -> None:
    """Raises unless a file was made with the present settings.

    Args:
        path: The file.
        begun: Its settings.
        now: The present ones.
        advice: How to go on where they differ.
    """
    changed = [
        f"{name}={now.get(name)} (was {begun.get(name)})"
        for name in sorted({*begun, *now})
        if begun.get(name) != now.get(name)
    ]
    if changed:
        raise app.UsageError(
            f"Received {', '.join(changed)}; expected the settings with which {path} "
            f"was made. {advice}"
        )


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives the path of a new file, which replaces another once it is complete.

    A program that is killed meanwhile, or an error, leaves the old file as it was. What
    it left beside it goes with the next file that is written there. Only a file is
    replaced, no link or folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as temporary:
        yield temporary


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes an indented JSON file atomically."""
    write(path, json.dumps(content, indent=2).encode() + b"\n")


def save(model: keras.Model, path: pathlib.Path) -> None:
    """Saves a model atomically."""
    with replacing(path) as temporary:
        model.save(temporary)
