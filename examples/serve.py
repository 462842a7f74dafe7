"""Serve an early-exit network over HTTP, each section scaled by itself, on Ray Serve.

    python -m pip install -e ".[serve]"
    python examples/serve.py --sections=FOLDER --replicas=2,1,1

FOLDER is what `EarlyExit.export(folder, format="onnx")` wrote; use one that you trust,
as its `section_runner.py` is run. Processes of the service need NumPy, onnxruntime and
Ray, but neither Keras nor this library.

Every section is a deployment of its own with dynamic batching: early sections see all
images and late ones few, so they get different numbers of replicas. Only images that
have not exited travel on. Sections are pure functions: what a lost replica of a section
was running is sent to another one. The HTTP service has one replica: if that is lost,
the requests that it has get a 500, and new ones wait until Ray has started another.

`POST /` takes an .npy file of images (`Content-Type: application/x-npy`) or JSON,
`{"images": [...]}`, of shape `(images, ...)`, and answers with JSON: `predictions`,
`exits` and `scores`, one for each image. 400, 413 and 415 come with the reason in
`error`; 503 means that there is no room, so try again later. After SIGTERM or Ctrl-C it
finishes the requests that it accepted, for at most `--stop_timeout_s`, and refuses new
ones by 404; then it ends. `--address=auto` joins a running Ray cluster, where FOLDER
must exist on every machine.
"""

import asyncio
import importlib.util
import math
import pathlib
import signal
import threading

import numpy as np
import ray
from absl import app, flags
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.responses import JSONResponse

from serving import bodies
from serving.bodies import NPY, RefusedRequest, check_shape, read_json, read_npy
from shared import script

FLAGS = flags.FLAGS
NUMBER_BYTES = 32  # At most, of a number in a body: as JSON, or as .npy.
RETRY_DELAYS = 0.1, 0.2, 0.5, 1.0, 2.0  # Seconds, where a replica is lost.


def define_flags():
    """Define the command line."""
    flags.DEFINE_string("sections", None, "Folder of an export in format onnx.")
    flags.DEFINE_list("replicas", ["1"], "Replicas of each section; one for all.")
    flags.DEFINE_float("cpus", 1.0, "Processor cores reserved for a replica.", 0.0)
    flags.DEFINE_integer("batch_size", 32, "Images that a section takes at once.", 1)
    flags.DEFINE_float("batch_wait_ms", 2.0, "How long a batch waits to fill.", 0.0)
    flags.DEFINE_integer("max_queued", 256, "Requests that wait or run; then 503.", 1)
    flags.DEFINE_float(
        "stop_timeout_s", 45.0, "Seconds for accepted requests to finish.", 0.0, 50.0
    )
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
    flags.DEFINE_integer("port", 8000, "Port to listen on.", 0)
    flags.DEFINE_string("address", "local", "Ray cluster to join; local: a new one.")
    flags.mark_flag_as_required("sections")


def load_runner(folder):
    """Return the module `section_runner.py` of an exported folder."""
    path = pathlib.Path(folder) / "section_runner.py"
    spec = importlib.util.spec_from_file_location("section_runner", path)
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    return runner


def count_images(requests):
    """Return the number of images of several requests for a section."""
    return sum(len(tensors[0]) for tensors in requests)


class Section:
    """One section of the network, run on batches of the images of many requests.

    Args:
        folder: Path of the exported folder.
        index: Index of the section, from 0.
        batch_size: Largest number of images per batch.
        batch_wait_s: Seconds that a batch waits to fill.
    """

    def __init__(self, folder, index, batch_size, batch_wait_s):
        runner = load_runner(folder)
        manifest = runner.read_manifest(folder)
        path = pathlib.Path(folder) / manifest["sections"][index]["model"]
        self._run = runner.load_onnx(path)
        # All remaining images exit at the last section.
        self._threshold = [*manifest["thresholds"], None][index]
        self._batched.set_max_batch_size(batch_size)
        self._batched.set_batch_wait_timeout_s(batch_wait_s)

    async def __call__(self, tensors):
        """Return which images exit, their predictions and scores, and the others."""
        return await self._batched(tensors)

    @serve.batch(batch_size_fn=count_images)
    async def _batched(self, requests):
        ends = np.cumsum([len(tensors[0]) for tensors in requests])[:-1]
        joined = [np.concatenate(each) for each in zip(*requests, strict=True)]
        # In a thread, so that the replica goes on to accept requests.
        found = await asyncio.to_thread(self._run, joined)
        parts = zip(*(np.split(each, ends) for each in found), strict=True)
        return [self._decide(*part) for part in parts]

    def _decide(self, prediction, score, *alive):
        if self._threshold is None:
            exits = np.ones(len(score), bool)
        else:
            exits = score >= self._threshold
        return exits, prediction[exits], score[exits], [each[~exits] for each in alive]


def overloaded():
    """Return the response to a request that there is no room for."""
    reason = "The service is overloaded. Try again later."
    return JSONResponse({"error": reason}, 503, {"Retry-After": "1"})


