"""`TensorBoard`: logs of all exits, one run for each exit."""

import os
from typing import Any

import keras

from keras_selfdistill.training.logs.log_names import parse_log_names
from keras_selfdistill.utils.optional_packages import optional_module
from keras_selfdistill.utils.type_aliases import Logs, PathLike


class TensorBoard(keras.callbacks.Callback):
    """Log to TensorBoard, with all exits in one chart for each quantity.

    TensorBoard draws equal tags of several runs in one chart. The tag of a metric, such
    as `epoch_accuracy`, is the same for all exits, and each exit is a run:
    `train/exit_1`, …, `validation/final`, `validation/ensemble`. Gradients by section,
    if logged, have the tag `epoch_gradient` in the runs `train/section_1`, …. Losses
    are logged to the runs `train` and `validation`, as by Keras' own callback. The run
    filter `validation` shows one curve for each exit.

    It needs only the package `tensorboard` and works on all backends. For graphs and
    histograms use `keras.callbacks.TensorBoard`, also in the same training.

    Args:
        log_dir: Path of the folder for `tensorboard --logdir`.

    Raises:
        ImportError: TensorBoard is not installed.

    Example:
        `model.fit(x, y, callbacks=[ksd.callbacks.TensorBoard("logs/byot")])`
    """

    def __init__(self, log_dir: PathLike = "logs"):
        super().__init__()
        summary = optional_module("tensorboard.summary", "The callback TensorBoard")
        self.log_dir = os.fspath(log_dir)
        self._open = summary.Writer
        self._writers: dict[str, Any] = {}

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
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

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}
