"""Write files and folders atomically: a path holds the old or the new, never a part.

What is written grows in a folder of its own beside the path, so that it can be moved
there in one step. A process that is killed leaves that folder; the next write beside it
removes it, and puts back what it was about to replace.
"""

import contextlib
import ctypes
import errno
import os
import pathlib
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows. Folders that killed processes left then stay.
    fcntl = None

_PREFIX = ".keras_selfdistill_"
_NAME = re.compile(re.escape(_PREFIX) + r"[a-z0-9_]{8}")  # As `tempfile` makes names.
_NEW, _OLD = "new", "old"
# What systems and file systems that cannot exchange two paths answer.
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.EPERM, errno.ENOTSUP)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def check_replaceable_file(path: pathlib.Path) -> None:
    """Refuse to replace anything but a regular file.

    Args:
        path: Path at which something is.

    Raises:
        FileExistsError: It is a folder, a link, a device or a pipe.

    Example:
        >>> check_replaceable_file(pathlib.Path(__file__))
    """
    mode = path.lstat().st_mode
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISLNK: "a link", stat.S_ISFIFO: "a pipe"}
    kind = next((kind for is_kind, kind in kinds.items() if is_kind(mode)), "no file")
    raise FileExistsError(
        f"Only a file is replaced by a file. Received: path={str(path)!r}, which is "
        f"{kind}. Expected: a path at which there is a file or nothing."
    )


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike,
    check: Callable[[pathlib.Path], None] = check_replaceable_file,
) -> Iterator[pathlib.Path]:
    """Give a path to write a file or a folder to, which then comes to another path.

    It is on disk before it is moved. On Linux an old file or folder and the new one
    change places in one step. Where the system cannot do that, a file is still replaced
    in one step; of two folders the old one stays until the new one is complete, and a
    process that is killed between the two renames leaves the old one beside the path,
    for the next write there to put back. No link at the path is followed.

    Args:
        path: Path that the file or folder comes to. Its folder exists.
        check: Called with the path where something is there, before anything is
            written and again before it is replaced; raises what the user is to read
            where that may not be replaced.

    Yields:
        A path that does not exist yet, of the same name. Beside it is room for other
        files, which are removed at the end.

    Raises:
        OSError: It cannot be written or moved; the path is as it was.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "notes.txt"
        ...     with replacing(path) as new:
        ...         _ = new.write_text("one")
        ...     print(path.read_text(), os.listdir(folder))
        one ['notes.txt']
    """
    target = _named(pathlib.Path(path))
    if os.path.lexists(target):
        check(target)
    _remove_stale(target.parent)
    with _workspace(target.parent) as folder:
        new = folder / _NEW / target.name
        new.parent.mkdir()
        yield new
        _to_disk(new)
        if os.path.lexists(target):
            check(target)
        _move(new, target, folder / _OLD / target.name)
        _sync(target.parent)


def _named(path):
    """Return a path whose last part is the name of what it leads to."""
    if path.name in ("", ".."):
        return path.resolve()
    return path.parent.resolve() / path.name


@contextlib.contextmanager
def _workspace(parent):
    folder = pathlib.Path(tempfile.mkdtemp(dir=parent, prefix=_PREFIX))
    lock = _locked(folder)
    try:
        yield folder
    finally:
        _remove(folder)
        if lock is not None:
            os.close(lock)


def _locked(folder):
    """Return an open folder that no other process has locked; `None` if none can be.

    The system drops the lock with the process, however that ends.
    """
    if fcntl is None:
        return None
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # Another has it, or the file system knows no locks.
        os.close(lock)
        return None
    return lock


def _remove_stale(parent):
    """Remove what killed processes left in a folder; put back what they moved away."""
    for entry in list(os.scandir(parent)):
        if not _NAME.fullmatch(entry.name) or not entry.is_dir(follow_symlinks=False):
            continue
        folder = pathlib.Path(entry.path)
        lock = _locked(folder)
        if lock is None:
            continue
        try:
            ours = os.fstat(lock).st_uid == os.getuid()
            if ours and set(os.listdir(folder)) <= {_NEW, _OLD}:
                _put_back(folder / _OLD, parent)
                _remove(folder)
        finally:
            os.close(lock)


def _put_back(old, parent):
    for moved in old.iterdir() if old.is_dir() else ():
        if not os.path.lexists(parent / moved.name):
            os.rename(moved, parent / moved.name)


def _remove(folder):
    try:
        shutil.rmtree(folder)
    except OSError as error:  # What was to be written is there or not, all the same.
        logging.warning("A temporary folder could not be removed: %s", error)


def _to_disk(path):
    if not path.is_dir():
        _sync(path)
        return
    for folder, _, names in os.walk(path):
        for name in names:
            _sync(os.path.join(folder, name))
        _sync(folder)


def _sync(path):
    if os.path.isdir(path):
        if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open folders.
            return
        file = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    else:
        file = os.open(path, os.O_RDWR)  # Windows writes only these to disk.
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _move(new, path, old):
    """Move what is new to a path; what was there goes to one of two other paths."""
    if not path.is_dir():
        os.replace(new, path)
    elif not _exchanged(new, path):
        old.parent.mkdir()
        os.rename(path, old)
        try:
            os.rename(new, path)
        except BaseException:
            os.rename(old, path)
            raise


def _exchanged(first, second):
    """Tell whether two paths changed places in one step."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        exchange = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # A C library that does not know it.
        return False
    paths = os.fsencode(first), os.fsencode(second)
    if not exchange(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE):
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(second))
