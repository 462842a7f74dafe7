"""Images from the bodies of HTTP requests, which may be anything."""

import io
import json
import math

import numpy as np

NPY = "application/x-npy"
NUMBERS = "biuf"  # Kinds of dtypes.
NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class RefusedRequest(Exception):
    """A request that is not answered, with the HTTP status and the reason."""


def read_npy(body, shape):
    """Return the images of an .npy file; its header is checked before memory is used.

    Args:
        body: Bytes of the file.
        shape: Shape of one image.
    """
    stream = io.BytesIO(body)
    try:
        read_header = NPY_HEADERS[np.lib.format.read_magic(stream)]
        found, fortran, dtype = read_header(stream)
    # NumPy reads a header as Python: TokenError, MemoryError and others are possible.
    except Exception as error:
        reason = f"The body is no .npy file: {type(error).__name__}: {short(error)}"
        raise RefusedRequest(400, reason) from error
    check_shape(found, shape)
    if dtype.kind not in NUMBERS:
        raise RefusedRequest(400, f"Received: dtype {short(dtype)}. Expected: numbers.")
    start, size = stream.tell(), math.prod(found) * dtype.itemsize
    if len(body) - start != size:
        raise RefusedRequest(
            400,
            f"The body is no .npy file: {len(body) - start} bytes follow its header. "
            f"Expected: {short(size)} for {dtype} of shape {short(found)}.",
        )
    flat = np.frombuffer(body, dtype, offset=start)
    return flat.reshape(found, order="F" if fortran else "C")


def read_json(body):
    """Return the images of a JSON document."""
    try:
        return np.asarray(json.loads(body)["images"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        found = short(repr(error))
        reason = f'Expected JSON {{"images": [[...], ...]}}. Received: {found}'
        raise RefusedRequest(400, reason) from error


def check_shape(found, shape):
    """Refuse arrays that are not at least one image of the network's shape."""
    # A header may say True or -1.
    sizes = all(type(size) is int and size > 0 for size in found)
    if not sizes or len(found) != len(shape) + 1 or tuple(found[1:]) != shape:
        raise RefusedRequest(
            400, f"Received: shape {short(found)}. Expected: (images, *{shape})."
        )


def short(value, most=200):
    """Return the beginning of a value of a request, for an error."""
    try:
        return str(value)[:most]
    except ValueError:  # Python does not write integers of more than 4300 digits.
        return "a very large number"
