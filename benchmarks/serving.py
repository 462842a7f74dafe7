"""Time single-image requests over HTTP on the loopback: base, base batched, early exit.

    python benchmarks/serving.py --backend=tensorflow

prints for each number of concurrent clients the requests a second and the latencies
(median, 95th and 99th percentile) of three services in one process, interleaved round
by round:

- base: one compiled call of the base for each request;
- batched: calls of the base on the requests that wait, padded to powers of two;
- early: `EarlyExit.submit`, with a threshold at which the mean multiply-adds are at
  most `--macs_ratio` of the base's.

Clients run in another process of the same machine and keep their connections. At the
end `--requests` requests go to the early exit, and the memory of the process is printed
ten times meanwhile. Weights are random, images are noise: times are those of a trained
network, predictions are not. `--smoke` is a try in seconds.
"""

import concurrent.futures
import http.client
import http.server
import multiprocessing
import os
import queue
import statistics
import threading
import time

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
SHAPE = 32, 32, 3
IMAGES = 256  # Different images; each client sends them in an order of its own.


def make_images():
    """Return the images that clients send."""
    return np.random.default_rng(0).normal(size=(IMAGES, *SHAPE)).astype("float32")


def define_flags():
    """Define the command line; a function, as the clients' process imports this."""
    flags.DEFINE_enum(
        "backend", "tensorflow", ["tensorflow", "jax", "torch"], "Keras backend."
    )
    flags.DEFINE_string("model", "resnet18", "The network's name.")
    flags.DEFINE_float("width_multiplier", 0.5, "Scales the widths.")
    flags.DEFINE_float(
        "macs_ratio",
        2 / 3,
        "Mean multiply-adds of early exit, as a fraction of the base's.",
        lower_bound=0.0,
    )
    flags.DEFINE_list("clients", ["1", "8", "64"], "Numbers of concurrent clients.")
    flags.DEFINE_integer("batch_size", 32, "Images that a call takes.", 1)
    flags.DEFINE_float("seconds", 2.0, "Duration of a round of one service.")
    flags.DEFINE_integer("rounds", 3, "Rounds; each times all services.", 1)
    flags.DEFINE_integer("requests", 10000, "Requests while memory is watched.", 10)
    flags.DEFINE_bool("smoke", False, "A small network and few requests.")


def requests_of(port, path, bodies, seconds, most):
    """Return the latencies in seconds of one client, until a time or a number."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    latencies, end = [], time.perf_counter() + seconds
    while len(latencies) < most and (start := time.perf_counter()) < end:
        connection.request("POST", path, bodies[len(latencies) % IMAGES])
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            raise RuntimeError(f"{path} returned {response.status}")
        latencies.append(time.perf_counter() - start)
    connection.close()
    return latencies


def all_clients(port, path, clients, seconds, most):
    """Return the latencies of all clients, and the seconds that they took together."""
    images, random = make_images(), np.random.default_rng(1)
    orders = [
        [images[i].tobytes() for i in random.permutation(IMAGES)]
        for _ in range(clients)
    ]
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        each = [
            pool.submit(requests_of, port, path, order, seconds, most)
            for order in orders
        ]
        latencies = [latency for future in each for latency in future.result()]
    return latencies, time.perf_counter() - start


class Batched:
    """Calls of a model on the images that wait.

    Args:
        call: Function of a list of one array `(images, …)`.
        batch_size: Largest number of images per call.
    """

    def __init__(self, call, batch_size):
        self._call = call
        self._batch_size = batch_size
        self._waiting = queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()

    def __call__(self, image):
        """Return the predictions for an image of shape `(1, …)`."""
        future = concurrent.futures.Future()
        self._waiting.put((image, future))
        return future.result()

    def _work(self):
        while True:
            taken = [self._waiting.get()]
            while len(taken) < self._batch_size and not self._waiting.empty():
                taken.append(self._waiting.get())
            images = np.concatenate([image for image, _ in taken])
            size = min(1 << (len(images) - 1).bit_length(), self._batch_size)
            padding = np.repeat(images[-1:], size - len(images), axis=0)
            found = self._call([np.concatenate([images, padding])])
            for row, (_, future) in zip(found, taken, strict=False):
                future.set_result(row)


def start_server(services):
    """Return an HTTP server of functions of an image, by path."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            image = np.frombuffer(body, "float32").reshape(1, *SHAPE)
            content = np.asarray(services[self.path](image), "float32").tobytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            """Print nothing."""

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 256

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def set_threshold(fast):
    """Set the highest threshold of at most `--macs_ratio`; return the predictions."""
    images = make_images()
    low, high = 0.0, 1.0
    for _ in range(20):
        fast.thresholds = (low + high) / 2
        if fast.predict(images).macs_ratio > FLAGS.macs_ratio:
            high = fast.thresholds["exit_1"]
        else:
            low = fast.thresholds["exit_1"]
    fast.thresholds = low
    return fast.predict(images)


