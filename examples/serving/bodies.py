"""Images from the bodies of HTTP requests, which may be anything."""

import io
import json

import numpy as np

NPY = "application/x-npy"
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
        if dtype.hasobject:
            raise ValueError("it contains Python objects")
        check_shape(found, shape)
        flat = np.frombuffer(body, dtype, offset=stream.tell())
        return flat.reshape(found, order="F" if fortran else "C")
    except (KeyError, ValueError) as error:
        raise RefusedRequest(400, f"The body is no .npy file: {error}") from error


def read_json(body):
    """Return the images of a JSON document."""
    try:
        return np.asarray(json.loads(body)["images"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RefusedRequest(
            400, f'Expected JSON {{"images": [[...], ...]}}. Received: {error!r}'
        ) from error


def check_shape(found, shape):
    """Refuse arrays that are not at least one image of the network's shape."""
    if len(found) != len(shape) + 1 or tuple(found[1:]) != shape or not found[0]:
        raise RefusedRequest(
            400, f"Received: shape {tuple(found)}. Expected: (images, *{shape})."
        )
