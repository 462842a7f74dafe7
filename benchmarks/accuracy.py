r"""Accuracy on CIFAR-100: a grid of methods and seeds, one JSON file for each cell.

    KERAS_BACKEND=tensorflow python benchmarks/accuracy.py --preset=cpu \
        --methods=plain,byot --seeds=0,1,2

trains what is missing and writes `<results_dir>/<preset>/<method>-seed<k>.json` and the
table `<results_dir>/<preset>.md`. The same command again goes on where it was killed or
ran out of `--time_limit_s` (exit status 75): finished cells are kept, a half-done one
continues after its last checkpoint with the batches and learning rates of a run that
never stopped. The test images are used once, after the last epoch; with `--select` they
are not used at all, and held-out training images take their place, for choosing
hyperparameters. Time a cell only where nothing else runs.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import importlib
import json
import os
import pathlib
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from absl import app, flags

import keras_selfdistill as ksd

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "examples"))
import cifar100

Batch = tuple[np.ndarray, np.ndarray]

LEARNING_RATE = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4  # as PyTorch counts it, through the momentum buffer
CROP_PADDING = 4
HOLD_OUT_SEED = 0  # one hold-out for all seeds, so that variants meet the same images
OUT_OF_TIME = 75  # exit status EX_TEMPFAIL: run the same command again

# ------------------------------------------------------------------------- presets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """What all cells of a table share.

    Attributes:
        model: Name in `keras_selfdistill.networks.NETWORKS`.
        width_multiplier: Factor on the layer widths, of the teacher as well.
        train_examples: The first images of every class, together; `None`: all.
        validation_examples: Held out of the training images by `--select`.
        test_examples: The first test images; `None`: all.
        epochs: Passes over the training images.
        batch_size: Images per step.
        schedule: `"cosine"` to 0, or `"step"`: ÷10 after 37.5 %, 65 %, 90 % of steps.
        warmup_steps: Steps in which the rate rises from 0, with `"cosine"`.
        dtype: Keras dtype policy.
        taps: Number of exits besides the base's own.
        checkpoint_every: Epochs between checkpoints; decides no result.
    """

    model: str = "resnet18"
    width_multiplier: float = 1.0
    train_examples: int | None = None
    validation_examples: int = 5000
    test_examples: int | None = None
    epochs: int = 200
    batch_size: int = 128
    schedule: str = "cosine"
    warmup_steps: int = 0
    dtype: str = "float32"
    taps: int = 3
    checkpoint_every: int = 1


PRESETS = {
    "cpu": Preset(
        width_multiplier=0.375,  # 24 channels at first
        train_examples=5000,
        epochs=40,
        batch_size=64,
        warmup_steps=200,
        checkpoint_every=4,
    ),
    "cpu_full": Preset(width_multiplier=0.25, epochs=12, warmup_steps=200),
    "paper": Preset(schedule="step", dtype="mixed_bfloat16", checkpoint_every=5),
    "smoke": Preset(
        width_multiplier=0.125,
        train_examples=200,
        validation_examples=100,
        test_examples=200,
        epochs=2,
        batch_size=100,
        warmup_steps=2,
    ),
}

# ------------------------------------------------------------------------- methods

SPARSE = "sparse_categorical_crossentropy"
TEACHERS = {"resnet18": "resnet34", "resnet50": "resnet101"}  # twice the depth


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One training: a preset's method with one seed, maybe with other constants."""

    preset: Preset
    method: str
    seed: int
    fields: Mapping[str, Any]  # the method's constants
    variant: str = ""

    @property
    def row(self) -> str:
        """Name of the table's row."""
        return f"{self.method}.{self.variant}" if self.variant else self.method

    @property
    def name(self) -> str:
        """Name of the cell's files, without suffix."""
        return f"{self.row}-seed{self.seed}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """How one row of the table is trained.

    Attributes:
        build: `(cell, optimizer, teacher) -> model`, compiled, untrained.
        fields: Named constants, which `--recipe_fields` overrides.
        prepare: `(cell) -> function` of a batch and its own random generator, for
            methods that change images or labels.
        taught: Whether a deeper network is trained first and handed to `build`.
        published: Published accuracies of ResNet-18, in per cent.
    """

    build: Callable[..., keras.Model]
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prepare: Callable[[Cell], Callable[..., Batch]] | None = None
    taught: bool = False
    published: str = "–"


def network(preset: Preset, model: str | None = None, **options: Any) -> keras.Model:
    """Returns an untrained network, the preset's own unless `model` names another."""
    builder = ksd.networks.NETWORKS[model or preset.model]
    return builder(width_multiplier=preset.width_multiplier, **options)


