"""Reports as tables and pictures."""

import os
import textwrap
from collections.abc import Mapping
from typing import Any

from keras_selfdistill.table import Table, compact, csv_text

WIDTH = 100

_COLUMNS = {
    # Field of a row: heading and format.
    "accuracy": ("accuracy", "{:.2%}"),
    "top_5": ("top-5", "{:.2%}"),
    "absolute_error": ("abs. error", "{:.4f}"),
    "loss": ("loss", "{:.4f}"),
    "calibration_error": ("ECE", "{:.2%}"),
    "agreement": ("agrees", "{:.2%}"),
    "parameters": ("params", None),
    "multiply_adds": ("mult-adds", None),
    "share": ("share", "{:.1%}"),
    "milliseconds": ("ms", "{:.2f}"),
    "bytes": ("size", None),
}
_MEANINGS = {
    "top_5": "top-5: the right class is among the five likeliest.",
    "calibration_error": "ECE: expected calibration error: how far confidence is from "
    "accuracy, in 15 bins.",
    "agreement": "agrees: answers that are those of final.",
    "multiply_adds": "mult-adds: multiply-adds for one sample; share: of the base's.",
    "bytes": "size: of the .keras file.",
}


def table_of(report: Any) -> Table:
    """Return the table of a `Report`: the columns that any row has a value for."""
    shown = {
        key: look
        for key, look in _COLUMNS.items()
        if any(getattr(row, key) is not None for row in report.rows)
    }
    rows = [[row.name, *(_cell(row, key) for key in shown)] for row in report.rows]
    return Table(
        ["", *(heading for heading, _ in shown.values())], rows, _notes(report)
    )


def csv_of(rows: list[dict]) -> str:
    """Return rows as CSV, tuples as names behind each other."""
    return csv_text(
        [
            {
                key: " ".join(value) if isinstance(value, tuple) else value
                for key, value in row.items()
            }
            for row in rows
        ]
    )


def draw(
    points: Mapping[str, tuple[float, float]],
    what: str,
    path: str | os.PathLike | None = None,
) -> Any:
    """Draw what accuracy costs: exits in a line, other models beside it.

    Args:
        points: Share of the base's multiply-adds and accuracy, by name.
        what: `"accuracy"`, or what else stands in its place.
        path: File to write.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "A picture needs matplotlib, which is not installed. Run "
            "`python -m pip install matplotlib`; the numbers are in `.rows`."
        ) from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    exits = {name: at for name, at in points.items() if _is_exit(name)}
    axes.plot(*zip(*exits.values(), strict=True), "o-", color="#0072B2", label="exits")
    for name, at in exits.items():
        axes.annotate(name, at, (0, -16), textcoords="offset points", ha="center")
    looks = zip("sD^v", ("#D55E00", "#009E73", "#CC79A7", "black"), strict=True)
    others = [name for name in points if name not in exits]
    for name, (marker, color) in zip(others, looks, strict=False):
        axes.plot(
            *points[name], marker, ms=10, mfc="none", mec=color, mew=2, label=name
        )
    axes.set_xlabel("multiply-adds, as a share of the base's")
    axes.set_ylabel(what.replace("_", " "))
    axes.xaxis.set_major_formatter("{x:.0%}")
    if what == "accuracy":
        axes.yaxis.set_major_formatter("{x:.1%}")
    axes.margins(x=0.12, y=0.18)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    if path is not None:
        figure.savefig(path)
    return figure


def _is_exit(name):
    return name == "final" or name.startswith("exit_")


def _cell(row, key):
    value = getattr(row, key)
    if value is None:
        return "–"
    template = _COLUMNS[key][1]
    if template:
        return template.format(value)
    shown = compact(value, "B" if key == "bytes" else "")
    return f"≥ {shown}" if key == "multiply_adds" and row.unknown else shown


def _notes(report):
    found = [
        meaning
        for key, meaning in _MEANINGS.items()
        if any(getattr(row, key) is not None for row in report.rows)
    ]
    error = "squared error" if report.task == "regression" else "crossentropy"
    found.insert(0, f"loss: mean {error}.")
    if any(row.milliseconds is not None for row in report.rows):
        found.append(
            f"ms: median time of {report.repeats} calls of batch "
            f"{report.batch_size}, {report.device}."
        )
    unknown = sorted({name for row in report.rows for name in row.unknown})
    if unknown:
        found.append(f"≥: without layers of unknown cost: {', '.join(unknown)}.")
    return [line for note in found for line in textwrap.wrap(note, WIDTH)]
