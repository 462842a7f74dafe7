"""What a training step of each method takes, over the plain base's."""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable

import keras

from accuracy_grid.methods import METHODS, TEACHERS, Cell, build_plain
from accuracy_grid.presets import halves
from accuracy_grid.training import batches, build_optimizer, count_batches
from shared import cifar100
from shared.augmentation import default_place
from shared.environment import accelerators


def trainers(
    cell: Cell, train: cifar100.Split, steps: int
) -> list[tuple[Callable[[], None], float]]:
    """Returns what trains the networks of a method, each for some steps at a call.

    With each is the share of the epochs in which it is trained.
    """
    keras.utils.set_random_seed(cell.seed)
    method = METHODS[cell.method]
    endless = dataclasses.replace(cell.preset, epochs=sys.maxsize)
    drawn_for = dataclasses.replace(cell, preset=endless)

    def trainer(model: keras.Model, prepare: Callable | None) -> Callable[[], None]:
        place = "host" if method.mixes_images else default_place()
        drawn = batches(train, drawn_for, prepare, first_epoch=0, augment_on=place)

        def run() -> None:
            for _ in range(steps):
                model.train_on_batch(*next(drawn))

        return run

    def optimizer() -> keras.optimizers.Optimizer:
        return build_optimizer(cell.preset, count_batches(train, cell.preset))

    teacher, found, share = None, [], 1.0
    if method.taught:
        deeper = TEACHERS[cell.preset.model]
        # One is trained, its like teaches: a `Distiller` freezes what it is given.
        teacher, trained = (
            build_plain(cell, optimizer(), model=deeper, logits=True) for _ in range(2)
        )
        found.append((trainer(trained, None), 1.0))
    if method.base_first:
        of_base, of_all = (half.epochs for half in halves(cell.preset))
        share = of_all / (of_base + of_all)
        found.append((trainer(build_plain(cell, optimizer()), None), 1 - share))
    prepare = method.prepare(cell) if method.prepare else None
    student = method.build(cell, optimizer(), teacher=teacher)
    return [*found, (trainer(student, prepare), share)]


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
            spent[method] = 0.0
            for run, share in its_runs:
                start = clock()
                run()
                spent[method] += share * (clock() - start)
        times.append(spent)
    found = {}
    for method in runs:
        # The first round compiles.
        values = [spent[method] / spent["plain"] for spent in times[1:]]
        median = statistics.median(values)
        found[method] = {"median": median, "min": min(values), "max": max(values)}
    return found