class Front:
    """The HTTP service: checks requests, and sends images from section to section.

    Args:
        folder: Path of the exported folder.
        most_images: Largest number of images per request.
        most_requests: Largest number of requests that wait or run.
    """

    def __init__(self, folder, most_images, most_requests):
        import onnxruntime

        manifest = load_runner(folder).read_manifest(folder)
        first = pathlib.Path(folder) / manifest["sections"][0]["model"]
        (images,) = onnxruntime.InferenceSession(first).get_inputs()
        self._shape = tuple(images.shape[1:])
        self._dtype = {"tensor(float)": "float32"}.get(images.type)
        if self._dtype is None or not all(isinstance(n, int) for n in self._shape):
            raise ValueError(
                "Only networks of one float32 input of a fixed shape are served. "
                f"Received: {images.type} {images.shape}. Expected: export a base "
                "with keras.Input((height, width, channels))."
            )
        self._most = most_images
        # JSON is read while no other request is: not more of it than images need.
        self._largest_body = 1024 + NUMBER_BYTES * most_images * math.prod(self._shape)
        self._room = most_requests
        self._exits = manifest["exits"]
        names = [f"section_{i}" for i, _ in enumerate(self._exits, start=1)]
        self._sections = [serve.get_app_handle(name) for name in names]

    async def __call__(self, request):
        """Answer an HTTP request."""
        # Refused here and not by the queue of Ray's proxy, which forgets what waits in
        # it when the service stops.
        if not self._room:
            return overloaded()
        self._room -= 1
        try:
            return JSONResponse(await self._predict(await self._images(request)))
        except RefusedRequest as error:
            status, reason = error.args
            return JSONResponse({"error": reason}, status)
        except (BackPressureError, DeploymentUnavailableError, RayActorError):
            return overloaded()
        finally:
            self._room += 1

    async def _images(self, request):
        """Return the images of a request, shape `(images, …)`."""
        if request.method != "POST":
            raise RefusedRequest(405, f"Received: {request.method}. Expected: POST.")
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if kind not in (NPY, "application/json"):
            raise RefusedRequest(
                415, f"Received: {kind!r}. Expected: {NPY} or application/json."
            )
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._largest_body:
                raise RefusedRequest(
                    413, f"Expected: at most {self._largest_body} bytes."
                )
        images = read_npy(body, self._shape) if kind == NPY else read_json(body)
        check_shape(images.shape, self._shape)
        if len(images) > self._most:
            raise RefusedRequest(
                413, f"Received: {len(images)} images. Expected: at most {self._most}."
            )
        if images.dtype.kind not in "biuf":
            raise RefusedRequest(400, f"Received: {images.dtype}. Expected: numbers.")
        with np.errstate(over="ignore"):
            images = images.astype(self._dtype)
        if not np.isfinite(images).all():
            raise RefusedRequest(400, "Received: NaN or infinity. Expected: numbers.")
        return images

    async def _predict(self, images):
        """Return predictions, exits and scores, as JSON has them."""
        rows, tensors = np.arange(len(images)), [images]
        found = [None] * len(images)
        for name, section in zip(self._exits, self._sections, strict=True):
            exits, *values, tensors = await self._ask(section, tensors)
            for row, prediction, score in zip(rows[exits], *values, strict=True):
                found[row] = prediction.tolist(), name, float(score)
            rows = rows[~exits]
            if not len(rows):
                break
        columns = zip(*found, strict=True)
        return dict(zip(("predictions", "exits", "scores"), columns, strict=True))

    async def _ask(self, section, tensors):
        """Return what a section computes, by another replica where one is lost."""
        for delay in RETRY_DELAYS:
            try:
                return await section.remote(tensors)
            except RayActorError:
                await asyncio.sleep(delay)
        return await section.remote(tensors)


def targets():
    """Return the applications: one for each section, and the front."""
    folder = str(pathlib.Path(FLAGS.sections).resolve())
    exits = load_runner(folder).read_manifest(folder)["exits"]
    replicas = [int(number) for number in FLAGS.replicas]
    replicas = replicas * len(exits) if len(replicas) == 1 else replicas
    if len(replicas) != len(exits) or min(replicas) < 1:
        raise app.UsageError(
            f"Received: --replicas={','.join(FLAGS.replicas)}. Expected: {len(exits)} "
            f"positive numbers, one for each of {', '.join(exits)}, or one for all."
        )
    common = {
        "ray_actor_options": {"num_cpus": FLAGS.cpus},
        # Below the minute that `serve.delete` waits.
        "graceful_shutdown_timeout_s": FLAGS.stop_timeout_s,
        "graceful_shutdown_wait_loop_s": 0.1,
        "health_check_period_s": 1,
    }
    sections = []
    for index, number in enumerate(replicas):
        options = {
            "num_replicas": number,
            "max_ongoing_requests": 2 * FLAGS.batch_size,
            "max_queued_requests": FLAGS.max_queued,
        }
        deployment = serve.deployment(Section, name="Section", **common, **options)
        wait = FLAGS.batch_wait_ms / 1000
        bound = deployment.bind(folder, index, FLAGS.batch_size, wait)
        name = f"section_{index + 1}"
        sections.append(serve.RunTarget(bound, name=name, route_prefix=None))
    front = serve.deployment(
        Front,
        name="Front",
        max_ongoing_requests=4 * FLAGS.max_queued,
        max_queued_requests=FLAGS.max_queued,
        **common,
    )
    bound = front.bind(folder, FLAGS.batch_size, FLAGS.max_queued)
    return sections, serve.RunTarget(bound, name="front", route_prefix="/")


def main(argv):
    """Serve until SIGTERM or Ctrl-C."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}. See --help.")
    # Other machines get its code with that of this script.
    ray.cloudpickle.register_pickle_by_value(bodies)
    sections, front = targets()
    ray.init(FLAGS.address, include_dashboard=False, log_to_driver=False)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    serve.start(http_options={"host": FLAGS.host, "port": FLAGS.port})
    serve.run_many(sections)
    serve.run_many([front])
    print(f"Serving on http://{FLAGS.host}:{FLAGS.port}", flush=True)
    stopped.wait()
    print("Stopping", flush=True)
    serve.delete("front")  # Finishes what it accepted, by the sections.
    serve.shutdown()
    print("Stopped", flush=True)


if __name__ == "__main__":
    define_flags()
    script.run(main)
