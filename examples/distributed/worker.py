"""What every process of train_distributed.py does."""

import shared.quiet  # noqa: F401  # isort: skip  (first: it imports Keras)

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from absl import app, flags

import keras_selfdistill as ksd
from distributed import engines
from shared import augmentation, image_sets, run_folder

# Where and by what means may change between the parts of a run.
CHANGEABLE = ("data_dir", "output_dir", "devices", "timeout")


@dataclasses.dataclass(frozen=True)
class Batches:
    """The global batches of one epoch after the other, without end.

    A batch is a pure function of the seed, the epoch and its place, so every process
    has the same ones, and so does a run that goes on. Images that fill no whole batch
    wait for another epoch.
    """

    images: image_sets.Images
    batch_size: int
    seed: int
    first_epoch: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return len(self.images.train[1]) // self.batch_size

    def __iter__(self) -> Iterator[engines.Batch]:
        """Begins with the first epoch."""
        for epoch in itertools.count(self.first_epoch):
            yield from itertools.islice(self._epoch(epoch), self.steps_per_epoch)

    def _epoch(self, epoch):
        if self.images.name == "cifar100":
            data = augmentation.Augmented(
                *self.images.train, self.batch_size, seed=self.seed
            )
            return data.batches(epoch)
        inputs, labels = self.images.train
        order = np.random.default_rng([self.seed, epoch]).permutation(len(labels))
        indices = (
            order[start : start + self.batch_size]
            for start in itertools.count(step=self.batch_size)
        )
        return ((inputs[each], labels[each]) for each in indices)


class Checkpoint(keras.callbacks.Callback):
    """Keeps weights and optimizer as they were after the last finished epoch.

    The number of epochs is in the file's name, so both are there or neither is.
    """

    _SUFFIX = ".weights.h5"

    def __init__(self, folder: pathlib.Path, *, writes: bool) -> None:
        super().__init__()
        self._folder = folder
        self._writes = writes

    def restore(self, model: keras.Model) -> int:
        """Loads the last checkpoint, if any, and returns its number of epochs."""
        found = self._files()
        if not found:
            return 0
        epochs = max(found)
        model.optimizer.build(model.trainable_variables)
        model.load_weights(found[epochs])
        return epochs

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Writes a checkpoint, and then removes the one before."""
        if not self._writes:
            return
        old = self._files()
        new = self._folder / f"epoch_{epoch + 1}{self._SUFFIX}"
        with run_folder.replacing(new) as temporary:
            self.model.save_weights(temporary)
        for path in set(old.values()) - {new}:
            path.unlink()

    def _files(self):
        """Returns the checkpoints by epoch; copies with other names are none."""
        name = re.compile(rf"epoch_(\d+){re.escape(self._SUFFIX)}")
        return {
            int(match[1]): path
            for path in self._folder.glob(f"epoch_*{self._SUFFIX}")
            if (match := name.fullmatch(path.name)) and path.is_file()
        }


def build_model(settings: flags.FlagValues, steps_per_epoch: int) -> ksd.SelfDistiller:
    """Returns an untrained, compiled wrapper."""
    base = image_sets.build_base(settings.data, settings.model)
    model = ksd.SelfDistiller(base, settings.taps, settings.recipe)
    steps = settings.epochs * steps_per_epoch
    image_sets.compile_model(model, settings.learning_rate, steps, weight_decay=0.0)
    return model


def make_engine(settings: flags.FlagValues) -> engines.Engine:
    """Returns the engine that `--engine` names."""
    match settings.engine:
        case "mirrored":
            return engines.MirroredEngine(settings.devices)
        case "multi_worker":
            return engines.MultiWorkerEngine(settings.timeout)
        case "data_parallel":
            return engines.DataParallelEngine(settings.devices)
        case "model_parallel":
            return engines.ModelParallelEngine(settings.devices)
    return engines.DistributedDataParallelEngine(settings.timeout)


def train(settings: flags.FlagValues) -> None:
    """Trains to the end, from the last finished epoch on."""
    keras.utils.set_random_seed(settings.seed)
    engine = make_engine(settings)
    images = image_sets.load(
        settings.data,
        settings.data_dir,
        train_examples=settings.train_examples,
        seed=settings.seed,
    )
    batches = Batches(images, settings.batch_size, settings.seed)
    if settings.batch_size % engine.replicas or not batches.steps_per_epoch:
        raise app.UsageError(
            f"Received --batch_size={settings.batch_size}; expected a multiple of "
            f"{engine.replicas}, for equal shares, and at most the "
            f"{len(images.train[1])} training images."
        )
    folder = pathlib.Path(settings.output_dir).expanduser()
    if engine.is_chief:
        kept = run_folder.own_settings("engine", without=CHANGEABLE)
        run_folder.begin(folder, kept, kept="history.csv")
    checkpoint = Checkpoint(folder, writes=engine.is_chief)
    with engine.scope():
        model = build_model(settings, batches.steps_per_epoch)
        epochs = checkpoint.restore(model)
    callbacks: list[Any] = [checkpoint]
    if engine.is_chief:
        print(f"{engine.replicas} replicas, {epochs} epochs done", flush=True)
        history = folder / "history.csv"
        run_folder.trim_history(history, epochs)
        # Before the checkpoint: a row too many is dropped, one too few is lost.
        callbacks.insert(0, keras.callbacks.CSVLogger(history, append=True))
    engine.fit(
        model,
        engines.Shares(
            dataclasses.replace(batches, first_epoch=epochs),
            engine.process,
            engine.processes,
        ),
        steps_per_epoch=batches.steps_per_epoch,
        epochs=settings.epochs,
        initial_epoch=epochs,
        callbacks=callbacks,
        verbose=2 if engine.is_chief else 0,
    )
    if engine.is_chief:
        run_folder.save(model, folder / "model.keras")
        accuracy = image_sets.accuracy(model.final_model(), images)
        print(f"accuracy of the final exit on test images: {accuracy:.2%}")
