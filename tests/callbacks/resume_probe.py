"""Kill a training at random moments, go on with it, and compare with one never killed.

Run by test_resume.py as `python -m tests.callbacks.resume_probe FOLDER VARIANT KILLS`;
prints what was found as JSON. Every part of a training is a process of its own, forked
from one that has only imported what they need, and killed from there.
"""

import contextlib
import json
import os
import pathlib
import random
import signal
import sys
import time
import traceback

import keras
import numpy as np
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.callbacks.checkpoints import read

with contextlib.suppress(ImportError):
    import tensorflow as tf  # Keras loads it to set its seed: once, before the forks.

EPOCHS = {"batches": 6, "epochs": 12}


def make_deterministic():
    backend = keras.backend.backend()
    if backend == "tensorflow":
        tf.config.experimental.enable_op_determinism()
    elif backend == "torch":
        import torch

        torch.use_deterministic_algorithms(True)


def build(variant):
    """Return a wrapper with every kind of state, and in half precision for batches."""
    keras.utils.set_random_seed(3)
    half = variant == "batches"
    keras.config.set_dtype_policy("mixed_float16" if half else "float32")
    inputs = keras.Input((8, 8, 3))
    x = layers.RandomFlip()(inputs)
    # Of those layers that JAX compiles.
    x = layers.RandomBrightness(0.2, value_range=(0, 1))(x)
    x = layers.Conv2D(6, 3, name="tap")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Dropout(0.2)(layers.ReLU()(x))
    x = layers.Dropout(0.2, seed=7)(layers.Flatten()(x))
    base = keras.Model(inputs, layers.Dense(4, "softmax", dtype="float32")(x))
    rising = keras.optimizers.schedules.PolynomialDecay(0.1, 30, 0.9)
    recipe = ksd.recipes.BYOT(alpha=rising, hint_weight=0.1)
    model = ksd.SelfDistiller(base, ["tap"], recipe, head="linear")
    falling = keras.optimizers.schedules.CosineDecay(0.01, 40)
    optimizer = keras.optimizers.Adam(falling)
    if half:
        # It overflows at first, then is doubled every four steps.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 2.0**20, 4)
    model.compile(
        optimizer,
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def batches(x, y, first_epoch, epochs):
    for epoch in range(first_epoch, epochs):
        order = np.random.default_rng([5, epoch]).permutation(len(x))
        for rows in order.reshape(-1, 8):
            yield x[rows], y[rows]


class Tell(keras.callbacks.Callback):
    """Write one byte after each batch."""

    def __init__(self, pipe):
        super().__init__()
        self.pipe = pipe

    def on_train_batch_end(self, batch, logs=None):
        os.write(self.pipe, b"1")


def train(variant, final, resume, pipe):
    """Train to the end and write down the state, without the callback's own files."""
    make_deterministic()
    model = build(variant)
    rng = np.random.default_rng(4)
    x, y = rng.random((48, 8, 8, 3), "float32"), np.arange(48) % 4
    callbacks = [Tell(pipe), *([resume] if resume else [])]
    arguments = {"epochs": EPOCHS[variant], "verbose": 0, "callbacks": callbacks}
    if variant == "batches":
        history = model.fit(x, y, batch_size=8, **arguments)
    else:
        arguments["validation_data"] = x[:8], y[:8]
        first = resume.initial_epoch if resume else 0
        data = batches(x, y, first, EPOCHS[variant])
        history = model.fit(data, steps_per_epoch=6, shuffle=False, **arguments)
    variables = [*model.variables, *model.optimizer.variables]
    state = {f"v{i}": keras.ops.convert_to_numpy(v) for i, v in enumerate(variables)}
    logs = {name: np.array(v[-1:]) for name, v in history.history.items()}
    np.savez(final, **state, **logs)


def start(variant, final, folder=None, **options):
    """Start a part of a training; return its process and what it tells."""
    begun, tell = os.pipe()
    process = os.fork()
    if process:
        os.close(tell)
        return process, begun
    try:
        resume = ksd.callbacks.Resume(folder, **options) if folder else None
        train(variant, final, resume, tell)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def finish(process, begun):
    """Wait for a process; return whether it was killed."""
    os.close(begun)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status != 0


def difference(ours, theirs):
    """Return the largest difference of two lists of arrays; infinity if NaNs differ."""
    assert len(ours) == len(theirs)
    found = 0.0
    for one, other in zip(ours, theirs, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        if one.tobytes() != other.tobytes():
            delta = np.abs(one.astype("float64") - other.astype("float64")).max()
            found = max(found, delta if delta > 0 else np.inf)
    return float(found)


def compare_files(one, other):
    with np.load(one) as ours, np.load(other) as theirs:
        assert ours.files == theirs.files
        return difference(
            [ours[name] for name in ours.files], [theirs[name] for name in ours.files]
        )


def main(folder, variant, kills):
    folder, kills = pathlib.Path(folder), int(kills)
    draw = random.Random(f"{variant} {keras.backend.backend()}")
    # Saved after as many batches; killed after up to as many, and a little later.
    save_freq, furthest = {"batches": (2, 9), "epochs": ("epoch", 15)}[variant]
    options = {"save_freq": save_freq}
    bare, whole = folder / "bare.npz", folder / "whole.npz"
    finish(*start(variant, bare))
    finish(*start(variant, whole, folder / "whole", keep=1000, **options))
    differences = [compare_files(bare, whole)]
    points, chains, done, unfinished = [], 0, 0, True
    # To its end, so that every kill is one of a training that is compared.
    while done < kills or unfinished:
        chain, final = folder / f"chain_{chains}", folder / f"chain_{chains}.npz"
        process, begun = start(variant, final, chain, **options)
        if done < kills:
            for _ in range(draw.randint(0, furthest)):
                os.read(begun, 1)
            time.sleep(draw.uniform(0, 0.02))
            os.kill(process, signal.SIGKILL)
        unfinished = finish(process, begun)
        if unfinished:
            done += 1
        else:
            differences.append(compare_files(bare, final))
            chains += 1
        # Every file that is there is whole, and holds what the other training held.
        files = sorted(chain.glob("epoch*"))
        for path in files:
            ours, theirs = read(path), read(folder / "whole" / path.name)
            assert ours[:2] == theirs[:2]
            differences.append(difference(ours.arrays, theirs.arrays))
        points.append(files[-1].name if files else "none")
    print(
        json.dumps(
            {
                "kills": done,
                "chains": chains,
                "points": len(set(points)),
                "compared": len(differences),
                "difference": max(differences),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
