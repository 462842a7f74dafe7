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

import dataclasses
import functools
import json
import pathlib
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

import keras
from absl import app, flags

import keras_selfdistill as ksd
from accuracy_grid.methods import (
    METHODS,
    PRESETS,
    TEACHERS,
    Cell,
    Preset,
    build_plain,
    build_wrapped,
    cifar100,
    methods_of,
    named_preset,
    recipe,
)
from accuracy_grid.table import table
from accuracy_grid.training import (
    CROP_PADDING,
    HOLD_OUT_SEED,
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    Checkpoint,
    OutOfTimeError,
    accuracies,
    read_data,
    refuse_other_settings,
    train,
)
from shared.environment import origin
from shared.run_folder import write, write_json

OUT_OF_TIME = 75  # exit status EX_TEMPFAIL: run the same command again


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
        if method.head:
            settings["head"] = method.head
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
    content = {key: found, **times(stages), "settings": settings, **origin()}
    if method.taught:
        content["teacher_accuracy"] = accuracies(teacher, grid.data[1])["final"]
    write_json(path, content)
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


def write_table(results: pathlib.Path, select: bool) -> str:
    """Writes the table of a folder of results beside it, and returns it."""
    text = table(results, select)
    write(results.with_name(f"{results.name}.md"), text.encode())
    return text


FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the command line, which a test that imports this file does not want."""
    flags.DEFINE_enum("preset", "cpu", list(PRESETS), "Size of the experiment.")
    flags.DEFINE_enum(
        "model", None, list(ksd.networks.NETWORKS), "Instead of the preset's network."
    )
    flags.DEFINE_list(
        "methods", None, "Rows of the table; by default all that the network allows."
    )
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
    possible = methods_of(preset)
    methods = FLAGS.methods or possible
    unknown = sorted({*methods} - {*possible})
    if unknown:
        raise app.UsageError(
            f"Received --methods={','.join(unknown)}; expected some of "
            f"{', '.join(possible)}, which {preset.model} allows."
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
        for method in methods
    ]


def main(argv: list[str]) -> int:
    """Runs the cells that are missing, and writes the table after each."""
    if len(argv) > 1:
        raise app.UsageError(f"Received {argv[1:]}; expected flags only: --name=value.")
    limit = FLAGS.time_limit_s
    deadline = float("inf") if limit is None else time.monotonic() + limit
    name, preset = named_preset(FLAGS.preset, FLAGS.model)
    if FLAGS.checkpoint_every:
        preset = dataclasses.replace(preset, checkpoint_every=FLAGS.checkpoint_every)
    place = pathlib.Path("selection" if FLAGS.select else "", name)
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
            write_table(results, FLAGS.select)
    print(f"\n{write_table(results, FLAGS.select)}")
    return 0


if __name__ == "__main__":
    define_flags()
    app.run(main)
