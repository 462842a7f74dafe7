"""Atomic writes: at a path stands the old or the new, whatever happens in between."""

import errno
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from keras_selfdistill.files import atomic

pytestmark = pytest.mark.once


def anything(path):
    """Let everything be replaced."""


def content(path):
    """Return the bytes of a file, or of all files of a folder by name."""
    if path.is_dir():
        return {each.name: content(each) for each in path.iterdir()}
    return path.read_bytes()


def write(path, text):
    """Write a file, or a folder with one."""
    if path.suffix:
        path.write_text(text)
    else:
        path.mkdir()
        (path / "part").write_text(text)


def replace(path, writer, check=atomic.check_replaceable_file):
    """Let a function write what comes to a path."""
    with atomic.replacing(path, check) as new:
        writer(new)


NAMES = ["file.txt", "folder"]


@pytest.fixture(params=["exchange", "two renames"])
def system(request, monkeypatch):
    """Run on a system that exchanges paths, and on one that cannot."""
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "_exchanged", lambda first, second: False)


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("name", NAMES)
def test_the_new_stands_where_the_old_was(tmp_path, name):
    path = tmp_path / name
    for text in ("one", "two"):
        with atomic.replacing(path, anything) as new:
            assert new.name == name
            write(new, text)
            new.with_name("scratch").write_text("removed")
        expected = {"part": text.encode()} if name == "folder" else text.encode()
        assert content(path) == expected
        assert os.listdir(tmp_path) == [name]


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_after_an_error_the_old_stands(tmp_path, name, error):
    path = tmp_path / name
    write(path, "old")
    before = content(path)

    def fail(new):
        write(new, "half")
        raise error

    with pytest.raises(type(error)):
        replace(path, fail, anything)
    assert content(path) == before
    assert os.listdir(tmp_path) == [name]


