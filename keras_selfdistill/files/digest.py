"""SHA-256 of the content of files.

`early_exit/export/section_runner.py` has its own: it is copied into exports and runs
without this package.
"""

import hashlib
from typing import BinaryIO

from keras_selfdistill.utils.type_aliases import PathLike

_BLOCK = 1 << 20  # Bytes.


def sha256(file: BinaryIO, size: int | None = None) -> str:
    """Return the digest of the next bytes of a file, in hexadecimal digits.

    Args:
        file: File open for reading; it is read from its current position.
        size: Number of bytes; by default all to the end.

    Example:
        >>> import io
        >>> sha256(io.BytesIO(b"abc and more"), 3)[:16]
        'ba7816bf8f01cfea'
    """
    digest = hashlib.sha256()
    left = _BLOCK if size is None else size
    while left > 0 and (block := file.read(min(_BLOCK, left))):
        digest.update(block)
        left -= 0 if size is None else len(block)
    return digest.hexdigest()


def sha256_of_file(path: PathLike) -> str:
    """Return the digest of a whole file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return sha256(file)