def make_services():
    """Return an `EarlyExit`, and the three services by path, all of them compiled."""
    import keras

    import keras_selfdistill as ksd
    from keras_selfdistill.backend.compiled import CompiledModel
    from keras_selfdistill.backend.tensors import to_numpy

    keras.utils.set_random_seed(0)
    base = ksd.networks.NETWORKS[FLAGS.model](width_multiplier=FLAGS.width_multiplier)
    model = ksd.SelfDistiller(base, taps=3, recipe="byot")
    fast = ksd.EarlyExit(model, thresholds=0.0).warm_up(FLAGS.batch_size)
    final = model.final_model()
    compiled = CompiledModel(keras.Model(list(final.inputs), final.outputs[0]))
    lock = threading.Lock()

    def call(tensors):
        return to_numpy(compiled(tensors))

    def one(image):
        with lock:
            return call([image])

    images = make_images()
    for size in {*(1 << i for i in range(FLAGS.batch_size.bit_length()))}:
        call([images[:size]])
    result = set_threshold(fast)
    shares = {name: float(np.mean(result.exits == name)) for name in fast.exit_names}
    print(f"macs_ratio {result.macs_ratio:.3f}; exits {shares}")
    fast.start(FLAGS.batch_size, max_queued=1024)

    def early(image):
        return fast.submit(image).result().predictions

    return fast, {
        "/base": one,
        "/batched": Batched(call, FLAGS.batch_size),
        "/early": early,
    }


def milliseconds(latencies):
    """Return median, 95th and 99th percentile of seconds, in milliseconds."""
    return np.quantile(latencies, [0.5, 0.95, 0.99]) * 1000


def resident_mib():
    """Return the memory of this process in MiB; NaN where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
    except OSError:
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def compare(pool, port, paths, clients):
    """Time the services, interleaved, and print a line for each."""
    found = {path: [] for path in paths}
    for round_ in range(FLAGS.rounds + 1):
        for path in paths:
            arguments = port, path, clients, FLAGS.seconds, 10**9
            result = pool.submit(all_clients, *arguments).result()
            if round_:  # The first one warms up.
                found[path].append(result)
    rates = {
        path: [len(latencies) / taken for latencies, taken in rounds]
        for path, rounds in found.items()
    }
    for path, rounds in found.items():
        p50, p95, p99 = milliseconds([each for part, _ in rounds for each in part])
        ratio = statistics.median(
            mine / base for mine, base in zip(rates[path], rates["/base"], strict=True)
        )
        print(
            f"{clients:3d} clients  {path[1:]:8s} "
            f"{statistics.median(rates[path]):7.1f} requests/s "
            f"({ratio:4.2f} of base)  p50 {p50:6.1f} p95 {p95:6.1f} p99 "
            f"{p99:6.1f} ms",
            flush=True,
        )


def watch_memory(pool, port):
    """Send many requests to the early exit, and print the memory meanwhile."""
    clients = 8
    each = max(1, FLAGS.requests // 10 // clients)
    sizes = []
    for _ in range(10):
        pool.submit(all_clients, port, "/early", clients, 600.0, each).result()
        sizes.append(resident_mib())
    shown = " ".join(f"{size:.0f}" for size in sizes)
    print(f"{10 * each * clients} requests; MiB after each tenth: {shown}")


def main(argv):
    """Run the benchmark."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}. See --help.")
    if FLAGS.smoke:
        FLAGS.width_multiplier, FLAGS.clients = 0.125, ["1", "4"]
        FLAGS.rounds, FLAGS.seconds, FLAGS.requests = 1, 0.3, 160
    os.environ["KERAS_BACKEND"] = FLAGS.backend
    import keras

    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        fast, services = make_services()
        print(
            f"{FLAGS.model}, width {FLAGS.width_multiplier}, {FLAGS.backend}, keras "
            f"{keras.__version__}, {len(os.sched_getaffinity(0))} cores, "
            f"{FLAGS.rounds} rounds of {FLAGS.seconds} s"
        )
        server = start_server(services)
        for clients in map(int, FLAGS.clients):
            compare(pool, server.server_port, services, clients)
        watch_memory(pool, server.server_port)
        server.shutdown()
        fast.close()


if __name__ == "__main__":
    define_flags()
    app.run(main)
