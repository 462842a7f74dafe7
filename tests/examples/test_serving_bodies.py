"""Bodies of requests to `examples/serve.py`: wrong ones are refused, with a reason."""

import io
import json
import struct

import numpy as np
import pytest

from serving.bodies import RefusedRequest, check_shape, read_json, read_npy

# NumPy warns of headers that Python 2 may have written.
pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore::UserWarning")]
SHAPE = 2, 3
IMAGES = np.arange(24.0, dtype="float32").reshape(4, *SHAPE)
CONTENT = IMAGES.tobytes()


def npy(header, content=CONTENT, version=1):
    """Return an .npy file of a header, which may be anything."""
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + content


def described(shape="(4, 2, 3)", descr="'<f4'", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}".encode()


def saved(array):
    store = io.BytesIO()
    np.save(store, array)
    return store.getvalue()


@pytest.mark.parametrize("dtype", ["float32", ">f8", "float16", "uint8", "int64", bool])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_numbers_are_read(dtype, order):
    images = np.asarray(IMAGES.astype(dtype), order=order)
    for body in (saved(images), bytearray(saved(images))):
        found = read_npy(body, SHAPE)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(read_npy(npy(described(), version=2), SHAPE), IMAGES)


HUGE = "0x" + "f" * 9000  # More digits than Python writes.
WRONG = {
    "TokenError": npy(b"{'descr': '<f4', 'shape': ("),
    "IndentationError": npy(b"  {'a\n 1"),
    "TypeError": npy(b"{[]: 1}"),
    "keys of two kinds": npy(b"{'a': 1, 2: 3}"),
    "MemoryError or RecursionError": npy(b"(" * 9000),
    "minus signs": npy(b"-" * 9000 + b"1"),
    "no UTF-8": npy(b"\xff\xfe" * 20),
    "zero bytes": npy(bytes(60)),
    "no header": npy(b""),
    "a long header": npy(b" " * 20000),
    "a length beyond the end": b"\x93NUMPY\2\0\xff\xff\xff\xff{}",
    "version 3": npy(described(), version=3),
    "no magic": b"PK\3\4" + bytes(100),
    "nothing": b"",
    "no dictionary": npy(b"[1, 2]"),
    "negative": npy(described("(-4, 2, 3)")),
    "two negative": npy(described("(-4, -2, 3)")),
    "boolean": npy(described("(True, 2, 3)"), IMAGES[:1].tobytes()),
    "boolean of the shape": npy(described("(4, 2, True)")),
    "none": npy(described("(0, 2, 3)"), b""),
    "a list": npy(described("[4, 2, 3]")),
    "floats": npy(described("(4.0, 2, 3)")),
    "too many": npy(described(f"({1 << 62}, 2, 3)")),
    "more than is written": npy(described(f"({HUGE}, 2, 3)")),
    "more than is written, of another shape": npy(described(f"({HUGE}, {HUGE})")),
    "many axes": npy(described("(" + "1," * 3000 + ")")),
    "one image short": npy(described("(5, 2, 3)")),
    "one image more": npy(described("(3, 2, 3)")),
    "no integer order": npy(described(order="1")),
    "objects": npy(described(descr="'|O'")),
    "text": npy(described(descr="'<U1'")),
    "no bytes": npy(described(descr="'|S0'")),
    "complex": npy(described(descr="'<c8'")),
    "dates": npy(described(descr="'<M8[s]'")),
    "records": npy(described(descr="[('a', '<f4')]")),
    "large records": npy(described(descr="[('a', '<f4', (1 << 40,))]")),
    "arrays in arrays": npy(described(descr="('<f4', (1000000000,))")),
    "a dtype of no length": npy(described(descr="[]")),
    "no dtype": npy(described(descr="'nothing'")),
    "a number as dtype": npy(described(descr="5")),
}


@pytest.mark.parametrize("name", WRONG)
def test_crafted_headers_are_refused(name):
    with pytest.raises(RefusedRequest) as caught:
        read_npy(WRONG[name], SHAPE)
    status, reason = caught.value.args
    assert status == 400
    assert 0 < len(reason) < 600
    json.dumps(reason)


def test_changed_headers_are_refused_or_read():
    random = np.random.default_rng(0)
    whole, start = saved(IMAGES), 8
    refused = 0
    for _ in range(3000):
        body = bytearray(whole)
        for at in random.integers(start, len(whole) - IMAGES.nbytes, 3):
            body[at] = random.choice([*b"(){}[]'\"\\,:-L0x9# \n\t", *range(256)])
        try:
            found = read_npy(body, SHAPE)
        except RefusedRequest:
            refused += 1
        else:
            assert found.shape[1:] == SHAPE
            assert found.nbytes <= len(body)
    assert 1000 < refused < 3000


def test_json_is_read_or_refused():
    document = json.dumps({"images": IMAGES.tolist()}).encode()
    np.testing.assert_array_equal(read_json(document), IMAGES)
    for body in (
        b"",
        b"\xff",
        b"[1]",
        b"5",
        b"{}",
        b'{"images": [[1], 2]}',
        b'{"images": ' + b"[" * 100_000,
        b'{"images": ' + b"9" * 5000 + b"}",
    ):
        with pytest.raises(RefusedRequest, match="Expected JSON") as caught:
            read_json(body)
        assert caught.value.args[0] == 400
        assert len(caught.value.args[1]) < 600


@pytest.mark.parametrize(
    "shape", [(), (1,), (0, 2, 3), (4, 2), (4, 3, 2), (-1, 2, 3), (True, 2, 3)]
)
def test_other_shapes_are_refused(shape):
    check_shape((1, *SHAPE), SHAPE)
    with pytest.raises(RefusedRequest, match=r"Expected: \(images, \*\(2, 3\)\)"):
        check_shape(shape, SHAPE)
