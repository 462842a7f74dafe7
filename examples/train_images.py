r"""Trains a network with early exits on your own images, and makes what is deployed.

    python examples/train_images.py --data_dir=FOLDER --model=EfficientNetV2B0 \
        --weights=imagenet

FOLDER has a sub-folder of images for each class, or holds the shards that
`write_shards.py` made of one, which Grain reads. Instead of `--data_dir` alone,
`--dataset=NAME` takes the training images of a data set of TensorFlow Datasets, which
`--data_dir` then holds.

All images are read once before anything is trained; files that are broken and classes
that are too small are named. 30% of each class are held out: for early stopping, for
the thresholds of early exit, and for the numbers that are told. `split.json` keeps who
is where, so a later part of the run has the same.

A first phase trains the heads and the last layer on a frozen network, a second one all
of it, the network itself more slowly; each stops when it gets no better. The same
command again goes on where it was killed, bit for bit. The same network without exits
is trained beside it, to compare.

Writes to `--output_dir`: `split.json`, `results.json`, the files of both trainings, and
`artifact/`: the trained network, the chosen exit, early exit with a guarantee for
LiteRT and for this library, pictures, and a `README.md` with all numbers. Networks take
pixels from 0 to 255; their preprocessing is in them.

On PyTorch, `--distribute=ddp` starts `--processes` processes on this machine. On
several machines, start it on each by `torchrun`, with a shared `--output_dir`:

    torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d \
        --rdzv-endpoint=host1:29400 examples/train_images.py --distribute=ddp ...
"""

import shared.quiet  # noqa: F401  # isort: skip  (first: it imports Keras)

import functools
import hashlib
import os
import pathlib
import sys
from typing import Any

import keras
from absl import app, flags, logging

import keras_selfdistill as ksd
from distributed import engines, local_workers
from images import (
    batches,
    command_line,
    network,
    results,
    run_readme,
    shards,
    split,
    tfds_images,
    training,
)
from shared import environment, run_folder, script

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_string(
        "data_dir",
        None,
        "Folder with a sub-folder of images for each class, or of shards; with "
        "--dataset, that of TensorFlow Datasets.",
        required=True,
    )
    flags.DEFINE_string("dataset", None, "Name of a data set of TensorFlow Datasets.")
    flags.DEFINE_string("output_dir", "runs/images", "Folder of this run's files.")
    flags.DEFINE_string(
        "model",
        "EfficientNetV2B0",
        "Function of keras.applications, or a name in keras_selfdistill.networks.",
    )
    flags.DEFINE_string(
        "weights", "imagenet", "imagenet, which are downloaded, a file, or none."
    )
    flags.DEFINE_float("width_multiplier", 1.0, "Factor on the layers' widths.", 0.0)
    flags.DEFINE_list("image_size", ["224"], "Height and width, or one for both.")
    flags.DEFINE_enum(
        "recipe", "byot", list(ksd.recipes.RECIPES), "How the exits learn."
    )
    flags.DEFINE_integer("taps", 3, "Exits before the final one.", 1)
    flags.DEFINE_float("held_out", 0.3, "Share of each class for the three tests.")
    flags.DEFINE_integer("head_epochs", 5, "Epochs of the first phase, at most.", 0)
    flags.DEFINE_integer("epochs", 20, "Epochs of the second phase, at most.", 1)
    flags.DEFINE_integer("patience", 3, "Epochs without gain that end a phase.", 1)
    flags.DEFINE_integer("batch_size", 32, "Images a step, of all devices.", 1)
    flags.DEFINE_float("learning_rate", 1e-3, "Rate of exits and last layer.", 0.0)
    flags.DEFINE_float("base_learning_rate", 1e-5, "Rate of the network itself.", 0.0)
    flags.DEFINE_enum(
        "class_weight", "none", ["none", "balanced"], "balanced: classes count alike."
    )
    flags.DEFINE_boolean("mirror", True, "Whether left and right may be exchanged.")
    flags.DEFINE_enum(
        "mixed_precision",
        "none",
        ["none", "mixed_float16", "mixed_bfloat16"],
        "Keras dtype policy; none computes in float32.",
    )
    flags.DEFINE_float(
        "max_accuracy_drop", 0.02, "What early exit may lose, 0.01 a point.", 0.0, 1.0
    )
    flags.DEFINE_float("guarantee", 0.95, "Confidence that it loses no more.")
    flags.DEFINE_enum(
        "distribute",
        "none",
        ["none", *command_line.BACKENDS],
        "All devices of this machine: mirrored on TensorFlow, data_parallel on JAX; "
        "ddp on PyTorch takes several processes, also of several machines.",
    )
    flags.DEFINE_integer(
        "cpu_devices", 2, "Devices to make where there is no GPU, but with ddp.", 1
    )
    flags.DEFINE_integer("processes", 2, "Processes that ddp starts.", 1)
    flags.DEFINE_integer(
        "timeout",
        600,
        "Seconds that a process of ddp waits for another one. The first one checks the "
        "images, downloads weights and writes files meanwhile.",
        1,
    )
    flags.DEFINE_integer("seed", 0, "Seed of split, weights, order and crops.", 0)


def begin(output_dir: pathlib.Path) -> None:
    """Makes the run's folder, or refuses one of other flags or data."""
    data = {}
    if command_line.reads_shards():
        content = (command_line.data_dir() / shards.INDEX).read_bytes()
        data = {"shards": hashlib.sha256(content).hexdigest()}
    run_folder.begin(output_dir, {**command_line.settings(), **data}, kept="distilled")
    if not (output_dir / "distilled").exists():
        # Nothing was trained by an earlier split, perhaps of other flags.
        (output_dir / "split.json").unlink(missing_ok=True)


