"""Training in the accuracy benchmark: data, optimizer, resuming."""

import collections
import concurrent.futures
import copy
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator

import keras
import numpy as np

import keras_selfdistill as ksd
from accuracy_grid.checkpoint import Checkpoint
from accuracy_grid.methods import Batch, Cell
from accuracy_grid.presets import Preset
from shared import augmentation, cifar100

LEARNING_RATE = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4  # as PyTorch counts it, through the momentum buffer
CROP_PADDING = 4
HOLD_OUT_SEED = 0  # one hold-out for all seeds, so that variants meet the same images


def read_data(
    preset: Preset, data_dir: str, select: bool
) -> Iterator[cifar100.Split | None]:
    """Yields the images to train on, to evaluate at the end, to calibrate early exit.

    The last are training images that are held out; `None` where all are used otherwise.
    """
    held_out = select or preset.train_examples is not None
    data = cifar100.load(
        data_dir,
        train_examples=preset.train_examples,
        validation_examples=preset.validation_examples if held_out else 0,
        seed=HOLD_OUT_SEED,
    )
    yield data.train
    if select:
        yield data.validation
        yield None
    else:
        count = preset.test_examples
        yield cifar100.Split(data.test.images[:count], data.test.labels[:count])
        yield data.validation if held_out else None


