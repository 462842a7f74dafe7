"""What results depend on besides code and flags: versions and the machine."""

import importlib
import os
import pathlib
import platform
import re
from typing import Any

import keras


def versions() -> dict[str, str]:
    """Returns the versions of Python, Keras and the backend."""
    backend = keras.backend.backend()
    return {
        "python": platform.python_version(),
        "keras": keras.version(),
        backend: importlib.import_module(backend).__version__,
    }


def machine() -> str:
    """Returns the accelerator in use, or the processor and the cores one may use."""
    return next(iter(accelerators()), f"{cpu_model()}, {cpu_cores()} cores")


def origin() -> dict[str, Any]:
    """Returns all of that, as a file of results holds it."""
    return {
        "versions": versions(),
        "machine": {
            "cpu": cpu_model(),
            "cores": cpu_cores(),
            "accelerators": accelerators(),
        },
    }


def accelerators() -> list[str]:
    """Returns the names of the accelerators that the backend sees."""
    # keras.distribution.list_devices knows neither names nor PyTorch.
    match keras.backend.backend():
        case "tensorflow":
            import tensorflow as tf

            details = tf.config.experimental.get_device_details
            gpus = tf.config.list_physical_devices("GPU")
            return [details(gpu).get("device_name", gpu.name) for gpu in gpus]
        case "jax":
            import jax

            return [d.device_kind for d in jax.devices() if d.platform != "cpu"]
        case "torch":
            import torch

            count = torch.cuda.device_count()
            return [torch.cuda.get_device_name(i) for i in range(count)]
    return []


def cpu_model() -> str:
    """Returns the processor's name, as far as the system tells it."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    found = re.search(r"model name\s*: (.*)", text)
    return found[1] if found else platform.processor() or platform.machine()


def cpu_cores() -> int | None:
    """Returns how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS or Windows
    return len(affinity(0)) if affinity else os.cpu_count()