def load_images(output_dir: pathlib.Path) -> split.Split:
    """Returns the split of a run, of images that can all be read."""
    if command_line.reads_shards():
        return shards.load(command_line.data_dir())
    root = command_line.data_dir()
    if FLAGS.dataset is not None:
        tfds_images.write_folder(FLAGS.dataset, root, output_dir / "dataset")
        root = output_dir / "dataset"
    return split.load_or_make(
        root, output_dir / "split.json", share=FLAGS.held_out, seed=FLAGS.seed
    )


def begin_anew(policy: str) -> None:
    """Lets weights and names of layers not depend on what was built before.

    Outside of an engine's scope, of which Keras would not know any more.
    """
    keras.utils.clear_session()
    keras.utils.set_random_seed(FLAGS.seed)
    keras.config.set_dtype_policy(policy)


def build(classes: int, *, exits: bool) -> keras.Model:
    """Returns the untrained network, with exits or without."""
    base = network.build(
        FLAGS.model,
        size=command_line.image_size(),
        classes=classes,
        weights=None if FLAGS.weights == "none" else FLAGS.weights,
        width_multiplier=FLAGS.width_multiplier,
    )
    return ksd.SelfDistiller(base, FLAGS.taps, FLAGS.recipe) if exits else base


def train(
    output_dir: pathlib.Path, images: split.Split, engine: engines.Engine
) -> dict[str, Any]:
    """Trains the wrapper and the plain network; returns their logs by phase."""
    size, classes = command_line.image_size(), len(images.classes)
    own = {"process": engine.process, "processes": engine.processes}
    weights = None
    if FLAGS.class_weight == "balanced":
        weights = batches.balanced_weights(images.train.labels, classes)
    make = shards.Batches if command_line.reads_shards() else batches.Batches
    data = make(
        images.train, size, FLAGS.batch_size, FLAGS.seed, FLAGS.mirror, weights, **own
    )
    validation = batches.Whole(
        images.validation,
        size,
        FLAGS.batch_size // engine.processes,
        multiple=engine.replicas,
        **own,
    )
    histories = {}
    policy = FLAGS.mixed_precision
    for name in ("distilled", "plain"):
        begin_anew("float32" if policy == "none" else policy)
        histories[name] = training.Training(
            output_dir / name,
            functools.partial(
                build,
                classes,
                exits=name == "distilled",
            ),
            engine,
            data,
            validation,
            FLAGS.patience,
        ).run(command_line.phases())
    return histories


def load(output_dir: pathlib.Path, classes: int, name: str) -> keras.Model:
    """Returns a trained network in float32 on one device."""
    begin_anew("float32")
    model = build(classes, exits=name == "distilled")
    last = command_line.phases()[-1]
    model.load_weights(training.weights_file(output_dir / name, last))
    return model


def main(argv: list[str]) -> None:
    """Trains, or goes on, then measures and writes what is deployed."""
    if len(argv) > 1:
        raise app.UsageError(f"Received {argv[1:]}; expected flags only: --name=value.")
    command_line.check_flags()
    if FLAGS.distribute == "ddp" and "RANK" not in os.environ:
        if command_line.reads_shards():
            # Broken ones are told before there are processes.
            shards.load(command_line.data_dir())
        environments = local_workers.torch_cluster(FLAGS.processes)
        sys.exit(
            1 if local_workers.run([sys.executable, *sys.argv], environments) else 0
        )
    # Names of any script are told where the terminal has not their letters, too.
    sys.stdout.reconfigure(errors="backslashreplace")
    output_dir = pathlib.Path(FLAGS.output_dir).expanduser()
    engine = command_line.make_engine()
    if engine.is_chief:
        begin(output_dir)
        images = load_images(output_dir)
    engine.wait()
    if not engine.is_chief:
        images = load_images(output_dir)
    command_line.check_batches(images, engine)
    histories = train(output_dir, images, engine)
    if engine.is_chief:
        measure(output_dir, images, histories)


def measure(
    output_dir: pathlib.Path, images: split.Split, histories: dict[str, Any]
) -> None:
    """Measures what was trained, and writes what is deployed."""
    plain, model = (
        load(output_dir, len(images.classes), name) for name in ("plain", "distilled")
    )
    of_part = functools.partial(
        batches.Whole, size=command_line.image_size(), batch_size=FLAGS.batch_size
    )
    goal = results.Goal(FLAGS.max_accuracy_drop, FLAGS.guarantee)
    measured = results.measure(model, plain, images, of_part, goal)
    artifact = output_dir / "artifact"
    told = {
        **measured.numbers,
        "no_litert": results.write_models(measured, images.classes, artifact),
        "phases": training.summary(histories),
        "image_size": command_line.image_size(),
        "flags": command_line.settings(),
        "versions": environment.versions(),
        "machine": environment.machine(),
    }
    results.draw(measured, histories["distilled"], images.test.labels, artifact)
    told["bytes"] = results.sizes(artifact)
    run_folder.write_json(output_dir / "results.json", told)
    run_folder.write(artifact / "README.md", run_readme.render(told).encode())
    print(f"{measured.report}\n\nWrote {artifact / 'README.md'}")


if __name__ == "__main__":
    define_flags()
    FLAGS.set_default("verbosity", logging.INFO)
    script.run(main)