def build_plain(cell, optimizer, teacher=None, *, model=None, logits=False):
    """Returns the bare base."""
    activation = None if logits else "softmax"
    built = network(cell.preset, model, classifier_activation=activation)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    built.compile(optimizer, loss=loss, metrics=["accuracy"])
    return built


def build_smoothed(cell, optimizer, teacher=None):
    """Returns the bare base, which learns from one-hot or mixed labels."""
    model = network(cell.preset)
    loss = keras.losses.CategoricalCrossentropy(
        label_smoothing=cell.fields.get("smoothing", 0.0)
    )
    model.compile(optimizer, loss=loss, metrics=["accuracy"])
    return model


def build_wrapped(cell, optimizer, teacher=None):
    """Returns the base with exits."""
    model = ksd.SelfDistiller(network(cell.preset), cell.preset.taps, recipe(cell))
    model.compile(optimizer, loss=SPARSE, metrics=["accuracy"])
    return model


def build_taught(cell, optimizer, teacher):
    """Returns ordinary distillation: (1 − alpha) · label loss + alpha · T² · KL."""
    student = network(cell.preset, classifier_activation=None)
    model = keras.distillation.Distiller(
        teacher,
        student,
        keras.distillation.LogitsDistillation(
            temperature=cell.fields["temperature"],
            # By its name Keras takes a function, to which it hands raw logits.
            loss=keras.losses.KLDivergence(),
        ),
        student_loss_weight=1.0 - cell.fields["alpha"],
    )
    model.compile(
        optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


RECIPES: dict[str, Callable[..., ksd.recipes.Recipe]] = {
    "byot_ensemble_teacher": functools.partial(ksd.recipes.BYOT, teacher="ensemble"),
}


def recipe(cell: Cell) -> ksd.recipes.Recipe:
    """Returns the recipe of a wrapper, with the published constants or the cell's."""
    if cell.method in RECIPES:
        return RECIPES[cell.method](**cell.fields)
    return dataclasses.replace(ksd.recipes.get(cell.method), **cell.fields)


def one_hot(labels: np.ndarray) -> np.ndarray:
    """Maps labels (n,) to rows (n, 100)."""
    return np.eye(cifar100.CLASSES, dtype="float32")[labels]


def prepare_one_hot(cell: Cell) -> Callable[..., Batch]:
    """Returns a function that makes labels rows."""
    return lambda images, labels, rng: (images, one_hot(labels))


def prepare_cutmix(cell: Cell) -> Callable[..., Batch]:
    """Returns a function that cuts and mixes a share of the batches by Keras' layer."""
    alpha, probability = cell.fields["alpha"], cell.fields["probability"]
    # Its weights are drawn from Beta(a, a), with a from the range `factor`.
    layer = keras.layers.CutMix(factor=(alpha, alpha), dtype="float32")

    def mix(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Batch:
        rows = one_hot(labels)
        if rng.random() >= probability:
            return images, rows
        # The layer's own generator would go on from batch to batch, which a resumed
        # training could not repeat. The accelerator is busy with the network.
        with keras.device("cpu:0"):
            seed = keras.random.SeedGenerator(int(rng.integers(2**31)))
            drawn = layer.get_random_transformation(images, seed=seed)
            mixed = layer.transform_images(images, drawn)
            rows = layer.transform_labels(keras.ops.convert_to_tensor(rows), drawn)
            to_numpy = keras.ops.convert_to_numpy
            return to_numpy(mixed), to_numpy(rows)

    return mix


METHODS: dict[str, Method] = {
    "plain": Method(build=build_plain, published="77.09"),
    "label_smoothing": Method(
        build=build_smoothed, fields={"smoothing": 0.1}, prepare=prepare_one_hot
    ),
    # CutMix' constants for CIFAR (Yun et al., ICCV 2019).
    "cutmix": Method(
        build=build_smoothed,
        fields={"alpha": 1.0, "probability": 0.5},
        prepare=prepare_cutmix,
    ),
    "deep_supervision": Method(build=build_wrapped),
    "byot": Method(
        build=build_wrapped,
        published="67.85 / 74.57 / 78.23 / 78.64, ensemble 79.67 (plain 77.09)",
    ),
    "attention_byot": Method(build=build_wrapped),
    "teskd": Method(build=build_wrapped, published="79.15 (plain 74.41)"),
    "byot_ensemble_teacher": Method(build=build_wrapped),
    "kd": Method(
        build=build_taught, fields={"alpha": 0.9, "temperature": 4.0}, taught=True
    ),
}

# ---------------------------------------------------------------------------- data


def read_data(preset: Preset, data_dir: str, select: bool) -> Iterator[cifar100.Split]:
    """Yields the training images, then those that are evaluated at the end."""
    data = cifar100.load(
        data_dir,
        train_examples=preset.train_examples,
        validation_examples=preset.validation_examples if select else 0,
        seed=HOLD_OUT_SEED,
    )
    yield data.train
    if select:
        yield data.validation
    else:
        count = preset.test_examples
        yield cifar100.Split(data.test.images[:count], data.test.labels[:count])


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
    train: cifar100.Split, cell: Cell, prepare: Callable | None, first_epoch: int
) -> Iterator[Batch]:
    """Yields the batches of all epochs from `first_epoch` on, one after the other.

    One iterator for all of them: the threads of a tf.data pipeline, which Keras would
    make for each epoch, end so late that every epoch takes up to twice the time.
    """
    return ahead(_tasks(train, cell, prepare, first_epoch))


def _tasks(train, cell, prepare, first_epoch):
    for epoch in range(first_epoch, cell.preset.epochs):
        # A data set of its own for each epoch: batches of two are drawn at a time.
        data = augmented(train, cell)
        data.set_epoch(epoch)
        for index in range(data.num_batches):
            yield functools.partial(_draw, data, prepare, (cell.seed, epoch, index))


def _draw(data, prepare, key):
    images, labels = data[key[-1]]
    if prepare is None:
        return images, labels
    # One number more than the keys of `Augmented`: another stream than its own.
    return prepare(images, labels, np.random.default_rng([*key, 0]))


def augmented(train: cifar100.Split, cell: Cell) -> cifar100.Augmented:
    """Returns the training images, shuffled, cropped and mirrored."""
    return cifar100.Augmented(
        *train, cell.preset.batch_size, seed=cell.seed, crop_padding=CROP_PADDING
    )


# ------------------------------------------------------------------------ training


class OutOfTimeError(Exception):
    """`--time_limit_s` is over; what was reached is saved."""


def build_optimizer(preset: Preset, steps_per_epoch: int) -> keras.optimizers.SGD:
    """Returns the papers' optimizer; as in examples/train_cifar100.py."""
    steps = preset.epochs * steps_per_epoch
    if preset.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(
            0.0,
            decay_steps=steps - preset.warmup_steps,
            warmup_target=LEARNING_RATE,
            warmup_steps=preset.warmup_steps,
        )
    else:
        # Keras keeps a value up to and including its boundary, and counts from 0.
        boundaries = [round(share * steps) - 1 for share in (0.375, 0.65, 0.9)]
        values = [LEARNING_RATE / 10**drop for drop in range(4)]
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)
    return keras.optimizers.SGD(
        rate,
        momentum=MOMENTUM,
        nesterov=True,
        # Keras' decay acts past the momentum buffer, which would have repeated it.
        weight_decay=WEIGHT_DECAY / (1 - MOMENTUM),
    )


