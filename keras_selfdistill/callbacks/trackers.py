"""`WandbLogger` and `MLflowLogger`: logs of all exits in experiment trackers."""

from typing import Any

import keras

from keras_selfdistill.training.logs.log_names import grouped_names
from keras_selfdistill.utils.optional_packages import optional_module
from keras_selfdistill.utils.type_aliases import Logs


class WandbLogger(keras.callbacks.Callback):
    """Log to the active run of Weights & Biases, grouped by quantity.

    The names are those of `grouped_names`: `accuracy/exit_1`, …, `val_accuracy/final`,
    `val_accuracy/ensemble`, and `gradient/section_1`, … if logged. W&B groups panels by
    the part before the slash, so the charts of all exits stand side by side, and a line
    plot of `val_accuracy/.*` shows them in one. Quantities of the whole training, such
    as `loss`, keep their names. The x-axis is `epoch`, from 0.

    It needs only the package `wandb` and works on all backends. W&B's own
    `WandbMetricsLogger` imports TensorFlow and puts all logs in one group, `epoch/`.

    Raises:
        ImportError: The package wandb is not installed.

    Example:
        ```python
        with wandb.init(project="digits"):
            model.fit(x, y, callbacks=[ksd.callbacks.WandbLogger()])
        ```
    """

    def __init__(self) -> None:
        super().__init__()
        _wandb()
        self._defined: set[str] = set()

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Check that a run is active.

        Raises:
            RuntimeError: No run is active.
        """
        if _wandb().run is None:
            raise _no_run("WandbLogger", "wandb.init(project=...)")
        self._defined = set()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Log an epoch."""
        run, values = _wandb().run, _grouped(logs)
        for name in values.keys() - self._defined:
            run.define_metric(name, step_metric="epoch")
        self._defined |= values.keys()
        # W&B's own step counts calls: other code may log to the run, too.
        run.log({**values, "epoch": epoch})


class MLflowLogger(keras.callbacks.Callback):
    """Log to the active run of MLflow, grouped by quantity.

    The names are those of `grouped_names`, as for `WandbLogger`: `accuracy/exit_1`, …,
    `val_accuracy/final`. MLflow, too, groups charts by the part before the slash. The
    step is the epoch, from 0.

    It needs only the package `mlflow` or `mlflow-skinny` and works on all backends.
    MLflow's own `mlflow.keras.MlflowCallback` does not group: `exit_1_accuracy`.

    Raises:
        ImportError: The package mlflow is not installed.

    Example:
        ```python
        with mlflow.start_run():
            model.fit(x, y, callbacks=[ksd.callbacks.MLflowLogger()])
        ```
    """

    def __init__(self) -> None:
        super().__init__()
        _mlflow()

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Check that a run is active; MLflow would begin one that nothing ends.

        Raises:
            RuntimeError: No run is active in this thread.
        """
        if _mlflow().active_run() is None:
            raise _no_run("MLflowLogger", "mlflow.start_run()")

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Log an epoch."""
        _mlflow().log_metrics(_grouped(logs), step=epoch)


def _grouped(logs: Logs | None) -> dict[str, float]:
    logs = logs or {}
    return {name: float(logs[key]) for key, name in grouped_names(logs).items()}


# Not kept in the callbacks, which KerasTuner copies: a module cannot be copied.
def _wandb() -> Any:
    return optional_module("wandb", "The callback WandbLogger", "wandb")


def _mlflow() -> Any:
    return optional_module("mlflow", "The callback MLflowLogger", "mlflow")


def _no_run(callback: str, start: str) -> RuntimeError:
    return RuntimeError(
        f"{callback} logs to the active run. Received: no active run. Expected: "
        f"`with {start}:` around `fit`."
    )
