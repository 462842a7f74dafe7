"""`Report`, the result of `report`, as text, Markdown, CSV, HTML and a plot."""

import dataclasses
from typing import Any

from keras_selfdistill.reporting.report_view import csv_of, table_of
from keras_selfdistill.utils.table import elided
from keras_selfdistill.utils.type_aliases import Axes, Figure
from keras_selfdistill.visualization import plot_accuracy_vs_compute

PLAIN = "plain base"


@dataclasses.dataclass(frozen=True)
class Row:
    """Measurements of one exit; `None` where a quantity does not apply or is unknown.

    Args:
        name: Name of the exit, `"ensemble"` or `"plain base"`.
        accuracy: Fraction of correct predictions; of labels at a threshold of 0.5 for
            multilabel and binary tasks.
        top_5: Fraction of samples whose class is among the five most probable, for
            more than five classes.
        loss: Mean crossentropy; mean squared error for regression.
        calibration_error: Expected calibration error; see
            `evaluation.reliability.Reliability`.
        agreement: Fraction of predictions equal to the final exit's.
        absolute_error: Mean absolute error, for regression.
        parameters: Number of weights of the deployed model.
        macs: Multiply-adds for one sample of the layers whose cost is known; for a
            sample of the first batch if the model has unknown sizes.
        macs_ratio: Multiply-adds as a fraction of the base's.
        unknown: Names of the layers whose cost is unknown.
        milliseconds: Median latency of a call in milliseconds.
        bytes: Size of the `.keras` file in bytes.
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
    """Quality and cost of every exit; prints as a table.

    Args:
        model: Name of the base.
        task: Name of the task, such as `"multiclass"`.
        samples: Number of samples.
        rows: Rows of the plain base, if there is one, of the exits, shallow to deep,
            and of the ensemble.
        repeats: Number of latency measurements per exit.
        batch_size: Number of samples in a call whose latency was measured.
        device: Backend and device, such as `"tensorflow on CPU:0"`.
        heads: The exits' heads, where they are not the recipe's own: narrowed so that
            they add little to the base's multiply-adds, or chosen by the user.
    """

    model: str
    task: str
    samples: int
    rows: tuple[Row, ...]
    repeats: int
    batch_size: int
    device: str
    heads: str = ""

    def __getitem__(self, name: str) -> Row:
        """Return the row of one exit.

        Raises:
            KeyError: No row has this name.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"{name!r}. Expected one of {[row.name for row in self.rows]}.")

    def __repr__(self) -> str:
        """Return the model, the number of samples and the names of the rows."""
        names = elided(repr(row.name) for row in self.rows)
        return f"Report({self.model!r}, {self.samples:,} samples, rows: [{names}])"

    def __str__(self) -> str:
        """Return `render()`."""
        return self.render()

    def render(self) -> str:
        """Return the table for a terminal, at most 100 columns wide."""
        return f"{self._title()}\n\n{table_of(self).text()}"

    def to_markdown(self) -> str:
        """Return the table in Markdown."""
        return f"**{self._title()}**\n\n{table_of(self).markdown()}"

    def _repr_html_(self) -> str:
        return table_of(self).html(self._title())

    def to_csv(self) -> str:
        """Return one line for each row, with unrounded numbers."""
        return csv_of([dataclasses.asdict(row) for row in self.rows])

    def to_dict(self) -> dict[str, Any]:
        """Return all results as JSON-compatible types."""
        found = dataclasses.asdict(self)
        rows = [{**row, "unknown": list(row["unknown"])} for row in found["rows"]]
        return {**found, "rows": rows}

    def plot(self, *, ax: Axes = None) -> Figure:
        """Draw accuracy, or the mean absolute error, against multiply-adds.

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

    def _title(self) -> str:
        return f"{self.model}: {self.task}, {self.samples:,} samples"
