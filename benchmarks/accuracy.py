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

Where exits can be cut off, the file also has `early_exit`: its accuracy within 25, 50
and 75 % of the base's multiply-adds. Thresholds are chosen on held-out training images,
so presets that train on all images lack it without `--select`.
"""

import dataclasses
import json
import pathlib
import re
import time

import keras
from absl import app, flags

import keras_selfdistill as ksd
from accuracy_grid.cells import Grid, run_cell
from accuracy_grid.methods import METHODS, Cell, methods_of
from accuracy_grid.presets import (
    PRESETS,
    SCHEDULES,
    Preset,
    as_in_paper,
    named_preset,
)
from accuracy_grid.table import write_table
from accuracy_grid.training import OutOfTimeError, read_data
from shared.augmentation import AUGMENTED, chosen, default_place

OUT_OF_TIME = 75  # exit status EX_TEMPFAIL: run the same command again
FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the command line, which a test that imports this file does not want."""
    flags.DEFINE_enum("preset", "cpu", list(PRESETS), "Size of the experiment.")
    flags.DEFINE_enum(
        "model", None, list(ksd.networks.NETWORKS), "Instead of the preset's network."
    )
    flags.DEFINE_enum(
        "schedule",
        "common",
        SCHEDULES,
        "common: all methods are trained alike; paper: attention_byot and teskd as by "
        "the public codes of their papers, all others as by BYOT's. The results stand "
        "apart.",
    )
    flags.DEFINE_list(
        "augmentation",
        None,
        "Of the training images of all methods, besides standard, crop and mirror: one "
        "of autoaugment and trivial, cutout, one of mixup and cutmix. The results "
        "stand apart.",
    )
    flags.DEFINE_list(
        "methods", None, "Rows of the table; by default all that are possible."
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
    flags.DEFINE_enum(
        "augment_on",
        None,
        list(AUGMENTED),
        "Where images are cropped and mirrored, with the same result; by default on an "
        "accelerator if there is one and the backend is not TensorFlow, which takes "
        "batches from the host. Other augmentations are done on the host.",
    )
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
            f"{', '.join(possible)}, which {preset.model} and --augmentation allow."
        )
    in_paper = FLAGS.schedule == "paper"
    return [
        Cell(
            preset=as_in_paper(preset, method) if in_paper else preset,
            method=method,
            seed=int(seed),
            fields={**METHODS[method].fields, **given},
            variant=FLAGS.variant,
        )
        for seed in FLAGS.seeds
        for method in methods
    ]


def keep_compiled(folder: pathlib.Path) -> None:
    """Lets JAX find its compiled steps again: for other seeds, and after a kill."""
    if keras.backend.backend() != "jax":
        return
    import jax

    if not jax.config.jax_compilation_cache_dir:  # An environment variable sets it.
        jax.config.update("jax_compilation_cache_dir", str(folder))


def main(argv: list[str]) -> int:
    """Runs the cells that are missing, and writes the table after each."""
    if len(argv) > 1:
        raise app.UsageError(f"Received {argv[1:]}; expected flags only: --name=value.")
    limit = FLAGS.time_limit_s
    deadline = float("inf") if limit is None else time.monotonic() + limit
    names = chosen(FLAGS.augmentation)
    if FLAGS.augmentation and FLAGS.schedule == "paper":
        raise app.UsageError(
            f"Received --schedule=paper --augmentation={','.join(names)}; expected one "
            "of both: that schedule has each paper's own augmentation."
        )
    name, preset = named_preset(FLAGS.preset, FLAGS.model, FLAGS.schedule, names)
    if FLAGS.checkpoint_every:
        preset = dataclasses.replace(preset, checkpoint_every=FLAGS.checkpoint_every)
    place = pathlib.Path("selection" if FLAGS.select else "", name)
    results = pathlib.Path(FLAGS.results_dir).expanduser() / place
    work = pathlib.Path(FLAGS.work_dir).expanduser()
    if not FLAGS.table:
        todo = cells(preset)
        keep_compiled(work / "jax_cache")
        grid = Grid(
            preset_name=FLAGS.preset,
            data=tuple(read_data(preset, FLAGS.data_dir, FLAGS.select)),
            results=results,
            work=work / place,
            select=FLAGS.select,
            deadline=deadline,
            augment_on=FLAGS.augment_on or default_place(),
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
