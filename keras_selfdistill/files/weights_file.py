"""Check an HDF5 file of weights before an array of it is made."""

import io

import h5py


def stored_bytes(content: bytes, name: str) -> int:
    """Return the size of all arrays of an HDF5 file, each of which it holds whole.

    An array takes as many bytes of memory as the file has for it and for no other, so
    that reading all of them takes no more than the file's size.

    Args:
        content: Content of the file.
        name: Name of the file, for errors.

    Raises:
        ValueError: It is no HDF5 file, or there is a link, a loop, an array that is
            elsewhere, compressed, in pieces or of objects, or two that overlap.

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
    # From memory alone, so that it is the content that cannot be read.
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
    end = 0
    for start, size in sorted(each for each in ranges if each[1]):
        if start < end:
            raise ValueError(f"arrays in {name} overlap: their sum exceeds the file.")
        end = start + size
    if end > len(content):
        raise ValueError(f"an array in {name} reaches beyond its end.")
    return sum(size for _, size in ranges)


def _arrays(file, name):
    """Yield all that is no group, with its key."""
    groups, seen = [file], set()
    while groups:
        group = groups.pop()
        for key in group:
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise ValueError(f"{key!r} in {name} is a link.")
            item = group[key]
            place = h5py.h5o.get_info(item.id).addr
            if place in seen:
                raise ValueError(f"{key!r} in {name} is there twice.")
            seen.add(place)
            if isinstance(item, h5py.Group):
                groups.append(item)
            else:
                yield item, key


def _range(item, where):
    """Return where the bytes of an array begin in the file, and their number."""
    if (
        not isinstance(item, h5py.Dataset)
        or item.shape is None
        or item.dtype.kind not in "biufcV"
        or item.external
        or item.is_virtual
        or item.nbytes > item.id.get_storage_size()
    ):
        raise ValueError(f"{where} is no array that is whole there.")
    start = item.id.get_offset()
    if start is None and item.nbytes:  # Keras writes them in one piece.
        raise ValueError(f"{where} is no array that is whole there, in one piece.")
    return start or 0, item.nbytes
