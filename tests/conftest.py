"""Shared fixtures: a small residual base, a batch, and gradients on any backend."""

import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import sys
import zlib

import keras
import numpy as np
import pytest
from keras import layers

ROOT = pathlib.Path(__file__).resolve().parent.parent
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As where a shell began this in the background; some tests interrupt themselves.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def trace_quickly():
    """Let TensorFlow run graphs as they are traced, which takes a sixth less time.

    What runs in processes of its own is optimized as usual.
    """
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def compile_quickly():
    """Let XLA optimize less: on JAX, compiling is most of what the tests take.

    What runs in processes of its own compiles as usual, unless it calls this. An XLA
    that does not know a flag ends the process, hence the versions.
    """
    import jax

    if not (0, 10) <= jax.__version_info__ < (0, 11) or "XLA_FLAGS" in os.environ:
        return
    os.environ["XLA_FLAGS"] = (
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
    jax.devices()  # Reads the flags.
    del os.environ["XLA_FLAGS"]


def pytest_configure():
    """Compile quickly in tests alone: a probe that imports this sets its devices."""
    chosen_part()  # An error here stops the tests before there are workers.
    if keras.backend.backend() == "jax":
        compile_quickly()
    if keras.backend.backend() == "tensorflow":
        trace_quickly()


ROUNDS = "test_the_suite_passes_on"  # On other backends, each in one test.


def chosen_part():
    """Return which part of the long tests runs, and of how many."""
    given = os.environ.get("KSD_PART", "0/1")
    found = re.fullmatch(r"(\d+)/(\d+)", given)
    part, parts = map(int, found.groups()) if found else (0, 0)
    if part >= parts:
        raise pytest.UsageError(
            f"KSD_PART={given}; expected k/n with k of 0 to n - 1, such as 0/3."
        )
    return part, parts


def pytest_collection_modifyitems(config, items):
    """Leave out what another part runs; begin with the rounds of other backends.

    Started late, one core would wait for a round.
    """
    part, parts = chosen_part()
    left_out = [item for item in items if not _is_run(item, part, parts)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if _is_run(item, part, parts)]
    items.sort(key=lambda item: ROUNDS not in item.name)


def _is_run(item, part, parts):
    """Return whether a test is run by a part of the long tests: all others are."""
    if ROUNDS in item.name or item.get_closest_marker("long") is None:
        return True
    return zlib.crc32(item.nodeid.encode()) % parts == part


def miss(reason):
    """Skip a test whose means are missing; fail it where everything is required."""
    if os.environ.get("KSD_REQUIRE_ALL"):
        pytest.fail(f"{reason}, and KSD_REQUIRE_ALL is set")
    pytest.skip(reason)


def long_on(*backends):
    """Mark a test as long on some backends, where it takes many times as long."""
    marks = marks_long_on(*backends)
    return marks[0] if marks else lambda test: test


def marks_long_on(*backends):
    """Return the `pytestmark` of a module whose tests are long on some backends."""
    return [pytest.mark.long] if keras.backend.backend() in backends else []


def require_backend(name):
    """Skip unless a backend's package is installed."""
    if importlib.util.find_spec(name) is None:
        miss(f"backend {name} is not installed")


@pytest.fixture(scope="session")
def tfds_folder():
    """Return the TensorFlow Datasets folder that holds CIFAR-100."""
    default = ROOT.parent / "shared" / "tfds"
    folder = pathlib.Path(os.environ.get("CIFAR100_DIR", default)).expanduser()
    if not (folder / "cifar100").is_dir():
        miss(f"no TensorFlow Datasets folder with CIFAR-100 in CIFAR100_DIR={folder}")
    if importlib.util.find_spec("tensorflow_datasets") is None:
        miss("tensorflow_datasets is not installed")
    return folder


def run_python(*arguments, backend=None, check=True, **environment):
    """Run Python in a process of its own and return what it printed.

    A variable of the environment that is passed as `None` is not set there.
    """
    variables = {
        **os.environ,
        "KERAS_BACKEND": backend or keras.backend.backend(),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **environment,
    }
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={name: value for name, value in variables.items() if value is not None},
    )
    if check and result.returncode:
        pytest.fail(f"exit status {result.returncode}\n{result.stdout}{result.stderr}")
    return result


def small_base(activation="softmax", classes=4, size=8, regularizer=None, name="small"):
    """Return an 8×8 network with one residual block after each of two sizes."""
    inputs = keras.Input((size, size, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = layers.ReLU(name="stem_relu")(x)
    for stage, width in ((1, 8), (2, 16)):
        shortcut = x
        if stage == 2:
            shortcut = layers.Conv2D(width, 1, strides=2, name="shortcut")(x)
        x = layers.Conv2D(
            width,
            3,
            strides=stage,
            padding="same",
            kernel_regularizer=regularizer,
            name=f"conv_{stage}a",
        )(x)
        x = layers.BatchNormalization(name=f"bn_{stage}")(x)
        x = layers.ReLU(name=f"relu_{stage}")(x)
        x = layers.Conv2D(width, 3, padding="same", name=f"conv_{stage}b")(x)
        x = layers.Add(name=f"add_{stage}")([x, shortcut])
        x = layers.ReLU(name=f"out_{stage}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(classes, activation=activation, name="predictions")(x)
    return keras.Model(inputs, outputs, name=name)


@pytest.fixture
def base():
    """A fresh small base with seeded weights."""
    keras.utils.set_random_seed(1)
    return small_base()


@pytest.fixture
def batch():
    """Sixteen images and sparse labels of four classes."""
    return make_batch()


def make_batch():
    """Return the same sixteen images and labels every time."""
    random = np.random.default_rng(2)
    return random.normal(size=(16, 8, 8, 3)).astype("float32"), np.arange(16) % 4


@pytest.fixture
def mixed_precision():
    """A function that sets the global dtype policy, which is restored afterwards."""
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


def to_numpy(value):
    """Return a tensor or variable as an array."""
    return keras.ops.convert_to_numpy(value)


def value_and_gradients(function, arrays):
    """Return a scalar function's value and gradients by the backend's own autodiff."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        tensors = [tf.constant(array) for array in arrays]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        gradients = tape.gradient(value, tensors, unconnected_gradients="zero")
    elif backend == "jax":
        import jax

        arguments = tuple(range(len(arrays)))
        value, gradients = jax.value_and_grad(function, argnums=arguments)(*arrays)
    else:
        import torch

        tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
        value = function(*tensors)
        gradients = torch.autograd.grad(
            value, tensors, allow_unused=True, materialize_grads=True
        )
    return float(to_numpy(value)), [to_numpy(gradient) for gradient in gradients]


def finite_differences(function, arrays, step=1e-6):
    """Return the gradients of a NumPy function by central differences in float64."""
    arrays = [np.array(array, "float64") for array in arrays]
    gradients = []
    for array in arrays:
        gradient = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + step
            above = function(*arrays)
            array[index] = kept - step
            below = function(*arrays)
            array[index] = kept
            gradient[index] = (above - below) / (2 * step)
        gradients.append(gradient)
    return gradients