class Checkpoint:
    """All variables of a model and its optimizer, with the epochs behind them.

    Not `model.save`: Keras' `Distiller` cannot be trained on after loading.
    """

    def __init__(self, path: pathlib.Path, settings: dict[str, Any]) -> None:
        self._path = path
        self._settings = settings

    def save(self, model: keras.Model, epochs: list[dict[str, float]]) -> None:
        """Replaces the checkpoint, whole or not at all."""
        arrays = {
            str(i): keras.ops.convert_to_numpy(variable.value)
            for i, variable in enumerate(_variables(model))
        }
        progress = json.dumps({"settings": self._settings, "epochs": epochs})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".unfinished")
        with temporary.open("wb") as file:
            np.savez(file, progress=np.array(progress), **arrays)
        os.replace(temporary, self._path)

    def restore(self, model: keras.Model) -> list[dict[str, float]]:
        """Sets the model's variables if anything was saved; returns the epochs."""
        if not self._path.exists():
            return []
        with np.load(self._path) as saved:
            progress = json.loads(str(saved["progress"]))
            refuse_other_settings(self._path, progress["settings"], self._settings)
            for i, variable in enumerate(_variables(model)):
                variable.assign(saved[str(i)])
        return progress["epochs"]

    def delete(self) -> None:
        """Removes the file."""
        self._path.unlink(missing_ok=True)


