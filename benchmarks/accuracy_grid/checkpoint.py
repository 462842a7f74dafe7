"""The checkpoint of a cell, and which settings it may be resumed with."""

import json
import pathlib
from typing import Any

import keras
import numpy as np

from shared import augmentation
from shared.run_folder import refuse_changes, replacing


class Checkpoint:
    """All variables of a model and its optimizer, with the epochs behind them.

    Not `model.save`: Keras' `Distiller` cannot be trained on after loading.
    """

    def __init__(self, path: pathlib.Path, settings: dict[str, Any]) -> None:
        self._path = path
        self._settings = settings

    def save(self, model: keras.Model, epochs: list[dict[str, float]]) -> None:
        """Replaces the checkpoint atomically."""
        arrays = {
            str(i): keras.ops.convert_to_numpy(variable.value)
            for i, variable in enumerate(_variables(model))
        }
        progress = json.dumps({"settings": self._settings, "epochs": epochs})
        with replacing(self._path) as temporary:
            np.savez(temporary, progress=np.array(progress), **arrays)

    def restore(self, model: keras.Model) -> list[dict[str, float]]:
        """Sets the model's variables if anything was saved; returns the epochs."""
        if not self._path.exists():
            return []
        with np.load(self._path) as saved:
            progress = json.loads(str(saved["progress"]))
            refuse_other_settings(self._path, progress["settings"], self._settings)
            for i, variable in enumerate(_variables(model)):
                variable.assign(saved[str(i)])
        return progress["epochs"]

    def delete(self) -> None:
        """Removes the file."""
        self._path.unlink(missing_ok=True)


def _variables(model):
    return [*model.weights, *model.optimizer.variables]


def refuse_other_settings(path: pathlib.Path, begun: Any, now: Any) -> None:
    """Raises unless a file was made with the present settings."""
    if "recipe" in begun and begun.get("model") == "resnet18":
        # Where a number of taps, all that earlier files know, placed them in this one.
        ends = [f"stage{stage}_block2_out" for stage in (1, 2, 3)]
        begun = {"tap_names": ends, **begun}
    if "model" in begun:
        begun = {"augmentation": [augmentation.STANDARD], **begun}
    if "recipe" in begun and "recipe" in now:
        # A field that a later version of the recipe added has a default that does what
        # the earlier one did.
        old = begun["recipe"]
        now = {**now, "recipe": {k: v for k, v in now["recipe"].items() if k in old}}
    advice = "Give the cell another --variant, or remove the file."
    refuse_changes(path, begun, now, advice=advice)
