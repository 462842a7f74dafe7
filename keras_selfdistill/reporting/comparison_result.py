"""`Comparison`, the result of `compare`, as text, Markdown, CSV and HTML."""

import dataclasses
import textwrap
from typing import Any

from keras_selfdistill.evaluation.significance import least_p
from keras_selfdistill.reporting.report_result import Report
from keras_selfdistill.reporting.report_view import WIDTH, csv_of
from keras_selfdistill.utils.table import Table, elided


@dataclasses.dataclass(frozen=True)
class Summary:
    """One quantity of one exit, over the seeds of a run.

    Args:
        mean: Mean over seeds.
        deviation: Sample standard deviation over seeds; `None` for one seed.
        difference: Difference of the mean to that of the reference run; `None` for the
            reference itself.
        p: p-value of `evaluation.significance.sign_flip_p` over pairs of seeds; `None`
            without pairs.
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
        seeds: Number of seeds.
        against: Run and exit of the reference; `None` for the reference itself.
        numbers: Mapping of the names of known quantities, such as `"accuracy"`, to
            their summaries.
    """

    exit: str
    run: str
    seeds: int
    against: tuple[str, str] | None
    numbers: dict[str, Summary]


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """Runs compared exit by exit; prints as a table.

    Args:
        reports: Mapping of run names to reports, one for each seed.
        lines: Results sorted by exit, then by run.
    """

    reports: dict[str, tuple[Report, ...]]
    lines: tuple[Line, ...]

    def __repr__(self) -> str:
        """Return the names of the runs and their numbers of seeds."""
        seeds = elided(f"{name!r}: {len(each)}" for name, each in self.reports.items())
        return f"Comparison(seeds of each run: {{{seeds}}})"

    def __str__(self) -> str:
        """Return what `render` does."""
        return self.render()

    def render(self) -> str:
        """Return the table for a terminal, at most 100 columns wide."""
        return f"{textwrap.fill(self._title(), WIDTH)}\n\n{self._table().text()}"

    def to_markdown(self) -> str:
        """Return the table in Markdown."""
        return f"**{self._title()}**\n\n{self._table().markdown()}"

    def _repr_html_(self) -> str:
        return self._table().html(self._title())

    def to_csv(self) -> str:
        """Return one line for each quantity of each exit of each run, unrounded."""
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
        """Return all results and reports as JSON-compatible types."""
        lines = [
            {**dataclasses.asdict(line), "against": line.against and list(line.against)}
            for line in self.lines
        ]
        reports = {
            name: [each.to_dict() for each in found]
            for name, found in self.reports.items()
        }
        return {"lines": lines, "reports": reports}

    def _title(self) -> str:
        first = next(iter(self.reports.values()))[0]
        runs = ", ".join(self.reports)
        return f"{runs}: {first.task}, {first.samples:,} samples"

    def _table(self) -> Table:
        main = _main_number(self)
        cells = [_cells(line, main) for line in self.lines]
        # Columns without any value, such as "p" without pairs of seeds, are left out.
        headings = [name for name in cells[0] if any(line[name] for line in cells)]
        rows = [[line[name] for name in headings] for line in cells]
        return Table(headings, rows, _notes(self), names=2)


def _main_number(comparison: "Comparison") -> str:
    known = comparison.lines[0].numbers
    return "accuracy" if "accuracy" in known else "absolute_error"


def _cells(line: Line, main: str) -> dict[str, str]:
    """Return the texts of one row by column heading."""
    summary = line.numbers[main]
    scale, unit = (100, "%") if main == "accuracy" else (1, "")
    digits = 2 if main == "accuracy" else 4
    spread = (
        ""
        if summary.deviation is None
        else f" ± {scale * summary.deviation:.{digits}f}"
    )
    difference = summary.difference

    def mean(number: str, form: str) -> str:
        known = line.numbers.get(number)
        return "–" if known is None else form.format(known.mean)

    return {
        "exit": line.exit,
        "run": line.run if len(line.run) <= 24 else f"{line.run[:23]}…",
        "seeds": str(line.seeds),
        main.replace("_", " "): f"{scale * summary.mean:.{digits}f}{spread}{unit}",
        "difference": "" if difference is None else f"{scale * difference:+.{digits}f}",
        "p": "" if summary.p is None else f"{summary.p:.3f}",
        "loss": mean("loss", "{:.4f}"),
        "ECE": mean("calibration_error", "{:.2%}"),
        "MACs ratio": mean("macs_ratio", "{:.1%}"),
    }


def _notes(comparison: "Comparison") -> list[str]:
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
            f"p: sign-flip test over {pairs} pairs of seeds (two-sided), which cannot "
            f"go below {least_p(pairs):.2g}"
            + (": too few pairs to show a difference at 5 %." if pairs < 6 else ".")
        )
    found.append("ECE: expected calibration error.")
    found.append("MACs ratio: multiply-adds over the base's.")
    return [line for note in found for line in textwrap.wrap(note, WIDTH)]
