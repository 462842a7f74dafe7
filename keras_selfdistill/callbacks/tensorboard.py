"""TensorBoard, exit by exit."""

import os
from typing import Any

import keras

from keras_selfdistill.training.logs.log_names import (
    parse_log_names,
)


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
