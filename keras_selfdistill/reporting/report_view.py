"""The table of a report: columns, number formats and notes."""

import textwrap
from typing import Any

from keras_selfdistill.utils.table import Table, compact, csv_text

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
    "macs": ("MACs", None),
    "macs_ratio": ("MACs ratio", "{:.1%}"),
    "milliseconds": ("ms", None),
    "bytes": ("size", None),
}
_MEANINGS = {
    "top_5": "top-5: the class is among the five most probable.",
    "calibration_error": "ECE: expected calibration error: how far confidence is from "
    "accuracy, in 15 bins.",
    "agreement": "agrees: predictions equal to those of final.",
    "macs": "MACs: multiply-adds for one sample; MACs ratio: over the base's.",
    "bytes": "size: of the .keras file.",
}


def table_of(report: Any) -> Table:
    """Return the table of a `Report`, with the columns that have a value in any row.

    Args:
        report: A `Report`.
    """
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
    """Return rows as CSV, with tuples as names separated by spaces."""
    return csv_text(
        [
            {
                key: " ".join(value) if isinstance(value, tuple) else value
                for key, value in row.items()
            }
            for row in rows
        ]
    )


def _cell(row: Any, key: str) -> str:
    value = getattr(row, key)
    if value is None:
        return "–"
    template = _COLUMNS[key][1]
    if template:
        return template.format(value)
    if key == "milliseconds":
        return f"{value:.2f}" if value < 100 else f"{value:.0f}"
    shown = compact(value, "B" if key == "bytes" else "")
    return f"≥ {shown}" if key == "macs" and row.unknown else shown


def _notes(report: Any) -> list[str]:
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
    if report.heads:
        found.append(f"heads: {report.heads}.")
    unknown = sorted({name for row in report.rows for name in row.unknown})
    if unknown:
        found.append(f"≥: not counted, as unknown: {', '.join(unknown)}.")
    return [line for note in found for line in textwrap.wrap(note, WIDTH)]
