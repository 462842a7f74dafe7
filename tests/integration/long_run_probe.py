"""Train, wrap one base or serve again and again, and print what memory does.

Run by test_long_runs.py as `python -m tests.integration.long_run_probe steps 5000`, or
with `cycles 120` or `requests 10000`. Prints, of what came after a
warm-up, the slopes for 100 rounds: of the resident memory and of the memory in use,
both in MB, of the number of Python objects, and of the times that Python ran the model.
"""

import concurrent.futures
import ctypes
import gc
import os
import pathlib
import sys
import weakref

import keras
import numpy as np
from keras import layers

import keras_selfdistill as ksd
from tests.conftest import compile_quickly

SAMPLES = 20  # Of the memory.


class Traced(layers.Layer):
    """Counts how often Python runs it: once for a graph, or at every step."""

    count = 0

    def call(self, inputs):
        """Return the inputs."""
        type(self).count += 1
        return inputs


def network():
    """Return a small base with moving statistics, dropout and a nested model."""
    stack = [keras.Input((6,)), layers.Dense(8, activation="relu", name="tap")]
    inner = keras.Sequential([*stack, layers.BatchNormalization()], name="inner")
    inputs = keras.Input((6,))
    x = layers.Dropout(0.1)(inner(Traced()(inputs)))
    x = layers.Dense(8, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


def wrap(base):
    """Return a compiled wrapper."""
    model = ksd.SelfDistiller(base, ["inner/tap"], "byot")
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy"
    )
    return model


class Heap(ctypes.Structure):
    """What glibc's `mallinfo2` tells of all its arenas, in bytes."""

    _fields_ = [
        ("other_counts", ctypes.c_size_t * 4),
        ("mapped", ctypes.c_size_t),
        ("other_sizes", ctypes.c_size_t * 2),
        ("used", ctypes.c_size_t),
        ("free", ctypes.c_size_t * 2),
    ]


def resident_memory():
    """Return in MB what the process takes, with what its allocator keeps for later."""
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory_in_use():
    """Return in MB what has been allocated and not been freed."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Heap
    heap = mallinfo2()
    return (heap.used + heap.mapped) / 1e6


def is_dead(thing):
    """Return whether this is a reference to something that is gone.

    JAX keeps one for each metric that Keras builds, in a cache of limited size.
    """
    return type(thing) is weakref.ref and thing() is None


def now():
    """Return the memory resident and in use, the Python objects, and the runs."""
    gc.collect()
    objects = sum(not is_dead(thing) for thing in gc.get_objects())
    if keras.backend.backend() == "tensorflow":
        # TensorFlow keeps a kernel, 36 kB, for each name that a variable has ever had,
        # and this frees them. Not on JAX and PyTorch, where it would hide what stays.
        keras.utils.clear_session(free_memory=False)
    return resident_memory(), memory_in_use(), objects, Traced.count


def slope(values, rounds):
    """Return the slope for 100 rounds of a line through the later three quarters."""
    values = values[len(values) // 4 :]
    return 100 * np.polyfit(np.arange(len(values)), values, 1)[0] * SAMPLES / rounds


def steps(rounds):
    """Train for many steps; return what memory did on the way, and the traces."""
    seen = []

    def look(batch, logs):
        if (batch + 1) % (rounds // SAMPLES) == 0:
            seen.append(now())

    random = np.random.default_rng(0)
    x, y = random.normal(size=(8 * rounds, 6)).astype("float32"), np.arange(8 * rounds)
    model = wrap(network())
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=look)
    model.fit(x, y % 3, batch_size=8, verbose=0, callbacks=[callback])
    return seen


def cycles(rounds):
    """Wrap one base many times; return what memory did on the way."""
    base, seen = network(), []
    x, y = np.ones((8, 6), "float32"), np.arange(8) % 3
    for i in range(rounds):
        wrap(base).train_on_batch(x, y)
        if (i + 1) % (rounds // SAMPLES) == 0:
            seen.append(now())
    return seen


def requests(rounds):
    """Answer many requests in two threads; return what memory did on the way."""
    base = keras.Sequential(
        [
            keras.Input((16,)),
            layers.Dense(16, activation="relu", name="tap"),
            Traced(),
            layers.Dense(16, activation="relu"),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
    x = np.random.default_rng(0).normal(size=(100, 16)).astype("float32")
    scores = model.predict(x, verbose=0)["exit_1"].max(axis=-1)
    fast = ksd.EarlyExit(model, thresholds=float(np.median(scores)))

    def serve(number):
        for i in range(number):
            fast.predict(x[i % 100 : i % 100 + 1], batch_size=1)

    seen = []
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for _ in range(SAMPLES):
            list(pool.map(serve, 2 * [rounds // SAMPLES // 2]))
            seen.append(now())
    return seen


def main(kind, rounds):
    """Print the slopes."""
    if keras.backend.backend() == "jax":
        compile_quickly()
    seen = {"steps": steps, "cycles": cycles, "requests": requests}[kind](rounds)
    print(*(slope(values, rounds) for values in zip(*seen, strict=True)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
