r"""Time of training, of each method over the plain base's, for the table of accuracy.

    KERAS_BACKEND=tensorflow python benchmarks/accuracy_time.py --preset=cpu

trains all methods by turns in one process, so that what else the machine does slows
them alike, with the batches of the accuracy benchmark. Writes
`<results_dir>/<preset>_time.json`, which `accuracy.py --table` shows: medians over
rounds, by the processor's time or, on an accelerator, by the clock. The time of `kd`
holds that of its teacher, which is trained for as many steps.
"""

import dataclasses
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import keras
from absl import app, flags

import keras_selfdistill as ksd
from accuracy_grid.methods import (
    METHODS,
    PRESETS,
    TEACHERS,
    Cell,
    build_plain,
    methods_of,
    named_preset,
)
from accuracy_grid.training import (
    augmented,
    batches,
    build_optimizer,
    cifar100,
    read_data,
)
from shared.environment import accelerators, origin
from shared.run_folder import write_json

FLAGS = flags.FLAGS


def trainers(cell: Cell, train: cifar100.Split, steps: int) -> list[Callable[[], None]]:
    """Returns what trains the networks of a method, each for some steps at a call."""
    keras.utils.set_random_seed(cell.seed)
    method = METHODS[cell.method]
    endless = dataclasses.replace(cell.preset, epochs=sys.maxsize)
    drawn_for = dataclasses.replace(cell, preset=endless)

    def trainer(model: keras.Model, prepare: Callable | None) -> Callable[[], None]:
        drawn = batches(train, drawn_for, prepare, first_epoch=0)

        def run() -> None:
            for _ in range(steps):
                model.train_on_batch(*next(drawn))

        return run

    def optimizer() -> keras.optimizers.Optimizer:
        return build_optimizer(cell.preset, augmented(train, cell).num_batches)

    teacher, found = None, []
    if method.taught:
        deeper = TEACHERS[cell.preset.model]
        # One is trained, its like teaches: a `Distiller` freezes what it is given.
        teacher, trained = (
            build_plain(cell, optimizer(), model=deeper, logits=True) for _ in range(2)
        )
        found.append(trainer(trained, None))
    prepare = method.prepare(cell) if method.prepare else None
    student = method.build(cell, optimizer(), teacher=teacher)
    return [*found, trainer(student, prepare)]


def ratios(
    cells: list[Cell], train: cifar100.Split, *, rounds: int, steps: int
) -> dict[str, dict[str, float]]:
    """Returns each method's time over that of `plain`: median and range of rounds."""
    clock = time.perf_counter if accelerators() else time.process_time
    runs = {cell.method: trainers(cell, train, steps) for cell in cells}
    times = []
    for _ in range(1 + rounds):
        spent = {}
        for method, its_runs in runs.items():
            start = clock()
            for run in its_runs:
                run()
            spent[method] = clock() - start
        times.append(spent)
    found = {}
    for method in runs:
        # The first round compiles.
        values = [spent[method] / spent["plain"] for spent in times[1:]]
        median = statistics.median(values)
        found[method] = {"median": median, "min": min(values), "max": max(values)}
    return found


def define_flags() -> None:
    """Defines the command line, which a test that imports this file does not want."""
    flags.DEFINE_enum("preset", "cpu", list(PRESETS), "Size of the experiment.")
    flags.DEFINE_enum(
        "model", None, list(ksd.networks.NETWORKS), "Instead of the preset's network."
    )
    flags.DEFINE_integer("rounds", 7, "Timed rounds.", lower_bound=1)
    flags.DEFINE_integer("steps", 3, "Steps of each method a round.", lower_bound=1)
    flags.DEFINE_string(
        "data_dir",
        "~/tensorflow_datasets",
        "Folder with CIFAR-100, as in examples/train_cifar100.py.",
    )
    flags.DEFINE_string("results_dir", "benchmarks/results", "Folder of the results.")


def main(argv: list[str]) -> None:
    """Times all methods, and writes the file."""
    if len(argv) > 1:
        raise app.UsageError(f"Received {argv[1:]}; expected flags only: --name=value.")
    name, preset = named_preset(FLAGS.preset, FLAGS.model)
    keras.config.set_dtype_policy(preset.dtype)
    cells = [
        Cell(preset=preset, method=method, seed=0, fields=METHODS[method].fields)
        for method in methods_of(preset)
    ]
    train = next(read_data(preset, FLAGS.data_dir, select=False))
    found = ratios(cells, train, rounds=FLAGS.rounds, steps=FLAGS.steps)
    content = {
        "time_over_plain": found,
        "settings": {
            "preset": FLAGS.preset,
            "model": preset.model,
            "rounds": FLAGS.rounds,
            "steps": FLAGS.steps,
            "backend": keras.backend.backend(),
        },
        **origin(),
    }
    path = pathlib.Path(FLAGS.results_dir).expanduser() / f"{name}_time.json"
    write_json(path, content)
    for method, value in found.items():
        print(f"{method:28} {'{median:.2f} ({min:.2f}–{max:.2f})'.format(**value)}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
