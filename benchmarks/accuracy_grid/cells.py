"""The cells of a grid: trained, evaluated once, each written as one JSON file."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from accuracy_grid.checkpoint import Checkpoint, refuse_other_settings
from accuracy_grid.frontier import frontier
from accuracy_grid.methods import (
    METHODS,
    TEACHERS,
    Cell,
    build_plain,
    build_wrapped,
    named_taps,
    recipe,
)
from accuracy_grid.presets import halves
from accuracy_grid.training import (
    CROP_PADDING,
    HOLD_OUT_SEED,
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    accuracies,
    train,
)
from shared import augmentation, cifar100
from shared.environment import origin
from shared.run_folder import write_json

SECOND_HALF = 1000  # Added to seeds, of which there are fewer.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the cells of a call get their data and put their files."""

    preset_name: str
    data: tuple[cifar100.Split | None, ...] | None  # as `read_data` yields it
    results: pathlib.Path
    work: pathlib.Path
    select: bool
    deadline: float
    augment_on: str = "host"  # or "device"; see `shared.augmentation`

    def result_path(self, cell: Cell) -> pathlib.Path:
        """Returns where a finished cell lies."""
        return self.results / f"{cell.name}.json"

    def settings(self, cell: Cell) -> dict[str, Any]:
        """Returns all that decides the result of a cell, as JSON would return it."""
        preset = dataclasses.asdict(cell.preset)
        del preset["checkpoint_every"]
        if cell.preset.paper_training is None:
            del preset["paper_training"]
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
            settings["tap_names"] = named_taps(cell.preset.model, cell.preset.taps)
        if method.head:
            settings["head"] = method.head
        settings |= method.options
        if method.base_first:
            settings["base_epochs"] = halves(cell.preset)[0].epochs
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
        augment_on=augmentation.place_of(cell.preset.augmentation, grid.augment_on),
        deadline=grid.deadline,
    )


def train_base(
    grid: Grid, cell: Cell, checkpoint: Checkpoint
) -> tuple[keras.Model, list[dict[str, float]]]:
    """Trains the bare base for the first half of the epochs, or restores it."""
    half = dataclasses.replace(cell, preset=halves(cell.preset)[0])
    return train(
        half,
        grid.data[0],
        functools.partial(build_plain, half),
        checkpoint,
        label=f"{cell.name} base",
        prepare=None,
        augment_on=augmentation.place_of(cell.preset.augmentation, grid.augment_on),
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
    method, trained = METHODS[cell.method], cell
    options, stages = {}, {}
    checkpoint, of_base = (
        Checkpoint(grid.work / f"{cell.name}{part}.npz", {**settings, **stage})
        for part, stage in (("", {}), ("-base", {"stage": "base"}))
    )
    if method.taught:
        options["teacher"], stages["teacher"] = train_teacher(grid, cell)
    if method.base_first:
        options["base"], stages["base"] = train_base(grid, cell, of_base)
        # Other batches than those that the base saw.
        seed, half = cell.seed + SECOND_HALF, halves(cell.preset)[1]
        trained = dataclasses.replace(cell, preset=half, seed=seed)
    names = cell.preset.augmentation
    augment_on = augmentation.place_of(names, grid.augment_on)
    if method.mixes_images:
        augment_on = "host"
    model, stages["student"] = train(
        trained,
        grid.data[0],
        functools.partial(method.build, trained, **options),
        checkpoint,
        label=cell.name,
        prepare=method.prepare(cell) if method.prepare else None,
        augment_on=augment_on,
        deadline=grid.deadline,
    )
    content = {
        **evaluation(grid, cell, model),
        **times(stages),
        "augmented_on": augment_on,  # Decides no result, so it is no setting.
        "settings": settings,
        **origin(),
    }
    if method.taught:
        teacher = accuracies(options["teacher"], grid.data[1])
        content["teacher_accuracy"] = teacher["final"]
    write_json(path, content)
    for each in (checkpoint, of_base):
        each.delete()


def evaluation(grid: Grid, cell: Cell, model: keras.Model) -> dict[str, Any]:
    """Returns the accuracies of a trained network, and prints those of its exits."""
    one_hot = augmentation.mixes_labels(cell.preset.augmentation)
    found = accuracies(model, grid.data[1], one_hot=one_hot)
    print(cell.name, {name: round(value, 4) for name, value in found.items()})
    content = {"validation_accuracy" if grid.select else "test_accuracy": found}
    if grid.select or grid.data[2] is not None:
        content["early_exit"] = frontier(model, grid.data[2], grid.data[1])
    return content


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
