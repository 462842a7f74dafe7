"""`compare`: reports of several runs side by side, with differences between them."""

import dataclasses
import os
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from keras_selfdistill.paired import sign_flip_p
from keras_selfdistill.report import Report, report
from keras_selfdistill.report_view import WIDTH, csv_of, draw
from keras_selfdistill.table import Table

_NUMBERS = (
    "accuracy",
    "absolute_error",
    "loss",
    "calibration_error",
    "share",
    "milliseconds",
)


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

    def plot(self, path: str | os.PathLike | None = None) -> Any:
        """Draw mean accuracy (of a regression, the error) against multiply-adds.

        Args:
            path: File to write.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            ImportError: Matplotlib is not installed.
        """
        return draw_runs(self, path)
