"""Write files and folders atomically: a path has the old or the new content.

The new content is written to a temporary folder beside the path and moved there in one
step. A process that is killed leaves the temporary folder; the next write beside it
removes it, and restores what was about to be replaced.
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

from keras_selfdistill.utils.type_aliases import PathLike

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: folders that killed processes leave are not removed.
    fcntl = None

_PREFIX = ".keras_selfdistill_"
_NAME = re.compile(re.escape(_PREFIX) + r"[a-z0-9_]{8}")  # As `tempfile` makes names.
_NEW, _OLD = "new", "old"
_ATTEMPTS = 100  # To create a folder that no other process removes.
# Errors of systems and file systems that cannot exchange two paths.
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.EPERM, errno.ENOTSUP)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def check_replaceable_file(path: pathlib.Path) -> None:
    """Refuse to replace anything but a regular file.

    Args:
        path: Existing path.

    Raises:
        FileExistsError: The path is a folder, a link, a device or a pipe.

    Example:
        >>> check_replaceable_file(pathlib.Path(__file__))
    """
    mode = path.lstat().st_mode
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISLNK: "a link", stat.S_ISFIFO: "a pipe"}
    kind = next((kind for is_kind, kind in kinds.items() if is_kind(mode)), "no file")
    raise FileExistsError(
        f"A file can only replace a file. Received: path={str(path)!r}, which is "
        f"{kind}. Expected: the path of a file, or one that does not exist."
    )


@contextlib.contextmanager
def replacing(
    path: PathLike,
    check: Callable[[pathlib.Path], None] = check_replaceable_file,
) -> Iterator[pathlib.Path]:
    """Replace a file or a folder atomically, as a context manager.

    The new content is flushed to disk before it is moved. On Linux the old and the new
    file or folder are exchanged in one step. On other systems a file is still replaced
    in one step. An old folder stays until the new one is complete; a process that is
    killed between the two renames leaves it beside the path, and the next write there
    restores it. A link at the path is not followed.

    Args:
        path: Path of the file or folder to replace. Its parent folder exists.
        check: Function called with the path if it exists, before anything is written
            and again before it is replaced. It raises if the path must stay.

    Yields:
        A path of the same name that does not exist yet. Other files may be written
        beside it; they are removed at the end.

    Raises:
        OSError: The content cannot be written or moved; the path is unchanged.

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


def _named(path: pathlib.Path) -> pathlib.Path:
    """Return the path with a real name as its last part, not `..`."""
    if path.name in ("", ".."):
        return path.resolve()
    return path.parent.resolve() / path.name


@contextlib.contextmanager
def _workspace(parent: pathlib.Path) -> Iterator[pathlib.Path]:
    folder, lock = _locked_folder(parent)
    try:
        yield folder
    finally:
        _remove(folder)
        if lock is not None:
            os.close(lock)


def _locked_folder(parent: pathlib.Path) -> tuple[pathlib.Path, int | None]:
    """Create a temporary folder and lock it, if the file system has locks.

    Between the two, another process may take the folder for a stale one and remove it;
    then the next one is tried.
    """
    for _ in range(_ATTEMPTS):
        folder = pathlib.Path(tempfile.mkdtemp(dir=parent, prefix=_PREFIX))
        try:
            return folder, _lock(folder)
        except (BlockingIOError, FileNotFoundError):
            continue
    raise OSError(
        errno.EAGAIN, "Other processes removed every temporary folder", str(parent)
    )


def _lock(folder: pathlib.Path) -> int | None:
    """Lock a folder and return its descriptor; `None` if there are no locks.

    The system releases the lock when the process ends, in any way.

    Raises:
        BlockingIOError: Another process has the lock.
        FileNotFoundError: The folder was removed.
    """
    if fcntl is None:
        return None
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # It may have been removed after it was opened.
        if not os.path.samestat(os.fstat(lock), os.lstat(folder)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), folder)
    except OSError as error:
        os.close(lock)
        if isinstance(error, (BlockingIOError, FileNotFoundError)):
            raise
        return None
    return lock


def _remove_stale(parent: pathlib.Path) -> None:
    """Remove what killed processes left in a folder; restore what they moved away."""
    try:
        with os.scandir(parent) as entries:
            stale = [
                pathlib.Path(entry.path)
                for entry in entries
                if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            ]
    except OSError:  # It cannot be listed; whether it can be written to shows later.
        return
    for folder in stale:
        try:
            _remove_stale_folder(folder, parent)
        except (BlockingIOError, FileNotFoundError):
            continue  # In use, or removed by another process.
        except OSError as error:
            logging.warning("A temporary folder could not be removed: %s", error)


def _remove_stale_folder(folder: pathlib.Path, parent: pathlib.Path) -> None:
    lock = _lock(folder)
    if lock is None:
        return
    try:
        if os.fstat(lock).st_uid == os.getuid() and _put_back(lock, parent):
            _remove(folder)
    finally:
        os.close(lock)


def _put_back(stale: int, parent: pathlib.Path) -> bool:
    """Restore a folder that was moved away, if nothing has its name by now.

    Others may have made the temporary folder, as everything beside it: no link is
    followed. A renamed folder replaces an empty folder at most, no file and no link.

    Args:
        stale: Descriptor of the temporary folder.
        parent: Path of the folder around it.

    Returns:
        Whether the temporary folder contains what this module leaves, nothing else.
    """
    names = _folders_in(stale)
    if names is None or not {*names} <= {_NEW, _OLD}:
        return False
    if _OLD not in names:
        return True
    old = os.open(_OLD, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=stale)
    try:
        moved = _folders_in(old)
        if moved is None or len(moved) > 1:
            return False
        for name in moved:
            if not os.path.lexists(parent / name):
                os.rename(name, parent / name, src_dir_fd=old)
        return True
    finally:
        os.close(old)


def _folders_in(folder: int) -> list[str] | None:
    """Return the names of a folder's folders; `None` if it contains anything else."""
    names = os.listdir(folder)
    modes = (os.stat(each, dir_fd=folder, follow_symlinks=False) for each in names)
    return names if all(stat.S_ISDIR(each.st_mode) for each in modes) else None


def _remove(folder: pathlib.Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:  # Whether the content was written does not depend on it.
        logging.warning("A temporary folder could not be removed: %s", error)


def _to_disk(path: pathlib.Path) -> None:
    if not path.is_dir():
        _sync(path)
        return
    for folder, _, names in os.walk(path):
        for name in names:
            _sync(pathlib.Path(folder, name))
        _sync(pathlib.Path(folder))


def _sync(path: pathlib.Path) -> None:
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


def _move(new: pathlib.Path, path: pathlib.Path, old: pathlib.Path) -> None:
    """Move the new content to a path; the old one goes to `new` or `old`."""
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


def _exchanged(first: pathlib.Path, second: pathlib.Path) -> bool:
    """Exchange two paths in one step; return whether the system can."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        exchange = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # The C library does not have it.
        return False
    paths = os.fsencode(first), os.fsencode(second)
    if not exchange(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE):
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(second))