def test_a_rename_that_fails_brings_the_old_back(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    write(path, "old")
    monkeypatch.setattr(atomic, "_exchanged", lambda first, second: False)
    rename = os.rename

    def fails(source, target):
        if "new" in pathlib.Path(source).parts:
            raise OSError(errno.EIO, "broken")
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", fails)
        with pytest.raises(OSError, match="broken"):
            replace(path, lambda new: write(new, "new"), anything)
    assert content(path) == {"part": b"old"}
    assert os.listdir(tmp_path) == ["folder"]


KILLED = """
import os, pathlib, signal, sys
from keras_selfdistill.files import atomic
path, moment = pathlib.Path(sys.argv[1]), sys.argv[2]
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == "after the exchange":
    exchanged = atomic._exchanged
    atomic._exchanged = lambda *paths: exchanged(*paths) and die()
if moment == "between two renames":
    atomic._exchanged = lambda *paths: False
    rename, done = os.rename, []
    os.rename = lambda *paths: die() if done else done.append(rename(*paths))
with atomic.replacing(path, lambda path: None) as new:
    new.mkdir()
    (new / "part").write_text("new")
    if moment == "while writing":
        die()
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("moment", "found"),
    [
        ("while writing", {"part": b"old"}),
        ("after the exchange", {"part": b"new"}),
        ("between two renames", None),
    ],
)
def test_after_a_kill_the_next_write_cleans_up(tmp_path, moment, found):
    path = tmp_path / "folder"
    write(path, "old")
    killed = subprocess.run([sys.executable, "-c", KILLED, path, moment])
    assert killed.returncode == -signal.SIGKILL
    assert (content(path) if path.exists() else None) == found
    assert len(list(tmp_path.glob(".keras_selfdistill_*"))) == 1
    with atomic.replacing(tmp_path / "other.txt") as new:
        write(new, "other")
    assert content(path) == (found or {"part": b"old"})  # Put back.
    assert sorted(os.listdir(tmp_path)) == ["folder", "other.txt"]


def test_only_what_is_ours_and_stale_is_removed(tmp_path):
    foreign = tmp_path / ".keras_selfdistill_12345678"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("mine")
    other = tmp_path / ".keras_selfdistill_notes_of_mine"
    other.mkdir()
    (tmp_path / ".keras_selfdistill_abcdefgh").symlink_to(other)
    (tmp_path / ".keras_selfdistill_00000000").write_text("a file")
    before = content(tmp_path)
    with atomic.replacing(tmp_path / "outer.txt") as outer:
        with atomic.replacing(tmp_path / "inner.txt") as inner:  # Both at once.
            write(inner, "inner")
        write(outer, "outer")
    assert content(tmp_path) == before | {"outer.txt": b"outer", "inner.txt": b"inner"}


def link_to(victim):
    """Return a function that makes a link to a folder of the user's."""
    return lambda path: path.symlink_to(victim)


def folder_of(*names, make=pathlib.Path.mkdir):
    """Return a function that makes a folder and, with another function, its parts."""

    def fill(path):
        path.mkdir()
        for name in names:
            make(path / name)

    return fill


PLANTED = {  # By name in a folder that looks as if a killed write had left it.
    "old is a link": lambda victim: {"old": link_to(victim)},
    "new is a link": lambda victim: {"new": link_to(victim), "old": pathlib.Path.mkdir},
    "both are links": lambda victim: {"new": link_to(victim), "old": link_to(victim)},
    "old is a file": lambda victim: {"old": pathlib.Path.touch},
    "old is a pipe": lambda victim: {"old": os.mkfifo},
    "a link in old": lambda victim: {"old": folder_of("made", make=link_to(victim))},
    "a file in old": lambda victim: {"old": folder_of("made", make=pathlib.Path.touch)},
    "several in old": lambda victim: {"old": folder_of("made", "others")},
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_folder_reaches_nothing_outside(tmp_path, what):
    """Archives keep links; once unpacked, they belong to the user."""
    victim, run = tmp_path / "documents", tmp_path / "run"
    victim.mkdir()
    (victim / "thesis.txt").write_text("thesis")
    (victim / "folder").mkdir()
    stale = run / ".keras_selfdistill_aaaaaaaa"
    stale.mkdir(parents=True)
    parts = PLANTED[what](victim)
    for name, make in parts.items():
        make(stale / name)
    replace(run / "file.txt", lambda new: write(new, "new"))
    assert content(victim) == {"thesis.txt": b"thesis", "folder": {}}
    assert sorted(os.listdir(run)) == [stale.name, "file.txt"]
    assert sorted(os.listdir(stale)) == sorted(parts)  # Not one that we left.


@pytest.mark.parametrize("there", ["a file", "a link", "a folder"])
def test_what_is_put_back_replaces_nothing(tmp_path, there):
    path = tmp_path / "moved"
    old = tmp_path / ".keras_selfdistill_aaaaaaaa" / "old"
    write(folder := tmp_path / "folder", "kept")
    (old / path.name).mkdir(parents=True)
    {
        "a file": lambda: path.write_text("mine"),
        "a link": lambda: path.symlink_to(folder),
        "a folder": lambda: write(path, "mine"),
    }[there]()
    before = path.lstat(), content(path)
    replace(tmp_path / "file.txt", lambda new: write(new, "new"))
    assert (path.lstat(), content(path)) == before
    assert sorted(os.listdir(tmp_path)) == ["file.txt", "folder", "moved"]


@pytest.mark.parametrize("moment", ["before it is opened", "after it was opened"])
def test_a_fresh_folder_that_another_process_removes_is_made_again(
    tmp_path, monkeypatch, moment
):
    """Between its creation and its lock it looks like one that a kill left."""
    removed = []

    def clean(function):
        def cleaning(*arguments):
            found = list(tmp_path.glob(".keras_selfdistill_*"))
            if len(removed) < 3 and found:
                removed.append(found[0])
                found[0].rmdir()
            return function(*arguments)

        return cleaning

    module, name = {
        "before it is opened": (os, "open"),
        "after it was opened": (atomic.fcntl, "flock"),
    }[moment]
    with monkeypatch.context() as patched:
        patched.setattr(module, name, clean(getattr(module, name)))
        folder, lock = atomic._locked_folder(tmp_path)
    assert len(removed) == 3
    assert list(tmp_path.iterdir()) == [folder]
    assert os.path.samestat(os.fstat(lock), folder.stat())
    os.close(lock)
    replace(tmp_path / "file.txt", lambda new: write(new, "new"))
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_folder_that_another_process_cleans_is_left_to_it(tmp_path, monkeypatch):
    """It is locked, removed after the list was made, or cannot be read."""
    fcntl = atomic.fcntl
    names = [f".keras_selfdistill_0000000{i}" for i in range(3)]
    for name in names:
        (tmp_path / name).mkdir()
    locked = os.open(tmp_path / names[0], os.O_RDONLY)
    fcntl.flock(locked, fcntl.LOCK_EX)
    listdir, flock = os.listdir, fcntl.flock

    def fails(path):
        if os.path.samestat(os.stat(path), os.stat(tmp_path / names[2])):
            raise OSError(errno.EIO, "broken")
        return listdir(path)

    def removed_first(*arguments):
        if (tmp_path / names[1]).exists():
            (tmp_path / names[1]).rmdir()
        return flock(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", fails)
        patched.setattr(fcntl, "flock", removed_first)
        replace(tmp_path / "file.txt", lambda new: write(new, "new"))
    os.close(locked)
    assert sorted(os.listdir(tmp_path)) == [names[0], names[2], "file.txt"]
    replace(tmp_path / "file.txt", lambda new: write(new, "newer"))
    assert os.listdir(tmp_path) == ["file.txt"]


def test_without_locks_files_are_written(tmp_path, monkeypatch):
    """Some network file systems have none; then nobody removes anything."""

    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, "no locks")

    left = tmp_path / ".keras_selfdistill_00000000"
    left.mkdir()
    monkeypatch.setattr(atomic.fcntl, "flock", no_locks)
    replace(tmp_path / "file.txt", lambda new: write(new, "new"))
    assert sorted(os.listdir(tmp_path)) == [left.name, "file.txt"]


def test_a_file_replaces_a_file_alone(tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("victim")
    (tmp_path / "link").symlink_to(victim)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    write(tmp_path / "folder", "kept")
    before = sorted(os.listdir(tmp_path))
    refused = {
        "link": "a link",
        "dangling": "a link",
        "pipe": "a pipe",
        "folder": "a folder",
        "folder/..": "a folder",
        ".": "a folder",
    }
    for name, kind in refused.items():
        with pytest.raises(FileExistsError, match=kind):
            replace(os.path.join(tmp_path, name), pytest.fail)
    assert sorted(os.listdir(tmp_path)) == before
    assert victim.read_text() == "victim"


def test_what_comes_meanwhile_is_checked_too(tmp_path):
    path = tmp_path / "file.txt"

    def interfere(new):
        write(new, "new")
        path.mkdir()

    with pytest.raises(FileExistsError, match="a folder"):
        replace(path, interfere)
    assert os.listdir(tmp_path) == ["file.txt"]


def test_no_folder_is_made_for_the_path(tmp_path):
    with pytest.raises(FileNotFoundError):
        replace(tmp_path / "no" / "file", pytest.fail)
    assert not os.listdir(tmp_path)
