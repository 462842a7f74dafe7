"""What the flags of train_images.py say, and which of them are refused."""

import importlib.util
import pathlib
from typing import Any

import keras
from absl import app, flags

from distributed import engines
from images import batches, shards, split, training
from shared import run_folder

FLAGS = flags.FLAGS
# Where and on what it is trained may change between the parts of a run.
CHANGEABLE = (
    *("data_dir", "output_dir"),
    *("distribute", "cpu_devices", "processes", "timeout"),
)
# The backend of each way to take several devices.
BACKENDS = {"mirrored": "tensorflow", "data_parallel": "jax", "ddp": "torch"}


def data_dir() -> pathlib.Path:
    """Returns the folder that `--data_dir` names."""
    return pathlib.Path(FLAGS.data_dir).expanduser()


def reads_shards() -> bool:
    """Returns whether that folder holds shards."""
    return shards.is_folder(data_dir())


def image_size() -> batches.Size:
    """Returns the height and width that `--image_size` gives."""
    given = [int(each) if each.isdecimal() else 0 for each in FLAGS.image_size]
    if len(given) not in (1, 2) or min(given) < 1:
        raise app.UsageError(
            f"Received --image_size={','.join(FLAGS.image_size)}; expected a number of "
            "pixels, or a height and a width, such as 240,320."
        )
    return given[0], given[-1]


def phases() -> list[training.Phase]:
    """Returns the phases that the flags ask for."""
    heads = training.Phase("heads", FLAGS.head_epochs, FLAGS.learning_rate, None)
    everything = training.Phase(
        "all",
        FLAGS.epochs,
        FLAGS.learning_rate,
        FLAGS.base_learning_rate,
        statistics=FLAGS.weights == "none",
    )
    return [heads, everything] if FLAGS.head_epochs else [everything]


def make_engine() -> engines.Engine:
    """Returns the engine that `--distribute` names."""
    match FLAGS.distribute:
        case "mirrored":
            return engines.MirroredEngine(FLAGS.cpu_devices)
        case "data_parallel":
            return engines.DataParallelEngine(FLAGS.cpu_devices)
        case "ddp":
            return engines.DistributedDataParallelEngine(FLAGS.timeout)
    return engines.Engine()


def settings() -> dict[str, Any]:
    """Returns the flags that decide the run's result."""
    # Shards are split already.
    unused = ["held_out"] if reads_shards() else []
    return run_folder.own_settings("held_out", without=[*CHANGEABLE, *unused])


def check_flags() -> None:
    """Refuses what cannot be trained, before any image is read."""
    image_size()
    for name in ("held_out", "guarantee"):
        if not 0 < FLAGS[name].value < 1:
            raise app.UsageError(
                f"Received --{name}={FLAGS[name].value}; expected a number between 0 "
                "and 1."
            )
    needed = BACKENDS.get(FLAGS.distribute)
    if needed not in (None, keras.backend.backend()):
        raise app.UsageError(
            f"Received --distribute={FLAGS.distribute} with KERAS_BACKEND="
            f"{keras.backend.backend()}; expected {needed}."
        )
    if reads_shards():
        check_shards()
    if importlib.util.find_spec("matplotlib") is None:
        raise app.UsageError(
            "matplotlib is not installed, which draws the pictures. Expected: "
            "python -m pip install matplotlib"
        )


def check_shards() -> None:
    """Refuses flags that shards have no use for."""
    shards.check_installed()
    shards.check_index(data_dir())
    if FLAGS.dataset is not None:
        raise app.UsageError(
            f"Received --dataset={FLAGS.dataset} and shards in --data_dir; expected "
            "one of both."
        )
    if FLAGS["held_out"].present:
        raise app.UsageError(
            f"Received --held_out={FLAGS.held_out} and shards in --data_dir, which are "
            "split already; expected it in the call of write_shards.py."
        )


def check_batches(images: split.Split, engine: engines.Engine) -> None:
    """Refuses batches that cannot be filled or shared."""
    count = len(images.train.labels)
    if count < FLAGS.batch_size:
        raise app.UsageError(
            f"Received --batch_size={FLAGS.batch_size}; expected at most the {count} "
            "training images."
        )
    if FLAGS.batch_size % engine.replicas:
        raise app.UsageError(
            f"Received --batch_size={FLAGS.batch_size}; expected a multiple of the "
            f"{engine.replicas} devices."
        )
    if len(images.validation.labels) < engine.replicas:
        raise app.UsageError(
            f"Received {len(images.validation.labels)} images for validation; expected "
            f"at least one for each of the {engine.replicas} devices. Raise --held_out."
        )