def _variables(model):
    return [*model.weights, *model.optimizer.variables]


def refuse_other_settings(path: pathlib.Path, begun: Any, now: Any) -> None:
    """Raises unless a file was made with the present settings."""
    if "recipe" in begun and "recipe" in now:
        # A field that a later version of the recipe added has a default that does what
        # the earlier one did.
        old = begun["recipe"]
        now = {**now, "recipe": {k: v for k, v in now["recipe"].items() if k in old}}
    changed = [
        f"{name}={now.get(name)!r} (was {begun.get(name)!r})"
        for name in sorted({*begun, *now})
        if begun.get(name) != now.get(name)
    ]
    if changed:
        raise app.UsageError(
            f"Received {', '.join(changed)}; expected the settings with which {path} "
            "was made. Give the cell another --variant, or remove the file."
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
    deadline: float,
) -> tuple[keras.Model, list[dict[str, float]]]:
    """Trains from the last checkpoint to the end; returns the model and its epochs.

    Raises:
        OutOfTimeError: After saving; the next call goes on.
    """
    preset = cell.preset
    keras.utils.set_random_seed(cell.seed)
    steps = augmented(data, cell).num_batches
    model = build(build_optimizer(preset, steps))
    model.optimizer.build(model.trainable_variables)
    epochs = checkpoint.restore(model)
    if len(epochs) < preset.epochs:
        if time.monotonic() > deadline:
            raise OutOfTimeError
        model.fit(
            batches(data, cell, prepare, len(epochs)),
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


def accuracies(model: keras.Model, images: cifar100.Split) -> dict[str, float]:
    """Returns the accuracy of every exit, shallow to deep, and the ensemble's."""
    x = cifar100.normalize(images.images)
    if not isinstance(model, ksd.SelfDistiller):
        predicted = np.argmax(model.predict(x, batch_size=500, verbose=0), axis=-1)
        return {"final": float(np.mean(predicted == images.labels))}
    logs = model.evaluate(x, images.labels, batch_size=500, return_dict=True, verbose=0)
    logs["final_accuracy"] = logs["accuracy"]
    names = [*model.exit_names, "ensemble"]
    return {name: float(logs[f"{name}_accuracy"]) for name in names}


# --------------------------------------------------------------------------- cells


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the cells of a call get their data and put their files."""

    preset_name: str
    data: tuple[cifar100.Split, cifar100.Split] | None  # training, evaluated
    results: pathlib.Path
    work: pathlib.Path
    select: bool
    deadline: float

    def result_path(self, cell: Cell) -> pathlib.Path:
        """Returns where a finished cell lies."""
        return self.results / f"{cell.name}.json"

    def settings(self, cell: Cell) -> dict[str, Any]:
        """Returns all that decides the result of a cell, as JSON would return it."""
        preset = dataclasses.asdict(cell.preset)
        del preset["checkpoint_every"]
        settings = {
            "preset": self.preset_name,
            **preset,
            "method": cell.method,
            "variant": cell.variant,
            "fields": dict(cell.fields),
            "seed": cell.seed,
            "evaluated_on": "hold-out" if self.select else "test",
            "hold_out_seed": HOLD_OUT_SEED,
            "learning_rate": LEARNING_RATE,
            "momentum": MOMENTUM,
            "weight_decay": WEIGHT_DECAY,
            "crop_padding": CROP_PADDING,
            "backend": keras.backend.backend(),
        }
        method = METHODS[cell.method]
        if method.build is build_wrapped:
            settings["recipe"] = dataclasses.asdict(recipe(cell))
        if method.taught:
            settings["teacher"] = TEACHERS[cell.preset.model]
        return json.loads(json.dumps(settings))


def train_teacher(grid: Grid, cell: Cell) -> tuple[keras.Model, list[dict[str, float]]]:
    """Trains the deeper network plainly, or restores it: one for a seed's variants."""
    name = TEACHERS[cell.preset.model]
    settings = {**grid.settings(cell), "model": name, "logits": True}
    for of_student in ("method", "variant", "fields"):
        del settings[of_student]
    return train(
        cell,
        grid.data[0],
        lambda optimizer: build_plain(cell, optimizer, model=name, logits=True),
        Checkpoint(grid.work / f"{name}-seed{cell.seed}.npz", settings),
        label=f"{cell.name} teacher",
        prepare=None,
        deadline=grid.deadline,
    )


def run_cell(grid: Grid, cell: Cell) -> None:
    """Trains a cell, evaluates it once, and writes its file; keeps a finished one."""
    settings, path = grid.settings(cell), grid.result_path(cell)
    if path.exists():
        refuse_other_settings(path, json.loads(path.read_text())["settings"], settings)
        return
    keras.utils.clear_session()
    keras.config.set_dtype_policy(cell.preset.dtype)
    method = METHODS[cell.method]
    teacher, stages = None, {}
    if method.taught:
        teacher, stages["teacher"] = train_teacher(grid, cell)
    checkpoint = Checkpoint(grid.work / f"{cell.name}.npz", settings)
    model, stages["student"] = train(
        cell,
        grid.data[0],
        functools.partial(method.build, cell, teacher=teacher),
        checkpoint,
        label=cell.name,
        prepare=method.prepare(cell) if method.prepare else None,
        deadline=grid.deadline,
    )
    key = "validation_accuracy" if grid.select else "test_accuracy"
    found = accuracies(model, grid.data[1])
    content = {key: found, **times(stages), "settings": settings, **surroundings()}
    write(path, json.dumps(content, indent=2) + "\n")
    checkpoint.delete()
    print(cell.name, {name: round(value, 4) for name, value in found.items()})


def times(stages: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Returns the time of training: over all, of each stage, of each epoch."""

    def total(clock: str, names: Iterable[str]) -> float:
        return sum(epoch[clock] for name in names for epoch in stages[name])

    content: dict[str, Any] = {}
    for clock in ("seconds", "cpu_seconds"):
        content[clock] = total(clock, stages)
        if "teacher" in stages:
            content[f"teacher_{clock}"] = total(clock, ["teacher"])
    return {**content, "epochs": stages}


def surroundings() -> dict[str, Any]:
    """Returns the versions and the machine."""
    backend = keras.backend.backend()
    return {
        "versions": {
            "python": platform.python_version(),
            "keras": keras.version(),
            backend: importlib.import_module(backend).__version__,
        },
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "accelerators": accelerators(backend),
        },
    }


def cpu_model() -> str:
    """Returns the processor's name, as far as the system tells it."""
    info = pathlib.Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else ""
    return found[1] if found else platform.processor()


def accelerators(backend: str) -> list[str]:
    """Returns the names of the GPUs that the backend sees."""
    module = importlib.import_module(backend)
    if backend == "jax":
        return [d.device_kind for d in module.devices() if d.platform != "cpu"]
    if backend == "torch":
        count = module.cuda.device_count()
        return [module.cuda.get_device_name(i) for i in range(count)]
    details = module.config.experimental.get_device_details
    gpus = module.config.list_physical_devices("GPU")
    return [details(gpu).get("device_name", gpu.name) for gpu in gpus]


def write(path: pathlib.Path, content: str) -> None:
    """Writes a text file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".unfinished")
    temporary.write_text(content)
    os.replace(temporary, path)


# --------------------------------------------------------------------------- table


def summarize(values: list[float]) -> str:
    """Returns mean ± standard deviation of a sample, in per cent."""
    mean = f"{100 * statistics.mean(values):.2f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {100 * statistics.stdev(values):.2f}"


def table(folder: pathlib.Path, select: bool) -> str:
    """Returns the Markdown table of the results in a folder."""
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not cells:
        raise app.UsageError(f"{folder} holds no results; expected at least one.")
    rows = collections.defaultdict(list)
    for cell in cells:
        rows[cell["settings"]["method"], cell["settings"]["variant"]].append(cell)
    methods = list(METHODS)
    order = sorted(rows, key=lambda row: (methods.index(row[0]), row[1]))
    taps = cells[0]["settings"]["taps"]
    exits = [f"exit_{i + 1}" for i in range(taps)]
    columns = [*exits, "final", "ensemble"]
    key = "validation_accuracy" if select else "test_accuracy"
    heads = [
        "method",
        *(name.replace("_", " ") for name in columns),
        "seeds",
        "CPU time ÷ plain's",
        "time ÷ plain's",
        "published, ResNet-18",
    ]
    lines = [heads, ["---"] * len(heads)]
    for row in order:
        found = [cell[key] for cell in rows[row]]
        line = [".".join(filter(None, row))]
        for name in columns:
            values = [accuracy[name] for accuracy in found if name in accuracy]
            line.append(summarize(values) if values else "–")
        line.append(str(len(found)))
        for clock in ("cpu_seconds", "seconds"):
            line.append(_ratio(rows[row], rows.get(("plain", "")), clock))
        published = METHODS[row[0]].published
        lines.append([*line, published if not row[1] else "–"])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{_caption(cells, select)}\n\n{text}\n\n{_made_by(cells, select)}\n"


def _ratio(cells, plain, clock):
    if not plain:
        return "–"
    means = [statistics.mean(cell[clock] for cell in row) for row in (cells, plain)]
    return f"{means[0] / means[1]:.2f}"


def _caption(cells, select):
    kind = "held-out training images" if select else "test images"
    settings = cells[0]["settings"]
    images = settings["train_examples"] or ("45,000" if select else "50,000")
    return (
        f"Accuracy on CIFAR-100's {kind} in per cent, mean ± standard deviation of a "
        f"sample over seeds: {settings['model']}, width multiplier "
        f"{settings['width_multiplier']}, {images} training images, "
        f"{settings['epochs']} epochs. A network is evaluated once, after its last "
        "epoch. The time of kd holds its teacher's training. Published: full width, "
        "all images, 200 epochs, PyTorch."
    )


def _made_by(cells, select):
    settings = [cell["settings"] for cell in cells]
    model = (
        ""
        if settings[0]["model"] == PRESETS[settings[0]["preset"]].model
        else (f" --model={settings[0]['model']}")
    )
    methods = [name for name in METHODS if name in {s["method"] for s in settings}]
    seeds = sorted({s["seed"] for s in settings})
    backends = sorted({s["backend"] for s in settings})
    lines = [
        f"`KERAS_BACKEND={backend} python benchmarks/accuracy.py --preset="
        f"{settings[0]['preset']}{model}{' --select' if select else ''} "
        f"--methods={','.join(methods)} --seeds={','.join(map(str, seeds))}`"
        for backend in backends
    ]
    variants = {s["variant"]: s["fields"] for s in settings if s["variant"]}
    lines += [
        f"`--variant={name} --recipe_fields='{json.dumps(fields)}'`"
        for name, fields in sorted(variants.items())
    ]
    for key in ("versions", "machine"):
        for text in sorted({json.dumps(cell[key]) for cell in cells}):
            values = json.loads(text)
            shown = (f"{name} {value}" for name, value in values.items() if value)
            lines.append(", ".join(shown))
    return "  \n".join(lines)


# --------------------------------------------------------------------- command line

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the command line, which a test that imports this file does not want."""
    flags.DEFINE_enum("preset", "cpu", list(PRESETS), "Size of the experiment.")
    flags.DEFINE_enum(
        "model", None, list(ksd.networks.NETWORKS), "Instead of the preset's network."
    )
    flags.DEFINE_list("methods", list(METHODS), "Rows of the table.")
    flags.DEFINE_list("seeds", ["0"], "Non-negative integers.")
    flags.DEFINE_string("variant", "", "Name for cells with other constants.")
    flags.DEFINE_string(
        "recipe_fields", "{}", "Constants of that variant, such as '{\"alpha\": 0.3}'."
    )
    flags.DEFINE_bool(
        "select", False, "Evaluate on held-out training images, not on the test images."
    )
    flags.DEFINE_string(
        "data_dir",
        "~/tensorflow_datasets",
        "Folder with CIFAR-100, as in examples/train_cifar100.py.",
    )
    flags.DEFINE_string("results_dir", "benchmarks/results", "Folder of the results.")
    flags.DEFINE_string("work_dir", "runs/accuracy", "Folder of the checkpoints.")
    flags.DEFINE_float("time_limit_s", None, "Save and exit after it; status 75.")
    flags.DEFINE_integer(
        "checkpoint_every", None, "Epochs, instead of the preset's.", lower_bound=1
    )
    flags.DEFINE_bool("table", False, "Only write and print the table.")


def cells(preset: Preset) -> list[Cell]:
    """Returns the cells that the flags ask for, seed by seed."""
    given = json.loads(FLAGS.recipe_fields)
    if bool(given) != bool(FLAGS.variant) or not re.fullmatch(r"[\w-]*", FLAGS.variant):
        raise app.UsageError(
            f"Received --variant={FLAGS.variant} --recipe_fields={FLAGS.recipe_fields};"
            " expected both or none, the name of letters, digits, _ and -."
        )
    unknown = sorted({*FLAGS.methods} - {*METHODS})
    if unknown:
        raise app.UsageError(
            f"Received --methods={','.join(unknown)}; expected some of "
            f"{', '.join(METHODS)}."
        )
    return [
        Cell(
            preset=preset,
            method=method,
            seed=int(seed),
            fields={**METHODS[method].fields, **given},
            variant=FLAGS.variant,
        )
        for seed in FLAGS.seeds
        for method in FLAGS.methods
    ]


def main(argv: list[str]) -> int:
    """Runs the cells that are missing, and writes the table after each."""
    if len(argv) > 1:
        raise app.UsageError(f"Received {argv[1:]}; expected flags only: --name=value.")
    deadline = time.monotonic() + (FLAGS.time_limit_s or float("inf"))
    preset = PRESETS[FLAGS.preset]
    changes = {"model": FLAGS.model, "checkpoint_every": FLAGS.checkpoint_every}
    preset = dataclasses.replace(
        preset, **{name: value for name, value in changes.items() if value}
    )
    place = pathlib.Path("selection" if FLAGS.select else "")
    same = preset.model == PRESETS[FLAGS.preset].model
    place /= FLAGS.preset if same else f"{FLAGS.preset}-{preset.model}"
    results = pathlib.Path(FLAGS.results_dir).expanduser() / place
    if not FLAGS.table:
        todo = cells(preset)
        grid = Grid(
            preset_name=FLAGS.preset,
            data=tuple(read_data(preset, FLAGS.data_dir, FLAGS.select)),
            results=results,
            work=pathlib.Path(FLAGS.work_dir).expanduser() / place,
            select=FLAGS.select,
            deadline=deadline,
        )
        for cell in todo:
            try:
                run_cell(grid, cell)
            except OutOfTimeError:
                print("Out of time; the same command goes on.", flush=True)
                return OUT_OF_TIME
            write(results.with_name(f"{results.name}.md"), table(results, FLAGS.select))
    text = table(results, FLAGS.select)
    write(results.with_name(f"{results.name}.md"), text)
    print(f"\n{text}")
    return 0


if __name__ == "__main__":
    define_flags()
    app.run(main)
