"""Train saved wrappers for one step on the backend in use and write what came out.

Run by test_backends.py as `python -m tests.integration.backend_probe FOLDER`.
"""

import pathlib
import sys

import keras
import numpy as np

import keras_selfdistill  # noqa: F401  Registers what the model file names.
from tests.conftest import compile_quickly


def one_step(model, x, y, sample_weight):
    """Return the outputs, the logs of a test and an SGD step, and the weights."""
    found = {f"output/{k}": v for k, v in model.predict(x, verbose=0).items()}
    for kind, logs in (
        ("test", model.test_on_batch(x, y, sample_weight, return_dict=True)),
        ("train", model.train_on_batch(x, y, sample_weight, return_dict=True)),
    ):
        model.reset_metrics()
        found |= {f"{kind}/{name}": float(value) for name, value in logs.items()}
    for i, variable in enumerate(model.variables):
        value = keras.ops.convert_to_numpy(variable.value)
        found[f"weight/{i}/{variable.path}"] = value
    return found


def main(folder):
    """Write `<model>_<backend>.npz` beside every model of the folder."""
    if keras.backend.backend() == "jax":
        compile_quickly()
    batch = np.load(folder / "batch.npz")
    for path in sorted(folder.glob("*.keras")):
        found = one_step(keras.saving.load_model(path), **batch)
        np.savez(folder / f"{path.stem}_{keras.backend.backend()}.npz", **found)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