def ahead(tasks: Iterable[Callable[[], Batch]], depth: int = 16) -> Iterator[Batch]:
    """Yields the tasks' results in order, computed in background threads."""
    workers = min(8, max(1, (os.cpu_count() or 1) // 2))
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        pending: collections.deque[concurrent.futures.Future] = collections.deque()
        for task in tasks:
            pending.append(pool.submit(task))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def batches(
    train: cifar100.Split,
    cell: Cell,
    prepare: Callable | None,
    first_epoch: int,
    augment_on: str,
) -> Iterator[Batch]:
    """Yields the batches of all epochs from `first_epoch` on, one after the other.

    One iterator for all of them: the threads of a tf.data pipeline, which Keras would
    make for each epoch, end so late that every epoch takes up to twice the time.

    Args:
        train: Images to train on.
        cell: Its seed draws the batches.
        prepare: What changes images or labels further; see `Method`.
        first_epoch: Number of the first epoch, from 0.
        augment_on: `"device"` or `"host"`: where images are cropped. They are the same.
    """
    tasks = _tasks(train, cell, prepare, first_epoch, augment_on)
    if augment_on == "device":
        # The device's own queue runs ahead of it; threads would fight for the host.
        return (task() for task in tasks)
    return ahead(tasks)


def _tasks(train, cell, prepare, first_epoch, augment_on):
    images = augmented(train, cell, augment_on)
    for epoch in range(first_epoch, cell.preset.epochs):
        # A copy for each epoch, of the same images: threads draw batches of two epochs
        # at a time.
        data = copy.copy(images)
        data.set_epoch(epoch)
        for index in range(data.num_batches):
            yield functools.partial(_draw, data, prepare, (cell.seed, epoch, index))


def _draw(data, prepare, key):
    images, labels = data[key[-1]]
    if prepare is None:
        return images, labels
    # A stream of its own: `Augmented` has the index after this one before 1 and 2, and
    # NumPy fills shorter keys up with zeros.
    return prepare(images, labels, np.random.default_rng([*key, 3]))


def augmented(
    train: cifar100.Split, cell: Cell, augment_on: str
) -> augmentation.Augmented:
    """Returns the training images, shuffled and augmented as the preset says."""
    paper = cell.preset.paper_training
    return augmentation.build(
        cell.preset.augmentation,
        *train,
        cell.preset.batch_size,
        seed=cell.seed,
        place=augment_on,
        crop_padding=CROP_PADDING,
        crop_fill=paper.crop_fill if paper else 0,
    )


def count_batches(train: cifar100.Split, preset: Preset) -> int:
    """Returns the number of batches in an epoch, the last of which may be smaller."""
    return -(-len(train.labels) // preset.batch_size)


def steps_per_execution(steps: int) -> int:
    """Returns how many steps Keras runs between its callbacks: a divisor of `steps`.

    Not more than one on TensorFlow, which would compile all of them as one, nor on
    PyTorch, which gains nothing.
    """
    if keras.backend.backend() != "jax":
        return 1
    # With any other number an epoch would end among the steps of the next.
    return max(count for count in range(1, 33) if steps % count == 0)


class OutOfTimeError(Exception):
    """`--time_limit_s` is over; what was reached is saved."""


def build_optimizer(preset: Preset, steps_per_epoch: int) -> keras.optimizers.SGD:
    """Returns the preset's optimizer: SGD with momentum, its rate and L2 decay."""
    paper, steps = preset.paper_training, preset.epochs * steps_per_epoch
    if preset.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(
            0.0,
            decay_steps=steps - preset.warmup_steps,
            warmup_target=LEARNING_RATE,
            warmup_steps=preset.warmup_steps,
        )
    else:
        if paper is None:
            ends = [round(share * steps) for share in (0.375, 0.65, 0.9)]
        else:
            ends = [epoch * steps_per_epoch for epoch in paper.divided_after]
        # Keras keeps a value up to and including its boundary, and counts from 0.
        boundaries = [end - 1 for end in ends]
        values = [LEARNING_RATE / 10**drop for drop in range(len(ends) + 1)]
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)
    return keras.optimizers.SGD(
        rate,
        momentum=MOMENTUM,
        nesterov=paper is None or paper.nesterov,
        # Keras' decay acts past the momentum buffer, which would have repeated it.
        weight_decay=WEIGHT_DECAY / (1 - MOMENTUM),
    )


class Recorder(keras.callbacks.Callback):
    """Times epochs, prints one line for each, and saves checkpoints."""

    def __init__(self, label, preset, checkpoint, epochs, deadline) -> None:
        super().__init__()
        self._label, self._preset = label, preset
        self._checkpoint, self._deadline = checkpoint, deadline
        self.epochs = epochs

    def on_epoch_begin(self, epoch, logs=None) -> None:
        """Starts the clocks."""
        self._start = time.perf_counter(), time.process_time()

    def on_epoch_end(self, epoch, logs=None) -> None:
        """Reads the clocks; saves where it is time to."""
        ends = time.perf_counter(), time.process_time()
        seconds, cpu_seconds = (
            end - start for end, start in zip(ends, self._start, strict=True)
        )
        logs = logs or {}
        found = {name: float(logs[name]) for name in ("loss", "accuracy")}
        self.epochs.append({**found, "seconds": seconds, "cpu_seconds": cpu_seconds})
        done, last = epoch + 1, self._preset.epochs
        print(
            f"{self._label} epoch {done}/{last} loss {found['loss']:.4f} "
            f"train accuracy {found['accuracy']:.4f} {seconds:.1f} s "
            f"(CPU {cpu_seconds:.1f} s)",
            flush=True,
        )
        late = time.monotonic() > self._deadline
        if late or done == last or done % self._preset.checkpoint_every == 0:
            self._checkpoint.save(self.model, self.epochs)
        self.model.stop_training = late


def train(
    cell: Cell,
    data: cifar100.Split,
    build: Callable[[keras.optimizers.Optimizer], keras.Model],
    checkpoint: Checkpoint,
    *,
    label: str,
    prepare: Callable | None,
    augment_on: str,
    deadline: float,
) -> tuple[keras.Model, list[dict[str, float]]]:
    """Trains from the last checkpoint to the end; returns the model and its epochs.

    Raises:
        OutOfTimeError: After saving; the next call goes on.
    """
    preset = cell.preset
    keras.utils.set_random_seed(cell.seed)
    steps = count_batches(data, preset)
    model = build(build_optimizer(preset, steps))
    model.steps_per_execution = steps_per_execution(steps)
    model.optimizer.build(model.trainable_variables)
    epochs = checkpoint.restore(model)
    if len(epochs) < preset.epochs:
        if time.monotonic() > deadline:
            raise OutOfTimeError
        model.fit(
            batches(data, cell, prepare, len(epochs), augment_on),
            steps_per_epoch=steps,
            initial_epoch=len(epochs),
            epochs=preset.epochs,
            shuffle=False,
            verbose=0,
            callbacks=[Recorder(label, preset, checkpoint, epochs, deadline)],
        )
    if len(epochs) < preset.epochs:
        raise OutOfTimeError
    return model, epochs


def accuracies(
    model: keras.Model, images: cifar100.Split, *, one_hot: bool = False
) -> dict[str, float]:
    """Returns the accuracy of every exit, shallow to deep, and the ensemble's.

    Args:
        model: A trained network.
        images: Images to evaluate it on.
        one_hot: Whether the wrapper's loss wants one-hot labels.
    """
    x = cifar100.normalize(images.images)
    if not isinstance(model, ksd.SelfDistiller):
        predicted = np.argmax(model.predict(x, batch_size=500, verbose=0), axis=-1)
        return {"final": float(np.mean(predicted == images.labels))}
    labels = augmentation.one_hot(images.labels) if one_hot else images.labels
    logs = model.evaluate(x, labels, batch_size=500, return_dict=True, verbose=0)
    logs["final_accuracy"] = logs["accuracy"]
    names = [*model.exit_names, "ensemble"]
    return {name: float(logs[f"{name}_accuracy"]) for name in names}
