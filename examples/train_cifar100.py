r"""Trains a network on CIFAR-100, alone or with self-distilled exits.

    KERAS_BACKEND=jax python examples/train_cifar100.py --output_dir=runs/byot \
        --model=resnet18 --recipe=byot --taps=paper --epochs=200 --schedule=step

Writes to `--output_dir`: `history.csv`, one row per epoch; `checkpoint.keras`, the
model and optimizer after the last finished epoch; `flags.json`; and `results.json`, the
test accuracy of every exit. The same command again goes on after the last finished
epoch, with the batches and learning rates of a run that never stopped; after the last
epoch it only evaluates. Dropout masks alone differ, because Keras does not save their
seeds; no network of `keras_selfdistill.networks` has any.
"""

import shared.quiet  # noqa: F401  # isort: skip  (first: it imports Keras)

import csv
import inspect
import pathlib
import time
import zipfile
from typing import Any

import keras
import numpy as np
from absl import app, flags, logging

import keras_selfdistill as ksd
from shared import augmentation, cifar100, environment, run_folder, script

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "data_dir",
    "~/tensorflow_datasets",
    "Folder with CIFAR-100: of TensorFlow Datasets, which downloads into it what is "
    "missing, or with cifar100-0.npz to cifar100-2.npz.",
)
flags.DEFINE_string(
    "output_dir", None, "Folder of this run's files; made if missing.", required=True
)
flags.DEFINE_string(
    "model",
    "resnet18",
    "Base: a name in keras_selfdistill.networks.NETWORKS, or of a function in "
    "keras.applications, such as MobileNetV2.",
)
flags.DEFINE_float(
    "width_multiplier", 1.0, "Factor on the base's layer widths.", lower_bound=0.0
)
flags.DEFINE_enum(
    "recipe",
    "byot",
    ["plain", *ksd.recipes.RECIPES],
    "How the exits learn; plain trains the bare base, without exits.",
)
flags.DEFINE_string(
    "taps",
    "3",
    "Number of exits besides the base's own; the names of the tapped layers, separated "
    "by commas; or paper: the ends of all stages but the last, where the papers "
    "have the exits of ResNets, with the recipe's heads at any cost.",
)
flags.DEFINE_integer("epochs", 200, "Passes over the training images.", lower_bound=1)
flags.DEFINE_integer("batch_size", 128, "Images per step.", lower_bound=1)
flags.DEFINE_float("learning_rate", 0.1, "Highest learning rate.", lower_bound=0.0)
flags.DEFINE_enum(
    "schedule",
    "step",
    ["cosine", "step"],
    "Learning rate: cosine falls to 0 at the end; step divides it by 10 after 37.5 %, "
    "65 % and 90 % of the steps, the epochs 75, 130 and 180 of 200 in BYOT.",
)
flags.DEFINE_integer(
    "warmup_steps",
    0,
    "Steps in which the learning rate rises from 0, with --schedule=cosine.",
    lower_bound=0,
)
flags.DEFINE_float(
    "momentum", 0.9, "Nesterov momentum.", lower_bound=0.0, upper_bound=0.999
)
flags.DEFINE_float(
    "weight_decay",
    5e-4,
    "L2 decay as the papers and PyTorch count it, through the momentum buffer.",
    lower_bound=0.0,
)
flags.DEFINE_enum(
    "mixed_precision",
    "none",
    ["none", "mixed_float16", "mixed_bfloat16"],
    "Keras dtype policy; none computes in float32.",
)
flags.DEFINE_integer("seed", 0, "Seed of weights, batches and hold-out.", lower_bound=0)
flags.DEFINE_integer(
    "train_examples",
    None,
    "Training images, a multiple of 100: the first ones of every class. Default: all.",
)
flags.DEFINE_integer(
    "validation_examples",
    0,
    "Held-out training images evaluated after every epoch, a multiple of 100; 0: none.",
)
flags.DEFINE_list(
    "augmentation",
    None,
    "Of the training images, besides standard, crop and mirror: one of autoaugment and "
    "trivial, cutout, one of mixup and cutmix; separated by commas.",
)
flags.DEFINE_enum(
    "augment_on",
    None,
    list(augmentation.AUGMENTED),
    "Where images are cropped and mirrored, with the same result; by default on an "
    "accelerator if there is one and the backend is not TensorFlow, which takes "
    "batches from the host. Other augmentations are done on the host.",
)


@flags.multi_flags_validator(
    ["schedule", "warmup_steps"], "--warmup_steps needs --schedule=cosine."
)
def _warmup_has_a_schedule(values: dict[str, Any]) -> bool:
    return values["schedule"] == "cosine" or not values["warmup_steps"]


# Where things lie and are done may change between the parts of one run; nothing else.
PLACES = ("augment_on", "data_dir", "output_dir")


