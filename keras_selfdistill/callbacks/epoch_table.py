"""`EpochTable`: the logs of every epoch as a table of exits."""

import textwrap
from collections.abc import Iterable, Mapping

import keras

from keras_selfdistill.training.logs.log_names import (
    LogName,
    exits_in_order,
    parse_log_names,
)
from keras_selfdistill.utils.table import Table
from keras_selfdistill.utils.type_aliases import Logs

_COLUMNS = 100  # Of a terminal.


class EpochTable(keras.callbacks.Callback):
    """Print a table of all exits after each epoch.

    Use it with `fit(verbose=0)`, or below the progress bar.

    Example:
        >>> logs = {"loss": 1.5, "nonfinite_steps": 0.0}
        >>> logs |= {"accuracy": 0.6, "exit_1_accuracy": 0.5}
        >>> print(epoch_table(1, logs))
        epoch 1: loss 1.5000, nonfinite_steps 0
                    accuracy
        exit_1        0.5000
        final         0.6000
    """

    _text = ""

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Print the table of the previous epoch, below its progress bar."""
        self._print()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Create the table; Keras finishes its progress bar after this."""
        self._text = epoch_table(epoch + 1, logs or {})

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Print the last table."""
        self._print()

    def _print(self) -> None:
        if self._text:
            print(self._text, flush=True)
            self._text = ""


def epoch_table(epoch: int, logs: Mapping[str, float]) -> str:
    """Return the logs of an epoch as lines of at most 100 columns.

    Args:
        epoch: Number of the epoch, from 1.
        logs: Logs as callbacks get them.
    """
    names = parse_log_names(logs)
    whole = {name: logs[key] for key, name in names.items() if not name.source}
    parts = [_both(quantity, whole) for quantity in _quantities(whole)]
    lines = textwrap.wrap(f"epoch {epoch}: {', '.join(parts)}", _COLUMNS)
    exits = exits_in_order(names.values())
    sections = sorted({name.source for name in names.values()} - {*exits, ""})
    for sources in (exits, sections):
        lines += _table(sources, {name: logs[key] for key, name in names.items()})
    return "\n".join(lines)


def _quantities(values: Mapping[LogName, float]) -> list[str]:
    """Return the quantities among the names, the loss first."""
    found = dict.fromkeys(name.quantity for name in values)
    return sorted(found, key=lambda quantity: quantity != "loss")


def _both(quantity: str, values: Mapping[LogName, float]) -> str:
    """Return a quantity of the training data, with that of the validation data."""
    train, validation = (values.get(LogName(v, "", quantity)) for v in (False, True))
    shown = "{:.0f}".format if quantity == "nonfinite_steps" else _number
    text = f"{quantity} {'–' if train is None else shown(train)}"
    return text if validation is None else f"{text} (val {shown(validation)})"


def _table(sources: Iterable[str], values: Mapping[LogName, float]) -> list[str]:
    """Return one row for each source, in blocks that fit the width."""
    sources = list(sources)
    columns = dict.fromkeys(
        (name.validation, name.quantity) for name in values if name.source in sources
    )
    if not columns:
        return []
    headings = [""]
    # As wide for sections as for exits, so that numbers stand below each other.
    rows = [[f"{source:<10}"] for source in sources]
    for validation, quantity in sorted(columns, key=lambda each: (each[1], each[0])):
        headings.append(f"val_{quantity}" if validation else quantity)
        for row, source in zip(rows, sources, strict=True):
            value = values.get(LogName(validation, source, quantity))
            row.append("" if value is None else _number(value))
    blocks = Table(headings, rows).blocks(_COLUMNS)
    return [line for block in blocks for line in block.text().splitlines()]


def _number(value: float) -> str:
    value = float(value)
    plain = value == 0 or 1e-3 <= abs(value) < 1e5
    return f"{value:.4f}" if plain else f"{value:.3e}"
