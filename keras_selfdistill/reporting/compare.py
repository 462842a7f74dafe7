"""`compare`: reports of several runs, with the differences between them."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import keras

from keras_selfdistill.evaluation.significance import sign_flip_p
from keras_selfdistill.reporting.comparison_result import Comparison, Line, Summary
from keras_selfdistill.reporting.report import report
from keras_selfdistill.reporting.report_result import PLAIN, Report, Row
from keras_selfdistill.utils.type_aliases import Data

Run: TypeAlias = keras.Model | Report
"""One seed of a run."""
_NUMBERS = (
    "accuracy",
    "absolute_error",
    "loss",
    "calibration_error",
    "macs_ratio",
    "milliseconds",
)
_TESTED = ("accuracy", "absolute_error", "loss", "calibration_error")


def compare(
    runs: Mapping[str, Run | Sequence[Run]],
    data: Data = None,
    *,
    task: str | None = None,
    batch_size: int = 32,
    latency_batch_size: int = 1,
    repeats: int = 20,
    verbose: int = 1,
) -> Comparison:
    """Compare runs exit by exit, with the differences to the first run.

    Each exit is compared with the exit of the same number in the first run, or with
    the final exit if the first run has no such exit. If the runs have several seeds, in
    the same order, the difference of the means comes with an exact paired test
    (`evaluation.significance.sign_flip_p`), which needs at least six seeds to show a
    difference at the 5 % level.

    Args:
        runs: Mapping of names to models as `report` takes them, to `Report` objects, or
            to lists of these with one item per seed.
        data: Data as `report` takes it, but readable several times. Not needed if all
            runs are reports.
        task: Task of plain models, as in `report`.
        batch_size: Number of samples per batch.
        latency_batch_size: Number of samples in each timed call.
        repeats: Number of timed calls.
        verbose: 0 for no output, 1 for progress bars.

    Returns:
        A `Comparison`, which prints as a table.

    Raises:
        TypeError: `runs` is not a mapping.
        ValueError: There is no run, a run has no seeds, or its seeds have different
            exits; the reports have different tasks or numbers of samples; or `data`
            is missing or can be read only once.

    Example:
        `print(ksd.compare({"plain": plain, "byot": [seed_0, seed_1]}, test))`
    """
    if not isinstance(runs, Mapping):
        raise TypeError(
            f"`runs` must be a mapping. Received: runs of type {type(runs).__name__}. "
            'Expected: a dict such as {"plain": model, "byot": [model, model]}.'
        )
    seeds = {
        name: list(given) if isinstance(given, (list, tuple)) else [given]
        for name, given in runs.items()
    }
    given = [each for found in seeds.values() for each in found]
    if not seeds or not all(seeds.values()):
        raise ValueError(
            f"Every run needs a model or a report. Received: runs={dict(runs)!r:.200}."
        )
    _check_data(data, sum(not isinstance(each, Report) for each in given))
    options: dict[str, Any] = {
        "task": task,
        "batch_size": batch_size,
        "latency_batch_size": latency_batch_size,
        "repeats": repeats,
        "verbose": verbose,
    }
    reports = {
        name: tuple(_reports(name, found, data, options))
        for name, found in seeds.items()
    }
    _check_reports(reports)
    return Comparison(reports, tuple(_lines(reports)))


def _reports(
    name: str, found: Sequence[Run], data: Data, options: Mapping[str, Any]
) -> Iterator[Report]:
    """Yield the report of each seed, and print the run's name above progress bars."""
    for number, each in enumerate(found, start=1):
        if isinstance(each, Report):
            yield each
            continue
        if options["verbose"]:
            print(f"{name}, {number} of {len(found)}")
        yield report(each, data, **options)


def _check_data(data: Data, models: int) -> None:
    if models and data is None:
        raise ValueError(
            "Comparing models needs data. Received: data=None. Expected: data as "
            "`report` takes it, e.g. (x_test, y_test)."
        )
    if models > 1 and isinstance(data, Iterator):
        raise ValueError(
            f"Every model reads the data. Received: {type(data).__name__}, which can "
            f"be read only once, for {models} models. Expected: arrays or a dataset."
        )


def _check_reports(reports: Mapping[str, Sequence[Report]]) -> None:
    every = [each for found in reports.values() for each in found]
    kinds = {(each.task, each.samples) for each in every}
    if len(kinds) > 1:
        raise ValueError(
            "Reports must have the same task and number of samples. Received: "
            f"{sorted(kinds)}. Expected: reports on the same data."
        )
    for name, found in reports.items():
        exits = {tuple(_exits(each)) for each in found}
        if len(exits) > 1:
            raise ValueError(
                f"All seeds of a run must have the same exits. Received: run {name!r} "
                f"with {sorted(exits)}."
            )


def _lines(reports: Mapping[str, Sequence[Report]]) -> Iterator[Line]:
    names = {
        run: {_depth(name): name for name in _exits(found[0])}
        for run, found in reports.items()
    }
    first = next(iter(reports))
    for depth in sorted(set().union(*names.values())):
        for run, found in reports.items():
            if depth not in names[run]:
                continue
            exit_name, other = names[run][depth], names[first].get(depth, "final")
            against = None if (run, exit_name) == (first, other) else (first, other)
            rows = [each[exit_name] for each in found]
            others = [each[other] for each in reports[first]] if against else []
            numbers = {
                number: _summary(number, rows, others)
                for number in _NUMBERS
                if all(getattr(row, number) is not None for row in rows)
            }
            yield Line(exit_name, run, len(found), against, numbers)


def _exits(found: Report) -> list[str]:
    # The plain base of a report is not an exit of the run.
    return [row.name for row in found.rows if row.name != PLAIN]


def _depth(name: str) -> tuple[int, int, str]:
    """Return a sort key: exits from shallow to deep, then the final exit and others.

    `exit_01` of ten exits and `exit_1` of three exits have the same key.
    """
    stem, _, number = name.rpartition("_")
    if stem == "exit" and number.isdigit():
        return 0, int(number), ""
    return (1 if name == "final" else 2), 0, name


def _summary(number: str, rows: Sequence[Row], others: Sequence[Row]) -> Summary:
    values = [getattr(row, number) for row in rows]
    against = [getattr(row, number) for row in others]
    deviation = _deviation(values) if len(values) > 1 else None
    difference, p = None, None
    if against and None not in against:
        difference = statistics.mean(values) - statistics.mean(against)
        if len(values) == len(against) > 1 and number in _TESTED:
            pairs = zip(values, against, strict=True)
            p = sign_flip_p([one - other for one, other in pairs])
    return Summary(statistics.mean(values), deviation, difference, p)


def _deviation(values: Sequence[float]) -> float:
    # `statistics.stdev` fails where a value is NaN.
    finite = all(map(math.isfinite, values))
    return statistics.stdev(values) if finite else math.nan
