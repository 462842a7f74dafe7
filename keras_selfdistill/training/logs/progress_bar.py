"""The progress bar of `fit` and `evaluate`: all exits in the width of a terminal."""

import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from absl import logging

from keras_selfdistill.training.logs.log_names import (
    LogName,
    exits_in_order,
    parse_log_names,
)
from keras_selfdistill.utils.type_aliases import CallbacksLike, Logs

_BAR = 10  # Characters.
_INTERVAL = 0.1  # Seconds between two updates.
_COLUMNS = 100  # Where the output is no terminal.


class ProgressBar(keras.callbacks.ProgbarLogger):
    """Show a training of several exits in one line.

    `fit` and `evaluate` add it unless `callbacks` has a `ProgbarLogger`. Keras' own bar
    has every log in one line, which a terminal wraps and scrolls at each update. Where
    the output is a file, only the last line of an epoch is written.

    Logs, `History` and other callbacks keep every key.
    """

    async_safe = True  # Else JAX and PyTorch would wait for each step's logs.

    def __init__(self) -> None:
        super().__init__()
        self._in_fit = False
        self.target: int | None = None
        self._lock = threading.Lock()
        self._start = self._first_time = self._shown = 0.0
        self._first_seen = 0
        self._updates = False

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Leave what `fit` evaluates without a bar of its own."""
        self._in_fit = True

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Show what is evaluated after this."""
        self._in_fit = False

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Name the epoch."""
        if self.verbose and self.epochs > 1:
            print_line(f"Epoch {epoch + 1}/{self.epochs}")
        self._begin()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Update the line."""
        self._update(batch + 1, logs)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Show the values of the epoch, those of the validation data below."""
        self._finish(logs)

    def on_test_begin(self, logs: Logs | None = None) -> None:
        """Begin a line, unless `fit` evaluates."""
        if not self._in_fit:
            self._begin()

    def on_test_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Update the line, unless `fit` evaluates."""
        if not self._in_fit:
            self._update(batch + 1, logs)

    def on_test_end(self, logs: Logs | None = None) -> None:
        """Show the values, unless `fit` evaluates."""
        if not self._in_fit:
            self._finish(logs)

    def _begin(self) -> None:
        self.seen = self._first_seen = 0
        self._start, self._shown = time.monotonic(), 0.0
        # Keras keeps this setting by thread, and may update from another one.
        interactive = keras.config.is_interactive_logging_enabled()
        self._updates = self.verbose == 1 and interactive and _rewrites_lines()

    def _update(self, seen: int, logs: Logs | None) -> None:
        with self._lock:
            if seen <= self.seen:  # Of an earlier step, which came late.
                return
            self.seen, now = seen, time.monotonic()
            if not self._first_seen:
                self._first_seen, self._first_time = seen, now
            if self._updates and now - self._shown >= _INTERVAL:
                self._shown = now
                columns = _columns()
                text = summary(logs or {}, order=self._order())
                line = _fitted(self._progress(), text, columns)
                _write("\r" + line.ljust(columns - 1))

    def _order(self) -> list[str]:
        """Return the names of the metrics as they were compiled; Keras sorts logs."""
        return self.model.exit_metric_names if self.model else []

    def _finish(self, logs: Logs | None) -> None:
        if not self.verbose:
            return
        logs, columns = logs or {}, _columns()
        if not self.target:
            self.target = self.seen
        order = self._order()
        lines = [_fitted(self._progress(), summary(logs, order=order), columns)]
        if any(name.startswith("val_") for name in logs):
            validation = summary(logs, "val_", order=order)
            lines.append(_cut(f"  validation: {validation}", columns))
        if self._shown:
            lines[0] = "\r" + lines[0].ljust(columns - 1)
        for line in lines:
            print_line(line)

    def _progress(self) -> tuple[str, str, str]:
        """Return count, bar and time as separate texts."""
        now = time.monotonic()
        seconds = now - self._start
        step = seconds / max(1, self.seen)
        if self.seen > self._first_seen:  # Without the steps that compiled.
            step = (now - self._first_time) / (self.seen - self._first_seen)
        total = self.target or "?"
        filled = round(_BAR * self.seen / self.target) if self.target else 0
        filled = min(filled, _BAR) if self.seen else 0
        bar = "━" * filled + "╌" * (_BAR - filled)
        return f"{self.seen}/{total}", bar, f"{_duration(seconds)} {_short(step)}/step"