class Checkpoint(keras.callbacks.Callback):
    """Saves model and optimizer after every epoch, atomically."""

    _EPOCHS = "assets/finished_epochs.txt"  # Where a .keras file may hold more.

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self._path = path

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Replaces the checkpoint by one of the epoch that just ended."""
        with run_folder.replacing(self._path) as temporary:
            self.model.save(temporary)
            # optimizer.iterations // steps_per_epoch would not do: under mixed_float16
            # it leaves out the steps that loss scaling skipped.
            with zipfile.ZipFile(temporary, "a") as archive:
                archive.writestr(self._EPOCHS, str(epoch + 1))

    def restore(self) -> tuple[keras.Model, int]:
        """Returns the saved model, compiled, and the number of epochs behind it."""
        with zipfile.ZipFile(self._path) as archive:
            finished_epochs = int(archive.read(self._EPOCHS))
        return keras.saving.load_model(self._path), finished_epochs


class EpochTimer(keras.callbacks.Callback):
    """Adds `seconds`, the epoch's wall time with validation, to the logs."""

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Reads the clock."""
        if logs is not None:
            logs["seconds"] = time.perf_counter() - self._start


def learning_rate(
    steps_per_epoch: int,
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns the schedule that the flags ask for."""
    steps, peak = FLAGS.epochs * steps_per_epoch, FLAGS.learning_rate
    if FLAGS.schedule == "cosine":
        if FLAGS.warmup_steps >= steps:
            raise app.UsageError(
                f"Received --warmup_steps={FLAGS.warmup_steps}; expected less than the "
                f"{steps} steps of the whole training. Lower it or raise --epochs."
            )
        warmup = FLAGS.warmup_steps
        return keras.optimizers.schedules.CosineDecay(
            0.0 if warmup else peak,
            decay_steps=steps - warmup,
            warmup_target=peak if warmup else None,
            warmup_steps=warmup,
        )
    # Keras keeps a value up to and including its boundary, and counts steps from 0.
    boundaries = [round(share * steps) - 1 for share in (0.375, 0.65, 0.9)]
    values = [peak / 10**drop for drop in range(4)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)


