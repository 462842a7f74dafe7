"""`compare`: reports of several runs side by side, with differences between them."""

import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from keras_selfdistill.evaluation.significance import sign_flip_p
from keras_selfdistill.reporting.comparison_result import Comparison, Line, Summary
from keras_selfdistill.reporting.report import report
from keras_selfdistill.reporting.report_result import PLAIN, Report

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
    runs: Mapping[str, Any],
    data: Any = None,
    *,
    task: str | None = None,
    batch_size: int = 32,
    latency_batch_size: int = 1,
    repeats: int = 20,
    verbose: int = 1,
) -> Comparison:
    """Put runs side by side, with differences to the first.

    Each exit is compared with the same exit of the first run, the first with the first
    and so on, or with its final exit where it has none. Where runs have several seeds,
    in the same order, the means' difference comes with an exact paired test,
    `paired.sign_flip_p`: no fewer than six seeds can show a difference at 5 % by it.

    Args:
        runs: By name, a model as `report` takes it, or a `Report`, or a list of those,
            one for each seed.
        data: As for `report`, but readable several times; not needed where all runs
            are reports.
        task: As for `report`, like what follows.
        batch_size: Samples at once.
        latency_batch_size: Samples in each timed call.
        repeats: Timed calls.
        verbose: 0 for silence, else progress bars.

    Raises:
        TypeError: `runs` is no mapping.
        ValueError: There is no run, a run has no seeds or seeds with different exits;
            the reports are of different tasks or samples; or data is missing or can
            be read only once.

    Example:
        `print(ksd.compare({"plain": plain, "byot": [seed_0, seed_1]}, test))`
    """
    if not isinstance(runs, Mapping):
        raise TypeError(
            f"Runs need names. Received: runs of type {type(runs).__name__}. Expected: "
            'a dict such as {"plain": model, "byot": [model, model]}.'
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


def _reports(name, found, data, options):
    """Yield the report of each seed, under its name where there is a progress bar."""
    for number, each in enumerate(found, start=1):
        if isinstance(each, Report):
            yield each
            continue
        if options["verbose"]:
            print(f"{name}, {number} of {len(found)}")
        yield report(each, data, **options)


def _check_data(data, models):
    if models and data is None:
        raise ValueError(
            "Models are compared on data. Received: data=None. Expected: as for "
            "`report`, e.g. (x_test, y_test)."
        )
    if models > 1 and isinstance(data, Iterator):
        raise ValueError(
            f"Every model reads the data. Received: {type(data).__name__}, which can "
            f"be read once, for {models} models. Expected: arrays or a data set."
        )


def _check_reports(reports):
    every = [each for found in reports.values() for each in found]
    kinds = {(each.task, each.samples) for each in every}
    if len(kinds) > 1:
        raise ValueError(
            "Reports must be of one task and of the same samples. Received: "
            f"{sorted(kinds)}."
        )
    for name, found in reports.items():
        exits = {tuple(_exits(each)) for each in found}
        if len(exits) > 1:
            raise ValueError(
                f"All seeds of a run must have the same exits. Received: run {name!r} "
                f"with {sorted(exits)}."
            )


def _lines(reports):
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


def _exits(found):
    # A plain base that a report was given is no part of the run.
    return [row.name for row in found.rows if row.name != PLAIN]


def _depth(name):
    """Return a key that sorts exits from shallow to deep, others behind them.

    `exit_01` of ten exits and `exit_1` of three have the same.
    """
    stem, _, number = name.rpartition("_")
    if stem == "exit" and number.isdigit():
        return 0, int(number), ""
    return (1 if name == "final" else 2), 0, name


def _summary(number, rows, others):
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


def _deviation(values):
    # `statistics.stdev` fails where a value is NaN.
    finite = all(map(math.isfinite, values))
    return statistics.stdev(values) if finite else math.nan
