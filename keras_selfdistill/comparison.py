"""`compare`: reports of several runs side by side, with differences between them."""

import dataclasses
import statistics
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from keras_selfdistill.paired import sign_flip_p
from keras_selfdistill.report_view import WIDTH, csv_of
from keras_selfdistill.reporting import PLAIN, Report, report
from keras_selfdistill.table import Table

_NUMBERS = (
    "accuracy",
    "absolute_error",
    "loss",
    "calibration_error",
    "share",
    "milliseconds",
)
_TESTED = ("accuracy", "absolute_error", "loss", "calibration_error")


@dataclasses.dataclass(frozen=True)
class Summary:
    """One number of one exit, over the seeds of a run.

    Args:
        mean: Over seeds.
        deviation: Sample standard deviation; `None` of one seed.
        difference: Of the mean to that of the run compared with; `None` of that run
            itself.
        p: Of `paired.sign_flip_p` over pairs of seeds; `None` where there are no
            pairs.
    """

    mean: float
    deviation: float | None
    difference: float | None
    p: float | None


@dataclasses.dataclass(frozen=True)
class Line:
    """One exit of one run.

    Args:
        exit: Name of the exit.
        run: Name of the run.
        seeds: How many there are.
        against: The run and exit that it is compared with, `None` of that itself.
        numbers: By name, such as `"accuracy"`; those that are known.
    """

    exit: str
    run: str
    seeds: int
    against: tuple[str, str] | None
    numbers: dict[str, Summary]


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """Runs side by side, exit by exit; printed, a table.

    Args:
        reports: By name of the run, one for each seed.
        lines: By exit, then by run.
    """

    reports: dict[str, tuple[Report, ...]]
    lines: tuple[Line, ...]

    def __repr__(self) -> str:
        """Return what is compared, in short."""
        seeds = {name: len(each) for name, each in self.reports.items()}
        return f"Comparison(seeds of each run: {seeds})"

    def __str__(self) -> str:
        """Return what `render` does."""
        return self.render()

    def render(self) -> str:
        """Return the table for a terminal, at most 100 columns wide."""
        return f"{self._title()}\n\n{self._table().text()}"

    def to_markdown(self) -> str:
        """Return the table in Markdown."""
        return f"**{self._title()}**\n\n{self._table().markdown()}"

    def _repr_html_(self):
        return self._table().html(self._title())

    def to_csv(self) -> str:
        """Return one line for each number of each exit of each run, unrounded."""
        return csv_of(
            [
                {
                    "exit": line.exit,
                    "run": line.run,
                    "seeds": line.seeds,
                    "against": line.against or (),
                    "number": name,
                    **dataclasses.asdict(summary),
                }
                for line in self.lines
                for name, summary in line.numbers.items()
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all that is known, of plain types, with the reports of every seed."""
        lines = [
            {**dataclasses.asdict(line), "against": line.against and list(line.against)}
            for line in self.lines
        ]
        reports = {
            name: [each.to_dict() for each in found]
            for name, found in self.reports.items()
        }
        return {"lines": lines, "reports": reports}

    def _title(self):
        first = next(iter(self.reports.values()))[0]
        runs = ", ".join(self.reports)
        return f"{runs}: {first.task}, {first.samples:,} samples"

    def _table(self):
        main = _main_number(self)
        headings = ["exit", "run", "seeds", main.replace("_", " "), "difference"]
        rows = [_cells(line, main) for line in self.lines]
        return Table(
            [*headings, "p", "loss", "ECE", "share"], rows, _notes(self), names=2
        )


def compare(
    runs: Mapping[str, Any], data: Any = None, *, verbose: int = 1, **options: Any
) -> Comparison:
    """Put runs side by side, with differences to the first.

    Each exit is compared with the same exit of the first run, or with its final exit
    where it has none. Where runs have several seeds, in the same order, the means'
    difference comes with an exact paired test, `paired.sign_flip_p`: no fewer than six
    seeds can show a difference at 5 % by it.

    Args:
        runs: By name, a model as `report` takes it, or a `Report`, or a list of those,
            one for each seed.
        data: As for `report`, but readable several times; not needed where all runs
            are reports.
        verbose: 0 for silence, else progress bars.
        **options: As for `report`.

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
    reports = {
        name: tuple(
            each
            if isinstance(each, Report)
            else report(each, data, verbose=verbose, **options)
            for each in found
        )
        for name, found in seeds.items()
    }
    _check_reports(reports)
    return Comparison(reports, tuple(_lines(reports)))


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
    names = {name for found in reports.values() for name in _exits(found[0])}
    first = next(iter(reports))
    of_first = _exits(reports[first][0])
    for exit_name in sorted(names, key=_depth):
        for run, found in reports.items():
            if exit_name not in _exits(found[0]):
                continue
            other = exit_name if exit_name in of_first else "final"
            against = None if (run, exit_name) == (first, other) else (first, other)
            rows = [each[exit_name] for each in found]
            others = [each[other] for each in reports[first]] if against else []
            numbers = {
                number: _summary(number, rows, others)
                for number in _NUMBERS
                if getattr(rows[0], number) is not None
            }
            yield Line(exit_name, run, len(found), against, numbers)


def _exits(found):
    # A plain base that a report was given is no part of the run.
    return [row.name for row in found.rows if row.name != PLAIN]


def _depth(name):
    """Return a key that sorts exits from shallow to deep, others behind them."""
    stem, _, number = name.rpartition("_")
    if stem == "exit" and number.isdigit():
        return 0, int(number), name
    return (1 if name == "final" else 2), 0, name


def _summary(number, rows, others):
    values = [getattr(row, number) for row in rows]
    against = [getattr(row, number) for row in others]
    deviation = statistics.stdev(values) if len(values) > 1 else None
    difference, p = None, None
    if against and None not in against:
        difference = statistics.mean(values) - statistics.mean(against)
        if len(values) == len(against) > 1 and number in _TESTED:
            pairs = zip(values, against, strict=True)
            p = sign_flip_p([one - other for one, other in pairs])
    return Summary(statistics.mean(values), deviation, difference, p)


def _main_number(comparison):
    known = comparison.lines[0].numbers
    return "accuracy" if "accuracy" in known else "absolute_error"


def _cells(line, main):
    summary = line.numbers[main]
    scale, unit = (100, "%") if main == "accuracy" else (1, "")
    digits = 2 if main == "accuracy" else 4
    spread = (
        ""
        if summary.deviation is None
        else f" ± {scale * summary.deviation:.{digits}f}"
    )
    difference = summary.difference
    shown = {
        number: line.numbers[number].mean if number in line.numbers else None
        for number in ("loss", "calibration_error", "share")
    }
    formats = ("{:.4f}", "{:.2%}", "{:.1%}")
    return [
        line.exit,
        textwrap.shorten(line.run, 24, placeholder="…"),
        str(line.seeds),
        f"{scale * summary.mean:.{digits}f}{spread}{unit and ' ' + unit}",
        "" if difference is None else f"{scale * difference:+.{digits}f}",
        "" if summary.p is None else f"{summary.p:.3f}",
        *(
            "–" if value is None else form.format(value)
            for form, value in zip(formats, shown.values(), strict=True)
        ),
    ]


def _notes(comparison):
    first = next(iter(comparison.reports))
    points = " in percentage points" if _main_number(comparison) == "accuracy" else ""
    found = [
        f"difference:{points} to the same exit of {first!r}, or to its final exit "
        "where it has no such exit."
    ]
    if any(line.seeds > 1 for line in comparison.lines):
        found.insert(0, "Means over seeds, ± sample standard deviation.")
    tested = [
        line.seeds
        for line in comparison.lines
        for summary in line.numbers.values()
        if summary.p is not None
    ]
    if tested:
        pairs = max(tested)
        found.append(
            f"p: exact sign-flip test over {pairs} pairs of seeds (two-sided), which "
            f"cannot go below {2 / 2**pairs:.2g}"
            + (": too few pairs to show a difference at 5 %." if pairs < 6 else ".")
        )
    found.append("ECE: expected calibration error. share: of the base's multiply-adds.")
    return [line for note in found for line in textwrap.wrap(note, WIDTH)]
