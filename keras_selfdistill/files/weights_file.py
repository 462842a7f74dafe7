"""Check an HDF5 file of weights before memory for its arrays is allocated."""

import io
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np


def stored_bytes(content: bytes, name: str) -> int:
    """Return the size of all arrays of an HDF5 file, each stored completely.

    Every array has its own bytes in the file, as many as it takes in memory, so that
    reading all arrays takes no more memory than the file's size.

    Args:
        content: Content of the file.
        name: Name of the file, for error messages.

    Raises:
        ValueError: The content is not HDF5, or contains a link, a cycle, an array that
            is external, compressed, chunked or of objects, or arrays that overlap.

    Example:
        >>> store = io.BytesIO()
        >>> with h5py.File(store, "w") as file:
        ...     file["kernel"] = [1.0, 2.0, 3.0]
        >>> stored_bytes(store.getvalue(), "weights.h5")
        24
    """
    ranges = []
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            for item, key in _arrays(file, name):
                ranges.append(_range(item, f"{key!r} in {name}"))
    # It is read from memory, so an OSError is about the content. h5py raises KeyError
    # for members that HDF5 cannot open, such as arrays beyond the file's end.
    except (OSError, KeyError) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
    end = 0
    for start, size in sorted(each for each in ranges if each[1]):
        if start < end:
            raise ValueError(f"arrays in {name} overlap.")
        end = start + size
    if end > len(content):  # Recent HDF5 refuses it first.
        raise ValueError(f"an array in {name} reaches beyond its end.")
    return sum(size for _, size in ranges)


def _arrays(file: h5py.File, name: str) -> Iterator[tuple[Any, str]]:
    """Yield every object that is not a group, with its key."""
    groups, seen = [file], set()
    while groups:
        group = groups.pop()
        for key in group:
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise ValueError(f"{key!r} in {name} is a link.")
            item = group[key]
            place = h5py.h5o.get_info(item.id).addr
            if place in seen:
                raise ValueError(f"{key!r} in {name} occurs twice.")
            seen.add(place)
            if isinstance(item, h5py.Group):
                groups.append(item)
            else:
                yield item, key


def _range(item: Any, where: str) -> tuple[int, int]:
    """Return the offset of an array in the file, and its size in bytes."""
    if (
        not isinstance(item, h5py.Dataset)
        or item.shape is None
        or not _is_plain(item.dtype)
        or item.external
        or item.is_virtual
        or item.nbytes > item.id.get_storage_size()
    ):
        raise ValueError(f"{where} is not an array that the file stores completely.")
    if "dtype" in item.attrs and not _is_one_string(item.attrs.get_id("dtype")):
        raise ValueError(f"the dtype of {where} is not a string.")
    start = item.id.get_offset()
    if start is None and item.nbytes:  # Keras writes them in one piece.
        raise ValueError(f"{where} is not an array stored in one piece.")
    return start or 0, item.nbytes


def _is_plain(dtype: np.dtype) -> bool:
    """Return whether values of a dtype are numbers, or bytes such as bfloat16.

    References take more memory than the file's bytes: many may lead to one long list.
    """
    is_bytes = dtype.kind == "V" and dtype.names is None and dtype.subdtype is None
    return not dtype.hasobject and (is_bytes or dtype.kind in "biufc")


def _is_one_string(attribute: Any) -> bool:
    """Return whether an attribute, which Keras reads, is a string, not an array."""
    is_string = h5py.check_string_dtype(attribute.dtype) is not None
    return is_string and attribute.shape == ()
