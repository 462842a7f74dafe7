"""`examples/serve.py` over HTTP, against `predict`: answers, refusals, losses, stop."""

import concurrent.futures
import importlib.util
import io
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from tests.conftest import ROOT, miss

pytestmark = [
    pytest.mark.long,
    pytest.mark.once,
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore"),  # Exporters warn of their own workings.
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow",
        reason="artifacts that decide are written on TensorFlow",
    ),
]
NPY = "application/x-npy"
QUEUED = 8


def make_early_exit(x):
    """Return an EarlyExit with half of the samples at each exit, none at a limit."""
    keras.utils.set_random_seed(0)
    base = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu", name="tap"),
            layers.Conv2D(8, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10, "softmax"),
        ]
    )
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
    scores = np.sort(model.predict(x, verbose=0)["exit_1"].max(axis=-1))
    middle = len(x) // 2
    return ksd.EarlyExit(
        model, thresholds=float(scores[middle - 1 : middle + 1].mean())
    )


def as_npy(array):
    store = io.BytesIO()
    np.save(store, array)
    return store.getvalue()


class Service:
    """A running service, and HTTP requests to it."""

    def __init__(self, folder, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}/"
        port = self.url.rpartition(":")[2].strip("/")
        script = ROOT / "examples" / "serve.py"
        flags = ["--replicas=2,1", "--cpus=0", f"--max_queued={QUEUED}"]
        self.process = subprocess.Popen(
            [sys.executable, script, f"--sections={folder}", f"--port={port}", *flags],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )

    def wait_for(self, word):
        assert any(line.startswith(word) for line in self.process.stdout), word

    def post(self, body, kind=NPY):
        """Return the status, and the JSON of the response if it is one."""
        request = urllib.request.Request(self.url, body, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            content = error.read().decode()
            return error.code, content

    def replicas(self, name):
        """Return the processes of a section."""
        import psutil

        family = psutil.Process(self.process.pid).children(recursive=True)
        found = [each for each in family if f":{name}:" in " ".join(each.cmdline())]
        assert found, [each.cmdline() for each in family]
        return found


@pytest.fixture
def service(tmp_path):
    for name in ("ray", "onnxruntime", "psutil", "tf2onnx"):
        if importlib.util.find_spec(name) is None:
            miss(f"{name} is not installed")
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype("float32")
    fast = make_early_exit(x)
    fast.export(tmp_path / "sections", format="onnx")
    with open(tmp_path / "log", "w") as log:
        service = Service(tmp_path / "sections", log)
    try:
        yield service, x, fast.predict(x)
    finally:
        if service.process.poll() is None:
            service.process.terminate()
        service.process.wait()
        service.process.stdout.close()


def check(found, expected, rows):
    """Compare a response with the result of `predict` for some rows."""
    assert found["exits"] == expected.exits[rows].tolist()
    for name in ("predictions", "scores"):
        np.testing.assert_allclose(
            found[name], getattr(expected, name)[rows], atol=1e-5, err_msg=name
        )


def wrong_requests(x):
    """Yield a body, its content type, the status and a part of the reason."""
    yield b"xx", "application/json", 400, "Expected JSON"
    yield b'{"image": []}', "application/json", 400, "Expected JSON"
    yield b'{"images": [["a"]]}', "application/json", 400, r"images, *(8, 8, 1)"
    yield as_npy(x[:0]), NPY, 400, "(0, 8, 8, 1)"
    yield as_npy(x[:2, :5]), NPY, 400, "(2, 5, 8, 1)"
    yield as_npy(x[:2])[:-4], NPY, 400, "no .npy file"
    yield as_npy(x[:2].astype(object)), NPY, 400, "Expected: numbers"
    yield as_npy(np.full_like(x[:1], np.nan)), NPY, 400, "NaN"
    yield as_npy(x[:2].astype(complex)), NPY, 400, "Expected: numbers"
    yield as_npy(x), NPY, 413, "at most 32"
    yield b"", "text/plain", 415, NPY


def test_a_service(service):
    service, x, expected = service
    assert set(expected.exits) == {"exit_1", "final"}
    service.wait_for("Serving")

    status, found = service.post(as_npy(x[:32]))
    assert status == 200
    check(found, expected, slice(32))
    document = json.dumps({"images": x[32:].tolist()}).encode()
    status, found = service.post(document, "application/json")
    assert status == 200
    check(found, expected, slice(32, 64))
    for body, kind, status, reason in wrong_requests(x):
        code, content = service.post(body, kind)
        assert (code, reason in content) == (status, True), (reason, code, content)

    # A replica is killed under load, and every answer is right.
    with concurrent.futures.ThreadPoolExecutor(QUEUED) as pool:
        rows = [i % 64 for i in range(300)]
        futures = [pool.submit(service.post, as_npy(x[[row]])) for row in rows]
        futures[50].result()
        service.replicas("section_1")[0].kill()
        for row, future in zip(rows, futures, strict=True):
            status, found = future.result()
            assert status == 200, found
            check(found, expected, [row])

    # With the HTTP side its requests are lost, and later ones wait for another.
    stopped = service.replicas("section_1")
    for each in stopped:
        each.suspend()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(service.post, as_npy(x[[row]])) for row in range(2)]
        time.sleep(1)  # Until it has them.
        service.replicas("front")[0].kill()
        assert [future.result()[0] for future in futures] == [500, 500]
    for each in stopped:
        each.resume()
    status, found = service.post(as_npy(x[:1]))
    assert status == 200
    check(found, expected, slice(1))

    # While a section stands still, queues fill, and the rest is refused. What the
    # service has begun is answered, though it is told to stop.
    stopped = service.replicas("section_1")
    for each in stopped:
        each.suspend()
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        futures = [pool.submit(service.post, as_npy(x[[row]])) for row in range(40)]
        first = next(concurrent.futures.as_completed(futures))
        assert first.result()[0] == 503
        service.process.send_signal(signal.SIGTERM)
        service.wait_for("Stopping")
        for each in stopped:
            each.resume()
        results = [future.result() for future in futures]
    # 404 is what Ray's proxy gives to those that come when the front is gone.
    assert {200, 503} <= {status for status, _ in results} <= {200, 404, 503}
    assert sum(status == 200 for status, _ in results) >= QUEUED
    for row, (status, found) in enumerate(results):
        if status == 200:
            check(found, expected, [row])
    service.wait_for("Stopped")
    assert service.process.wait() == 0
