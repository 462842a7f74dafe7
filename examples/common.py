"""What `compress.py` and `rounds.py` share: images by name, training, whole files."""

import importlib
import json
import os
import pathlib
import platform
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from absl import app, flags

DATA = ("digits", "cifar100")


class Images(NamedTuple):
    """Training and test images of one data set.

    `train` holds them as `fit` of this module wants them: float32 digits, uint8
    CIFAR-100, which is augmented. `test` holds float32 images as models take them.
    """

    name: str
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def load_images(
    name: str, data_dir: str, *, train_examples: int | None = None, seed: int = 0
) -> Images:
    """Returns the images of a data set.

    Args:
        name: `"digits"`, scikit-learn's 1,797 handwritten digits, halved at random into
            training and test; or `"cifar100"`.
        data_dir: Folder with CIFAR-100; not read for digits.
        train_examples: Size of the training set; `None` takes all. The same number of
            images of every class of CIFAR-100; digits in the order of the split, which
            is random.
        seed: Chooses the split of digits.

    Raises:
        UsageError: There are not that many training images.
    """
    if name == "cifar100":
        import cifar100

        data = cifar100.load(data_dir, train_examples=train_examples)
        test = cifar100.normalize(data.test.images), data.test.labels
        return Images(name, tuple(data.train), test)
    import quickstart

    (images, labels), test = quickstart.load_images(seed)
    if train_examples is not None and not 1 <= train_examples <= len(images):
        raise app.UsageError(
            f"Received --train_examples={train_examples}; expected 1 to {len(images)} "
            "for --data=digits."
        )
    return Images(name, (images[:train_examples], labels[:train_examples]), test)


def fit(
    model: keras.Model, images: Images, *, epochs: int, batch_size: int, seed: int
) -> None:
    """Trains a compiled model on the training images, shuffled by `seed`."""
    keras.utils.set_random_seed(seed)
    if images.name == "digits":
        model.fit(*images.train, batch_size=batch_size, epochs=epochs)
        return
    import cifar100

    batches = cifar100.Augmented(*images.train, batch_size, seed=seed)
    model.fit(
        batches, epochs=epochs, shuffle=False, callbacks=[batches.epoch_callback()]
    )


def accuracy(model: keras.Model, images: Images, batch_size: int = 256) -> float:
    """Returns the share of test images of which a model names the class."""
    inputs, labels = images.test
    outputs = model.predict(inputs, batch_size=batch_size)
    return float(np.mean(np.argmax(outputs, axis=-1) == labels))


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file, whole or not at all."""
    temporary = path.with_name(f"unfinished_{path.name}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes an indented JSON file, whole or not at all."""
    write(path, json.dumps(content, indent=2).encode() + b"\n")


def save(model: keras.Model, path: pathlib.Path) -> None:
    """Saves a model, whole or not at all."""
    # Keras chooses the format by the suffix, which has to stay the last.
    temporary = path.with_name(f"unfinished_{path.name}")
    model.save(temporary)
    os.replace(temporary, path)


def own_flags(flag: str, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the flags of the script that defined `flag`, as parsed."""
    module = flags.FLAGS.find_module_defining_flag(flag)
    found = {each.name: each.value for each in flags.FLAGS.get_flags_for_module(module)}
    return {name: value for name, value in found.items() if name not in without}


def versions() -> dict[str, str]:
    """Returns the versions that a result depends on."""
    backend = keras.backend.backend()
    return {
        "python": platform.python_version(),
        "keras": keras.version(),
        backend: importlib.import_module(backend).__version__,
    }


def machine() -> str:
    """Returns the accelerator in use, or the processor and the cores one may use."""
    accelerator = _accelerator()
    if accelerator:
        return accelerator
    name = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        models = [line.split(":", 1)[1] for line in lines if line.startswith("model n")]
        name = models[0].strip() if models else name
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS or Windows
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return f"{name}, {cores} cores"


def _accelerator() -> str | None:
    """Returns the name of the first accelerator that the backend computes on."""
    # keras.distribution.list_devices knows neither names nor PyTorch.
    match keras.backend.backend():
        case "tensorflow":
            import tensorflow as tf

            for device in tf.config.list_physical_devices("GPU"):
                details = tf.config.experimental.get_device_details(device)
                return details.get("device_name", device.name)
        case "jax":
            import jax

            if jax.default_backend() != "cpu":
                return jax.devices()[0].device_kind
        case "torch":
            import torch

            if torch.cuda.is_available():
                return torch.cuda.get_device_name()
    return None
