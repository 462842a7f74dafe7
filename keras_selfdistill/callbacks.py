"""Callbacks for training a wrapper."""

import os
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from keras_selfdistill.distiller import SelfDistiller
from keras_selfdistill.log_names import LogName, exits_in_order, parse_log_names
from keras_selfdistill.resume import Resume

__all__ = ["EpochTable", "LabelWarmUp", "Resume", "TensorBoard"]

_COLUMNS = 100  # Of a terminal.


class LabelWarmUp(keras.callbacks.Callback):
    """Train with labels alone for the first epochs, then distil.

    Until then every term but the label loss counts, and is logged, as zero. The epoch
    is the one that `fit` counts, so a training that goes on with `initial_epoch` needs
    no more than the same callback.

    Args:
        epochs: Number of epochs with labels alone.

    Raises:
        ValueError: `epochs` is no integer of at least 0.
        TypeError: Another model than a `SelfDistiller` is trained.

    Example:
        >>> LabelWarmUp(epochs=5).epochs
        5
    """

    def __init__(self, epochs: int):
        super().__init__()
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
            raise ValueError(
                "LabelWarmUp.epochs must be an integer of at least 0. Received: "
                f"epochs={epochs!r}."
            )
        self.epochs = epochs

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuse a model that has nothing to warm up."""
        if not isinstance(self.model, SelfDistiller):
            raise TypeError(
                "LabelWarmUp serves a SelfDistiller. Received: a model of type "
                f"{type(self.model).__name__}."
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Switch distillation off or on."""
        self.model.distillation_scale = 0.0 if epoch < self.epochs else 1.0


class TensorBoard(keras.callbacks.Callback):
    """Log for TensorBoard, so that all exits share one chart for each quantity.

    TensorBoard draws equal tags of several runs in one chart. The tag of a metric is
    `epoch_accuracy` for all exits; the exits are the runs: `train/exit_1`, …,
    `validation/final`, `validation/ensemble`. Gradients by section, where they are
    logged, are the tag `epoch_gradient` of the runs `train/section_1`, …; losses and
    the like are logged to `train` and `validation`, as by Keras' own callback. In the
    list of runs, the filter `validation` leaves one curve for each exit.

    It needs the package `tensorboard` alone and serves all backends. Graphs and
    histograms are what `keras.callbacks.TensorBoard` is for, which may run beside it.

    Args:
        log_dir: Folder to write to; `tensorboard --logdir` reads it.

    Raises:
        ImportError: TensorBoard is not installed.

    Example:
        `model.fit(x, y, callbacks=[ksd.callbacks.TensorBoard("logs/byot")])`
    """

    def __init__(self, log_dir: str | os.PathLike = "logs"):
        super().__init__()
        try:
            from tensorboard.summary import Writer
        except ImportError as error:
            raise ImportError(
                "The callback TensorBoard needs the package tensorboard, which is not "
                "installed. Run `python -m pip install tensorboard`."
            ) from error
        self.log_dir = os.fspath(log_dir)
        self._open = Writer
        self._writers: dict[str, Any] = {}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the logs of an epoch."""
        logs = logs or {}
        for key, name in parse_log_names(logs).items():
            run = os.path.join(
                "validation" if name.validation else "train", name.source
            )
            if run not in self._writers:
                self._writers[run] = self._open(os.path.join(self.log_dir, run))
            self._writers[run].add_scalar(f"epoch_{name.quantity}", logs[key], epoch)
        for writer in self._writers.values():
            writer.flush()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}


class EpochTable(keras.callbacks.Callback):
    """Print a table of all exits after each epoch.

    For `fit(verbose=0)`, whose progress bar has all logs in one long line; it may be on
    all the same.

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

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Print the table of the epoch before, below its progress bar."""
        self._print()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Make the table; Keras finishes its progress bar after this."""
        self._text = epoch_table(epoch + 1, logs or {})

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Print the last table."""
        self._print()

    def _print(self):
        if self._text:
            print(self._text, flush=True)
            self._text = ""


def epoch_table(epoch: int, logs: Mapping[str, float]) -> str:
    """Return the logs of an epoch as lines of at most 100 columns.

    Args:
        epoch: Counted from 1.
        logs: What a callback is given.
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
    """Return a value with that of the validation data beside it."""
    train, validation = (values.get(LogName(v, "", quantity)) for v in (False, True))
    shown = "{:.0f}".format if quantity == "nonfinite_steps" else _number
    text = f"{quantity} {'–' if train is None else shown(train)}"
    return text if validation is None else f"{text} (val {shown(validation)})"


def _table(sources: Iterable[str], values: Mapping[LogName, float]) -> list[str]:
    """Return one row for each source, in blocks of as many columns as fit."""
    sources = list(sources)
    columns = dict.fromkeys(
        (name.validation, name.quantity) for name in values if name.source in sources
    )
    blocks: list[list[str]] = []
    for validation, quantity in sorted(columns, key=lambda each: (each[1], each[0])):
        cells = [f"val_{quantity}" if validation else quantity]
        for source in sources:
            value = values.get(LogName(validation, source, quantity))
            cells.append("" if value is None else _number(value))
        width = max(map(len, cells)) + 2
        if not blocks or len(blocks[-1][0]) + width > _COLUMNS:
            blocks.append([f"{source:<10}" for source in ["", *sources]])
        blocks[-1] = [
            row + f"{cell:>{width}}"
            for row, cell in zip(blocks[-1], cells, strict=True)
        ]
    return [line.rstrip() for block in blocks for line in block]


def _number(value: float) -> str:
    value = float(value)
    plain = value == 0 or 1e-3 <= abs(value) < 1e5
    return f"{value:.4f}" if plain else f"{value:.3e}"