def build_optimizer(steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """Returns SGD with Nesterov momentum and L2 decay.

    TESKD's optimizer; BYOT's and its journal version's codes have plain momentum, as
    benchmarks/accuracy.py has with `--schedule=paper`.
    """
    return keras.optimizers.SGD(
        learning_rate(steps_per_epoch),
        momentum=FLAGS.momentum,
        nesterov=True,
        # PyTorch adds the decay to the gradient, so the momentum buffer repeats it and
        # in the steady state it acts 1 / (1 - momentum) times; Keras shrinks the weight
        # once, past the buffer. Like the papers' code it also decays biases and
        # batch normalization.
        weight_decay=FLAGS.weight_decay / (1 - FLAGS.momentum),
    )


def build_base() -> keras.Model:
    """Returns the untrained network that `--model` names."""
    if FLAGS.model in ksd.networks.NETWORKS:
        builder = ksd.networks.NETWORKS[FLAGS.model]
        return builder(width_multiplier=FLAGS.width_multiplier)
    builder = getattr(keras.applications, FLAGS.model, None)
    if not callable(builder):
        raise app.UsageError(
            f"Received --model={FLAGS.model}; expected one of "
            f"{', '.join(ksd.networks.NETWORKS)} or a function of keras.applications. "
            "Mind upper and lower case."
        )
    parameters = inspect.signature(builder).parameters
    options: dict[str, Any] = {}
    if "alpha" in parameters:
        options["alpha"] = FLAGS.width_multiplier
    elif FLAGS.width_multiplier != 1:
        raise app.UsageError(
            f"Received --width_multiplier={FLAGS.width_multiplier}, but {FLAGS.model} "
            "has a fixed width; expected 1. Choose another model or leave it out."
        )
    if "include_preprocessing" in parameters:
        options["include_preprocessing"] = False  # the images arrive normalized
    return builder(
        weights=None, input_shape=(32, 32, 3), classes=cifar100.CLASSES, **options
    )


def taps(base: keras.Model) -> int | list[str]:
    """Returns where `--taps` puts exits into a network."""
    if FLAGS.taps.isdecimal():
        return int(FLAGS.taps)
    if FLAGS.taps != "paper":
        return [name.strip() for name in FLAGS.taps.split(",")]
    if FLAGS.model not in ksd.networks.NETWORKS:
        raise app.UsageError(
            f"Received --taps=paper --model={FLAGS.model}; expected one of "
            f"{', '.join(ksd.networks.NETWORKS)}. Pass a number of taps, or names."
        )
    return ksd.networks.stage_ends(base)


def build_model(steps_per_epoch: int) -> keras.Model:
    """Returns the compiled, untrained model that the flags describe."""
    model = build_base()
    if FLAGS.recipe != "plain":
        in_paper = FLAGS.taps == "paper"
        head = ksd.recipes.get(FLAGS.recipe).head if in_paper else None
        model = ksd.SelfDistiller(model, taps(model), FLAGS.recipe, head=head)
    model.compile(
        build_optimizer(steps_per_epoch),
        loss="categorical_crossentropy"
        if mixes()
        else "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def settings() -> dict[str, Any]:
    """Returns what decides the result of a run: the flags and the backend."""
    return run_folder.own_settings("recipe", without=PLACES)


def augment_on() -> str:
    """Returns where images are augmented, on the `"device"` or the `"host"`."""
    wanted = FLAGS.augment_on or augmentation.default_place()
    return augmentation.place_of(augmentation.chosen(FLAGS.augmentation), wanted)


def mixes() -> bool:
    """Returns whether training images are mixed, and their labels are shares."""
    return augmentation.mixes_labels(augmentation.chosen(FLAGS.augmentation))


def ready(images: cifar100.Split) -> tuple[np.ndarray, np.ndarray]:
    """Returns images as networks take them, and their labels as the loss does."""
    labels = augmentation.one_hot(images.labels) if mixes() else images.labels
    return cifar100.normalize(images.images), labels


def train(data: cifar100.Cifar100, output_dir: pathlib.Path) -> keras.Model:
    """Trains from the last finished epoch to the last; returns the trained model."""
    augmented = augmentation.build(
        augmentation.chosen(FLAGS.augmentation),
        *data.train,
        FLAGS.batch_size,
        seed=FLAGS.seed,
        place=augment_on(),
    )
    checkpoint = Checkpoint(output_dir / "checkpoint.keras")
    if (output_dir / "checkpoint.keras").exists():
        model, finished_epochs = checkpoint.restore()
        logging.info("Restored epoch %d of %d.", finished_epochs, FLAGS.epochs)
    else:
        model, finished_epochs = build_model(augmented.num_batches), 0
    history = output_dir / "history.csv"
    run_folder.trim_history(history, finished_epochs)
    validation = ready(data.validation) if FLAGS.validation_examples else None
    if finished_epochs < FLAGS.epochs:
        model.fit(
            augmented.batches(finished_epochs),
            steps_per_epoch=augmented.num_batches,
            shuffle=False,
            epochs=FLAGS.epochs,
            initial_epoch=finished_epochs,
            validation_data=validation,
            validation_batch_size=FLAGS.batch_size,
            callbacks=[
                EpochTimer(),
                # Before the checkpoint: a row too many can be dropped, one too few not
                # be had again.
                keras.callbacks.CSVLogger(history, append=True),
                checkpoint,
            ],
        )
    return model


def evaluate(model: keras.Model, test: cifar100.Split) -> dict[str, float]:
    """Returns the test accuracy of every exit, shallow to deep, and the ensemble's."""
    logs = model.evaluate(*ready(test), batch_size=FLAGS.batch_size, return_dict=True)
    if not isinstance(model, ksd.SelfDistiller):
        return {"final": logs["accuracy"]}
    logs["final_accuracy"] = logs["accuracy"]
    return {name: logs[f"{name}_accuracy"] for name in [*model.exit_names, "ensemble"]}


def summary(accuracies: dict[str, float], history: pathlib.Path) -> dict[str, Any]:
    """Returns the content of `results.json`."""
    with history.open(newline="") as file:
        seconds = sum(float(row["seconds"]) for row in csv.DictReader(file))
    return {
        "test_accuracy": accuracies,
        "seconds": seconds,
        "flags": settings(),
        "augmented_on": augment_on(),
        "seed": FLAGS.seed,
        "versions": environment.versions(),
    }


def main(argv: list[str]) -> None:
    """Trains, or goes on training, then evaluates on the test images."""
    if len(argv) > 1:
        raise app.UsageError(f"Received {argv[1:]}; expected flags only: --name=value.")
    augmentation.chosen(FLAGS.augmentation)  # Refuses names before any work.
    output_dir = run_folder.begin(FLAGS.output_dir, settings(), kept="checkpoint.keras")

    keras.utils.set_random_seed(FLAGS.seed)
    if FLAGS.mixed_precision != "none":
        keras.config.set_dtype_policy(FLAGS.mixed_precision)
    data = cifar100.load(
        FLAGS.data_dir,
        train_examples=FLAGS.train_examples,
        validation_examples=FLAGS.validation_examples,
        seed=FLAGS.seed,
    )
    model = train(data, output_dir)
    accuracies = evaluate(model, data.test)
    run_folder.write_json(
        output_dir / "results.json", summary(accuracies, output_dir / "history.csv")
    )
    width = max(map(len, accuracies))
    print(f"\n{'exit':{width}}  test accuracy")
    for name, accuracy in accuracies.items():
        print(f"{name:{width}}  {accuracy:13.4f}")


if __name__ == "__main__":
    FLAGS.set_default("verbosity", logging.INFO)
    script.run(main)
