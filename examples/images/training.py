"""Two phases of training, each of which stops early and goes on after a kill."""

import csv
import dataclasses
import pathlib
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

import keras
from absl import logging

import keras_selfdistill as ksd
from distributed import engines
from images import batches, network
from shared import run_folder


class Phase(NamedTuple):
    """One phase: a name, its largest number of epochs, and the learning rates.

    Args:
        name: Name of the phase and of its files.
        epochs: Epochs at most.
        learning_rate: Rate of the exits and of the last layer.
        base_rate: Rate of the rest; `None` freezes it.
        statistics: Whether batch normalization of the rest trains, too.
    """

    name: str
    epochs: int
    learning_rate: float
    base_rate: float | None
    statistics: bool = False


class StopEarly(keras.callbacks.Callback):
    """Ends a training that no longer gets better, and keeps its best weights.

    Keras' `EarlyStopping` begins to count anew after a kill, and keeps the best weights
    in memory, where they are lost. This counts from the values of the epochs before,
    and keeps them in files.

    Args:
        folder: Folder of the files.
        patience: Epochs without a lower loss after which the training ends.
        past: The losses of the epochs that are over.
        writes: Whether this process writes the files.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        patience: int,
        past: Sequence[float] = (),
        *,
        writes: bool = True,
    ) -> None:
        super().__init__()
        self._folder, self._patience, self._writes = folder, patience, writes
        self.values: list[float] = []
        self.best_epoch: int | None = None
        for value in past:
            self._count(value)

    @property
    def is_over(self) -> bool:
        """Whether the best epoch is that long ago."""
        best = -1 if self.best_epoch is None else self.best_epoch
        return len(self.values) - 1 - best >= self._patience

    def file(self, epoch: int) -> pathlib.Path:
        """Returns where the weights after an epoch are kept, if it was the best."""
        return self._folder / f"best_{epoch:04d}.weights.h5"

    def _count(self, value: float) -> bool:
        best = self.best_epoch
        self.values.append(value)
        if best is not None and not value < self.values[best]:
            return False
        self.best_epoch = len(self.values) - 1
        return True

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Keeps the weights if they are better, and else perhaps ends."""
        before = self.best_epoch
        logs = logs or {}
        if self._count(logs[monitor(logs)]) and self._writes:
            with run_folder.replacing(self.file(epoch)) as temporary:
                self.model.save_weights(temporary)
            # A kill before this epoch's checkpoint goes on from the one before.
            for path in self._folder.glob("best_*.weights.h5"):
                if path not in (self.file(epoch), self.file(before or 0)):
                    path.unlink()
        self.model.stop_training = self.model.stop_training or self.is_over


@dataclasses.dataclass(frozen=True)
class Training:
    """How one network is trained.

    Args:
        folder: Folder of its files.
        build: Function that returns it, or a wrapper of it, untrained.
        engine: On what it trains.
        data: Batches to train on, from the first epoch.
        validation: Batches to judge it by.
        patience: Epochs without a better value after which a phase ends.
    """

    folder: pathlib.Path
    build: Callable[[], keras.Model]
    engine: engines.Engine
    data: batches.Batches
    validation: batches.Whole
    patience: int

    def run(self, phases: Sequence[Phase]) -> dict[str, list[dict[str, float]]]:
        """Trains all phases, but for what is done already.

        Returns:
            The logs of each phase, by epoch. The trained weights are in the file that
            `weights` names.
        """
        self.engine.wait()
        if not self.weights(phases[-1]).exists():
            # Which downloads weights, into one file of each machine.
            with self.engine.in_turns(), self.engine.scope():
                model = self.build()
            for phase, before in zip(phases, (None, *phases), strict=False):
                if not self.weights(phase).exists():
                    self._train(model, phase, before)
        return {phase.name: _rows(self._history(phase)) for phase in phases}

    def weights(self, phase: Phase) -> pathlib.Path:
        """Returns the file of the best weights of a phase that is over."""
        return weights_file(self.folder, phase)

    def _history(self, phase: Phase) -> pathlib.Path:
        return self.folder / phase.name / "history.csv"

    def _train(self, model: keras.Model, phase: Phase, before: Phase | None) -> None:
        if before is not None:
            model.load_weights(self.weights(before))
        with self.engine.scope():
            compile_for(model, phase)
        own, chief = self.folder / phase.name, self.engine.is_chief
        resume = ksd.callbacks.Resume(own / "checkpoints", write=chief)
        epoch = resume.initial_epoch
        history = self._history(phase)
        if chief:
            run_folder.trim_history(history, epoch)
        self.engine.wait()
        past = [row[monitor(row)] for row in _rows(history)]
        stop = StopEarly(own, self.patience, past, writes=chief)
        if epoch < phase.epochs and not stop.is_over:
            logging.info("Phase %s of %s, from epoch %d.", phase.name, own, epoch)
            self.engine.fit(
                model,
                dataclasses.replace(self.data, first_epoch=epoch),
                steps_per_epoch=self.data.steps_per_epoch,
                epochs=phase.epochs,
                validation_data=self.validation,
                # The last one saves what the others did.
                callbacks=[stop, *_logging(history, writes=chief), resume],
                verbose=2 if chief else 0,
            )
        self.engine.wait()
        model.load_weights(stop.file(stop.best_epoch or 0))
        if chief:
            with run_folder.replacing(self.weights(phase)) as temporary:
                model.save_weights(temporary)
        self.engine.wait()


def _logging(history: pathlib.Path, *, writes: bool) -> list[keras.callbacks.Callback]:
    return [keras.callbacks.CSVLogger(history, append=True)] if writes else []


def weights_file(folder: pathlib.Path, phase: Phase) -> pathlib.Path:
    """Returns the file of the best weights of a phase that is over."""
    return folder / f"{phase.name}.weights.h5"


def summary(
    histories: Mapping[str, Mapping[str, list[dict[str, float]]]],
) -> dict[str, list[dict[str, Any]]]:
    """Returns, of each network and phase, the number of epochs and the best one."""
    told: dict[str, list[dict[str, Any]]] = {}
    for name, phases in histories.items():
        told[name] = []
        for phase, rows in phases.items():
            losses = [row[monitor(row)] for row in rows]
            best = 1 + losses.index(min(losses))
            told[name].append({"name": phase, "epochs": len(rows), "best": best})
    return told


def monitor(logs: Container[str]) -> str:
    """Returns the log that tells whether a network gets better.

    Of a wrapper it is the label losses alone: soft targets sharpen with the teacher.
    """
    return "val_label_loss" if "val_label_loss" in logs else "val_loss"


def compile_for(model: keras.Model, phase: Phase) -> None:
    """Freezes what a phase does not train, and compiles with its rates."""
    base = model.base if isinstance(model, ksd.SelfDistiller) else model
    frozen = phase.base_rate is None
    network.set_backbone(base, trainable=not frozen, statistics=phase.statistics)
    if frozen:
        optimizer = keras.optimizers.Adam(phase.learning_rate)
    else:
        optimizer = network.optimizer(phase.learning_rate, phase.base_rate)
    model.compile(
        optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"]
    )


def _rows(history: pathlib.Path) -> list[dict[str, float]]:
    with history.open(newline="") as file:
        return [
            {name: float(value) for name, value in row.items()}
            for row in csv.DictReader(file)
        ]
