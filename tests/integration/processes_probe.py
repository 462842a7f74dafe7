"""Spoil the share of one of two processes of PyTorch; both must skip the step.

Run by test_distribution.py in two processes as
`python -m tests.integration.processes_probe`. Prints for each case what was counted and
a hash of all weights and of the optimizer; the test compares the two processes.
"""

import hashlib
import itertools
import json
import sys

import keras
import numpy as np

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


def main():
    """Print what each kind of batch leaves."""
    engine = engines.DistributedDataParallelEngine(timeout=60)
    found = {}
    for way, kind in itertools.product(WAYS, KINDS):
        kinds = ["nothing", *([] if kind == "nothing" else [kind]), "nothing"]
        found[f"{way} {kind}"] = trained(engine, way, kinds)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
