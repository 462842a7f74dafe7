"""The progress bar of `fit` and `evaluate`: all exits in the width of a terminal."""

import shutil
import sys
import time
from collections.abc import Iterator, Mapping

import keras
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

    def __init__(self) -> None:
        super().__init__()
        self._in_fit = False
        self.target: int | None = None
        self._start = self._first_step = self._shown = 0.0

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Leave what `fit` evaluates without a bar of its own."""
        self._in_fit = True

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Show what is evaluated after this."""
        self._in_fit = False

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Name the epoch."""
        if self.verbose and self.epochs > 1:
            _print(f"Epoch {epoch + 1}/{self.epochs}")
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
        self.seen = 0
        self._start, self._first_step, self._shown = time.monotonic(), 0.0, 0.0

    def _update(self, seen: int, logs: Logs | None) -> None:
        self.seen, now = seen, time.monotonic()
        # The first step compiles, and would be most of the mean.
        self._first_step = self._first_step or now
        if (
            self.verbose == 1
            and now - self._shown >= _INTERVAL
            and _rewrites_lines()
            and keras.config.is_interactive_logging_enabled()
        ):
            self._shown = now
            columns = _columns()
            line = _fitted(self._progress(), summary(logs or {}), columns)
            sys.stdout.write("\r" + line.ljust(columns - 1))
            sys.stdout.flush()

    def _finish(self, logs: Logs | None) -> None:
        if not self.verbose:
            return
        logs, columns = logs or {}, _columns()
        if not self.target:
            self.target = self.seen
        lines = [_fitted(self._progress(), summary(logs), columns)]
        if any(name.startswith("val_") for name in logs):
            lines.append(_cut(f"  validation: {summary(logs, 'val_')}", columns))
        again = self._shown and _rewrites_lines()
        lines[0] = "\r" + lines[0].ljust(columns - 1) if again else lines[0]
        for line in lines:
            _print(line)

    def _progress(self) -> tuple[str, str, str]:
        """Return count, bar and time as separate texts."""
        seconds = time.monotonic() - self._start
        since_first = time.monotonic() - self._first_step
        step = since_first / (self.seen - 1) if self.seen > 1 else seconds
        total = self.target or "?"
        filled = round(_BAR * self.seen / self.target) if self.target else 0
        filled = min(filled, _BAR) if self.seen else 0
        bar = "━" * filled + "╌" * (_BAR - filled)
        return f"{self.seen}/{total}", bar, f"{_duration(seconds)} {_short(step)}/step"


def with_progress_bar(callbacks: CallbacksLike, verbose: str | int) -> CallbacksLike:
    """Return callbacks with a progress bar, if Keras would add its own.

    Args:
        callbacks: As `fit` takes them. A `CallbackList` is its owner's and stays so.
        verbose: Likewise.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks
    callbacks = keras.tree.flatten(callbacks) if callbacks else []
    bars = [c for c in callbacks if isinstance(c, keras.callbacks.ProgbarLogger)]
    return callbacks if bars or not verbose else [*callbacks, ProgressBar()]


def summary(logs: Logs, prefix: str = "") -> str:
    """Return the logs as text: loss, final exit, ensemble, then the other exits.

    Of the shallow exits the first metric is shown, and `nonfinite_steps` only where
    there were some.

    Args:
        logs: What a callback is given.
        prefix: `"val_"` for those of the validation data.

    Example:
        >>> logs = {"loss": 1.5, "nonfinite_steps": 0.0, "exit_1_accuracy": 0.5}
        >>> summary({**logs, "accuracy": 0.625, "ensemble_accuracy": 0.75})
        'loss 1.5000 accuracy 0.6250 ensemble 0.7500 exits 0.50'
    """
    names = parse_log_names(logs)
    values = {
        name._replace(validation=False): float(logs[key])
        for key, name in names.items()
        if name.validation == bool(prefix)
    }
    return " ".join(_parts(values))


def _parts(values: Mapping[LogName, float]) -> Iterator[str]:
    if LogName(False, "", "loss") in values:
        yield f"loss {_number(values[LogName(False, '', 'loss')])}"
    if steps := values.get(LogName(False, "", "nonfinite_steps")):
        yield f"nonfinite_steps {steps:.0f}"
    metrics = [name.quantity for name in values if name.source == "final"]
    for metric in metrics:
        yield f"{metric} {_number(values[LogName(False, 'final', metric)])}"
    ensemble = [LogName(False, "ensemble", metric) for metric in metrics]
    if found := [_number(values[name]) for name in ensemble if name in values]:
        yield f"ensemble {'/'.join(found)}"
    shallow = [
        LogName(False, source, metrics[0])
        for source in exits_in_order(values)
        if metrics and source not in ("final", "ensemble")
    ]
    if found := [_number(values[name], 2) for name in shallow if name in values]:
        yield f"exits {' '.join(found)}"


def _number(value: float, digits: int = 4) -> str:
    small = value != 0 and abs(value) < 10.0**-digits
    return f"{value:.1e}" if small or abs(value) >= 1e6 else f"{value:.{digits}f}"


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
    """Tell whether a line can be written over: not in a file."""
    is_terminal = getattr(sys.stdout, "isatty", bool)
    return is_terminal() or "ipykernel" in sys.modules


def _print(line: str) -> None:
    if keras.config.is_interactive_logging_enabled():
        print(line, flush=True)
    else:
        logging.info(line.strip())
