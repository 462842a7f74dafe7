"""Open regular files only: no pipes, devices or folders."""

import errno
import os
import pathlib
import shutil
import stat
from typing import BinaryIO

from keras_selfdistill.utils.type_aliases import PathLike

_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)  # Windows has none of the three.
_NO_WAITING = getattr(os, "O_NONBLOCK", 0)
_AS_BYTES = getattr(os, "O_BINARY", 0)  # Windows alone has it.


def open_regular(path: PathLike, *, follow_links: bool = True) -> BinaryIO:
    """Open a regular file for reading; refuse anything else.

    Opening a pipe would block until something is written, and a device may do anything.

    Args:
        path: Path of the file.
        follow_links: Whether the last part of the path may be a link. Paths that users
            pass may; names found in a folder must not, because they may lead anywhere.

    Raises:
        OSError: The file cannot be opened, or is not a regular file.

    Example:
        >>> with open_regular(__file__) as file:
        ...     file.readline().decode().count("regular files")
        1
    """
    # Before it is opened, because opening may have effects; and after, because the file
    # may have been replaced in between.
    _check_regular(os.stat(path, follow_symlinks=follow_links), path)
    flags = os.O_RDONLY | _NO_WAITING | _AS_BYTES | (0 if follow_links else _NO_LINKS)
    number = os.open(path, flags)
    try:
        _check_regular(os.fstat(number), path)
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def is_regular_file(path: PathLike) -> bool:
    """Return whether a path is a regular file, not a folder, link or device.

    Example:
        >>> is_regular_file(__file__), is_regular_file("/")
        (True, False)
    """
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def copy_regular(path: PathLike, copy: pathlib.Path) -> None:
    """Copy the content of a regular file to a path that does not exist.

    Args:
        path: Path of the file, or of a link to it.
        copy: Path of the copy.

    Raises:
        OSError: The file is not regular or cannot be read, `copy` exists, or there is
            no space.
    """
    with open_regular(path) as file, open(copy, "xb") as target:
        shutil.copyfileobj(file, target, 1 << 20)


def _check_regular(status: os.stat_result, path: PathLike) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(
            errno.EINVAL, "Not a regular file, but a link or device", str(path)
        )
