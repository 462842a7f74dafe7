"""What a report holds, and its forms: text, Markdown, CSV, HTML, a picture."""

import dataclasses
from typing import Any

from keras_selfdistill.reporting.report_view import csv_of, table_of
from keras_selfdistill.visualization import plot_accuracy_vs_compute

PLAIN = "plain base"


@dataclasses.dataclass(frozen=True)
class Row:
    """What was found of one exit; `None` where that cannot be told.

    Args:
        name: The exit, `"ensemble"` or `"plain base"`.
        accuracy: Share of right answers: classes, or labels at a threshold of a half.
        top_5: Share of answers with the right class among the five likeliest; for more
            than five classes.
        loss: Mean crossentropy; of a regression, mean squared error.
        calibration_error: Expected calibration error; see `confidence.Reliability`.
        agreement: Share of answers that are the final exit's.
        absolute_error: Of a regression, its mean.
        parameters: Weights of the model that is deployed.
        macs: For one sample, of the layers whose cost is known; where the
            model leaves sizes open, for one of the first batch.
        macs_ratio: Of the base's multiply-adds; `None` where not known.
        unknown: Layers whose cost is not known.
        milliseconds: Median time of a call.
        bytes: Size of the `.keras` file.
    """

    name: str
    accuracy: float | None
    top_5: float | None
    loss: float | None
    calibration_error: float | None
    agreement: float | None
    absolute_error: float | None
    parameters: int | None
    macs: int | None
    macs_ratio: float | None
    unknown: tuple[str, ...]
    milliseconds: float | None
    bytes: int | None


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """How good every exit is and what it costs; printed, a table.

    Args:
        model: Name of the base.
        task: What it answers.
        samples: How many there were.
        rows: The plain base if given, the exits, shallow to deep, and the ensemble.
        repeats: How often latency was measured.
        batch_size: Samples in a call whose latency was measured.
        device: Where.
    """

    model: str
    task: str
    samples: int
    rows: tuple[Row, ...]
    repeats: int
    batch_size: int
    device: str

    def __getitem__(self, name: str) -> Row:
        """Return the row of one exit.

        Raises:
            KeyError: There is no such row.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"{name!r}. Expected one of {[row.name for row in self.rows]}.")

    def __repr__(self) -> str:
        """Return what it is of, in short."""
        names = [row.name for row in self.rows]
        return f"Report({self.model!r}, {self.samples:,} samples, rows: {names})"

    def __str__(self) -> str:
        """Return what `render` does."""
        return self.render()

    def render(self) -> str:
        """Return the table for a terminal, at most 100 columns wide."""
        return f"{self._title()}\n\n{table_of(self).text()}"

    def to_markdown(self) -> str:
        """Return the table in Markdown."""
        return f"**{self._title()}**\n\n{table_of(self).markdown()}"

    def _repr_html_(self):
        return table_of(self).html(self._title())

    def to_csv(self) -> str:
        """Return one line for each row, numbers unrounded."""
        return csv_of([dataclasses.asdict(row) for row in self.rows])

    def to_dict(self) -> dict[str, Any]:
        """Return all that is known, of plain types, such as `json.dumps` takes."""
        found = dataclasses.asdict(self)
        rows = [{**row, "unknown": list(row["unknown"])} for row in found["rows"]]
        return {**found, "rows": rows}

    def plot(self, *, ax: Any = None) -> Any:
        """Draw accuracy (of a regression, the mean error) against multiply-adds.

        Args:
            ax: Matplotlib axes to draw on.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            ImportError: Matplotlib is not installed.
        """
        key = "absolute_error" if self.task == "regression" else "accuracy"
        points = {
            row.name: (row.macs_ratio, getattr(row, key))
            for row in self.rows
            if row.macs_ratio is not None
        }
        figure = plot_accuracy_vs_compute(points, ax=ax)
        if self.task == "regression":
            (axes,) = figure.axes if ax is None else [ax]
            axes.set_ylabel("mean absolute error")
            axes.yaxis.set_major_formatter("{x:.3g}")
        return figure

    def _title(self):
        return f"{self.model}: {self.task}, {self.samples:,} samples"
