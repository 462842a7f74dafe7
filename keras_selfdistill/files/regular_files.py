"""Open regular files alone: nothing that waits, and nothing that changes meanwhile."""

import errno
import os
import pathlib
import shutil
import stat
from typing import BinaryIO

_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)  # Windows has none of the three.
_NO_WAITING = getattr(os, "O_NONBLOCK", 0)
_AS_BYTES = getattr(os, "O_BINARY", 0)  # Windows alone has it.


def open_regular(path: str | os.PathLike, *, follow_links: bool = True) -> BinaryIO:
    """Open a regular file for reading, and nothing else.

    A pipe would wait for somebody who writes, and a device may do anything.

    Args:
        path: Path of the file.
        follow_links: Whether the last part of the path may be a link, as in a path that
            the user gave; names that were found in a folder may lead anywhere.

    Raises:
        OSError: It cannot be opened, or is no regular file.

    Example:
        >>> with open_regular(__file__) as file:
        ...     file.readline().decode().count("regular files")
        1
    """
    # Before it is opened, which may do something by itself; and after, as it may be
    # another by then.
    _check_regular(os.stat(path, follow_symlinks=follow_links), path)
    flags = os.O_RDONLY | _NO_WAITING | _AS_BYTES | (0 if follow_links else _NO_LINKS)
    number = os.open(path, flags)
    try:
        _check_regular(os.fstat(number), path)
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def copy_regular(path: str | os.PathLike, copy: pathlib.Path) -> None:
    """Copy the bytes of a regular file to a path at which there is nothing.

    Args:
        path: Path of the file, perhaps of a link to it.
        copy: Path of the copy.

    Raises:
        OSError: The file is no regular one or cannot be read, something is at `copy`,
            or there is no room.
    """
    with open_regular(path) as file, open(copy, "xb") as target:
        shutil.copyfileobj(file, target, 1 << 20)


def _check_regular(status, path):
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(
            errno.EINVAL, "Not a regular file, but a link or device", str(path)
        )