def with_progress_bar(callbacks: CallbacksLike, verbose: str | int) -> CallbacksLike:
    """Return callbacks with a progress bar, if Keras would add its own.

    Args:
        callbacks: Callbacks as `fit` takes them; a `CallbackList` stays as it is.
        verbose: Verbosity as `fit` takes it.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks
    callbacks = keras.tree.flatten(callbacks) if callbacks else []
    bars = [c for c in callbacks if isinstance(c, keras.callbacks.ProgbarLogger)]
    return callbacks if bars or not verbose else [*callbacks, ProgressBar()]


def summary(logs: Logs, prefix: str = "", order: Sequence[str] = ()) -> str:
    """Return the logs as text: loss, final exit, ensemble, then the other exits.

    Of the shallow exits the first metric is shown, and `nonfinite_steps` only where
    there were some.

    Args:
        logs: Logs as callbacks get them.
        prefix: Prefix of the keys: `"val_"` for validation logs.
        order: Names of the metrics in the order to show.

    Example:
        >>> logs = {"loss": 1.5, "nonfinite_steps": 0.0, "exit_1_accuracy": 0.5}
        >>> summary({**logs, "accuracy": 0.625, "ensemble_accuracy": 0.75})
        'loss 1.5000 accuracy 0.6250 ensemble 0.7500 exits 0.50'
    """
    names = parse_log_names(logs)
    values = {
        name._replace(validation=False): logs[key]
        for key, name in names.items()
        if name.validation == bool(prefix)
    }
    return " ".join(_parts(values, [*order]))


def _parts(values: Mapping[LogName, Any], order: list[str]) -> Iterator[str]:
    if LogName(False, "", "loss") in values:
        yield f"loss {_number(values[LogName(False, '', 'loss')])}"
    if steps := values.get(LogName(False, "", "nonfinite_steps")):
        yield f"nonfinite_steps {steps:.0f}"
    found = [name.quantity for name in values if name.source == "final"]
    metrics = sorted(found, key=(order + found).index)
    for metric in metrics:
        yield f"{metric} {_number(values[LogName(False, 'final', metric)])}"
    ensemble = [LogName(False, "ensemble", metric) for metric in metrics]
    if shown := [_number(values[name]) for name in ensemble if name in values]:
        yield f"ensemble {'/'.join(shown)}"
    shallow = [
        LogName(False, source, metrics[0])
        for source in exits_in_order(values)
        if metrics and source not in ("final", "ensemble")
    ]
    if shown := [_number(values[name], 2) for name in shallow if name in values]:
        yield f"exits {' '.join(shown)}"


def _number(value: Any, digits: int = 4) -> str:
    mean = float(np.mean(value))  # Some metrics have a value for each class.
    small = mean != 0 and abs(mean) < 10.0**-digits
    return f"{mean:.1e}" if small or abs(mean) >= 1e6 else f"{mean:.{digits}f}"


def _short(seconds: float) -> str:
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds * 1e6:.0f}us"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{seconds:02}"
    return f"{minutes}:{seconds:02}" if minutes else f"{seconds}s"


def _fitted(progress: tuple[str, str, str], text: str, columns: int) -> str:
    """Return a line that a terminal does not wrap.

    Where it is too long, the bar goes first, then the times, then the end.
    """
    count, bar, times = progress
    for shown in (f"{count} {bar} {times}", f"{count} {times}", count):
        if len(shown) + 1 + len(text) < columns:
            return f"{shown} {text}"
    return _cut(f"{count} {text}", columns)


def _cut(line: str, columns: int) -> str:
    """Cut a line that is too long between two words."""
    if len(line) < columns:
        return line
    return line[: columns - 2].rpartition(" ")[0] + " …"


def _columns() -> int:
    return max(20, shutil.get_terminal_size((_COLUMNS, 24)).columns)


def _rewrites_lines() -> bool:
    """Return whether a line can be overwritten: in a terminal or notebook."""
    is_terminal = getattr(sys.stdout, "isatty", bool)
    return is_terminal() or type(sys.stdout).__module__.startswith("ipykernel")


def print_line(line: str) -> None:
    """Write a line to the output, or to the log without Keras' interactive logging."""
    if keras.config.is_interactive_logging_enabled():
        _write(line + "\n")
    else:
        logging.info(line.strip())


def _write(text: str) -> None:
    """Write to the output, with "?" for what its encoding does not have."""
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()
