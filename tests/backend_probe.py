"""Train a saved wrapper for one step on the backend in use and write what came out.

Run by test_backends.py as `python -m tests.backend_probe MODEL BATCH OUT`.
"""

import sys

import keras
import numpy as np

import keras_selfdistill  # noqa: F401  Registers what the model file names.


def main(model_path, batch_path, out_path):
    """Write the outputs, the logs of a test and an SGD step, and the weights."""
    model = keras.saving.load_model(model_path)
    data = np.load(batch_path)
    x, y, sample_weight = data["x"], data["y"], data["sample_weight"]
    found = {f"output/{k}": v for k, v in model.predict(x, verbose=0).items()}
    for kind, logs in (
        ("test", model.test_on_batch(x, y, sample_weight, return_dict=True)),
        ("train", model.train_on_batch(x, y, sample_weight, return_dict=True)),
    ):
        model.reset_metrics()
        found |= {f"{kind}/{name}": float(value) for name, value in logs.items()}
    found |= {
        f"weight/{variable.path}": keras.ops.convert_to_numpy(variable.value)
        for variable in model.variables
    }
    np.savez(out_path, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
