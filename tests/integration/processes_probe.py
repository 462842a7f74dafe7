"""Train by several processes of PyTorch, of which test_distribution.py compares prints.

    python -m tests.integration.processes_probe skip

spoils the share of the second process, and

    python -m tests.integration.processes_probe resume FOLDER

stops a training and goes on with it. Both print hashes of weights and optimizer.
"""

import contextlib
import hashlib
import itertools
import json
import sys

import keras
import numpy as np

import keras_selfdistill as ksd
from tests.callbacks.devices_resume_probe import Stop, StoppedError
from tests.conftest import ROOT, to_numpy
from tests.training.test_numerics import fragile, spoilt

sys.path.insert(0, str(ROOT / "examples"))
from distributed import engines

WAYS = ["plain", "scaled", "half"]
KINDS = ["nothing", "input", "sample weight", "gradient", "statistic"]


def build(way):
    """Return a compiled wrapper that is trained in one of the `WAYS`."""
    keras.config.set_dtype_policy("mixed_float16" if way == "half" else "float32")
    if way == "plain":
        return fragile()
    inner = keras.optimizers.SGD(0.1)
    return fragile(
        optimizer=keras.optimizers.LossScaleOptimizer(inner, initial_scale=64.0)
    )


def fingerprint(model):
    """Return a hash of weights and optimizer, without what the loss scale is."""
    arrays = [
        to_numpy(variable.value).tobytes()
        for variable in [*model.weights, *model.optimizer.variables]
        if variable.name not in ("dynamic_scale", "step_counter")
    ]
    return hashlib.sha256(b"".join(arrays)).hexdigest()


def trained(engine, way, kinds):
    """Return what three steps leave, the second process' shares being of some kinds."""
    model = build(way)
    good, own = spoilt("nothing"), [spoilt(kind) for kind in kinds]
    shares = own if engine.process else [good] * len(kinds)
    options = {"steps_per_epoch": len(kinds), "epochs": 1}
    logs = engine.fit(model, shares, **options).history
    return {
        "skipped": logs["nonfinite_steps"][0],
        "loss_is_finite": bool(np.isfinite(logs["loss"][0])),
        "scale": float(to_numpy(getattr(model.optimizer, "dynamic_scale", 0.0))),
        "state": fingerprint(model),
    }


def skip(engine):
    """Return what each kind of batch leaves."""
    found = {}
    for way, kind in itertools.product(WAYS, KINDS):
        kinds = ["nothing", *([] if kind == "nothing" else [kind]), "nothing"]
        found[f"{way} {kind}"] = trained(engine, way, kinds)
    return found


class Masks(keras.callbacks.Callback):
    """Keeps what dropout draws in each step."""

    def __init__(self):
        super().__init__()
        self.drawn = []

    def on_train_batch_begin(self, batch, logs=None):
        """Draw without counting."""
        with keras.StatelessScope():
            mask = self.model.get_layer("dropout")(np.ones((1, 64)), training=True)
        self.drawn.append(to_numpy(mask).astype(bool).tobytes().hex())


def fit(engine, *callbacks, first_epoch=0):
    """Return what dropout drew and what is left after three epochs of four steps."""
    model, masks = fragile(), Masks()
    random = np.random.default_rng(0)
    x = random.normal(size=(12, 16, 6)).astype("float32")
    y = random.integers(0, 4, (12, 16))
    batches = list(zip(x, y, strict=True))[4 * first_epoch :]
    shares = engines.Shares(batches, engine.process, engine.processes)
    engine.fit(
        model, shares, steps_per_epoch=4, epochs=3, callbacks=[masks, *callbacks]
    )
    return {"masks": masks.drawn, "state": fingerprint(model)}


def resume(engine, folder):
    """Return what a whole training leaves, and those that were stopped and go on."""
    found = {"whole": fit(engine)}
    for save_freq in ("epoch", 5):
        options = {"save_freq": save_freq, "write": engine.is_chief}
        own = f"{folder}/{save_freq}"
        with contextlib.suppress(StoppedError):
            fit(engine, Stop(), ksd.callbacks.Resume(own, **options))
        engine.wait()
        again = ksd.callbacks.Resume(own, **options)
        found[save_freq] = fit(engine, again, first_epoch=again.initial_epoch)
    return found


def main(command, *arguments):
    """Print what a command finds."""
    engine = engines.DistributedDataParallelEngine(timeout=60)
    found = {"skip": skip, "resume": resume}[command](engine, *arguments)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
