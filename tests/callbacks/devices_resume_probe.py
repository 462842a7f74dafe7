"""Stop a training on two devices, go on with it, and compare with one never stopped.

Run by test_resume.py as `python -m tests.callbacks.devices_resume_probe FOLDER`; prints
the largest difference of the ends, and how many steps were not finite.
"""

import sys

import keras
import numpy as np
from keras import layers

import keras_selfdistill as ksd
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "examples"))
from distributed import engines

X = np.random.default_rng(4).random((32, 8, 8, 3), "float32")
Y = np.arange(32) % 4


class StoppedError(Exception):
    """The training ends here."""


class Stop(keras.callbacks.Callback):
    """Ends a training after its sixth step, in the second epoch."""

    steps = 0

    def on_train_batch_end(self, batch, logs=None):
        """Count."""
        self.steps += 1
        if self.steps == 6:
            raise StoppedError


def build():
    """Return a wrapper in half precision, with statistics, seeds and a schedule."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(layers.Conv2D(6, 3, name="conv")(inputs))
    x = layers.Dropout(0.2)(layers.ReLU(name="tap")(x))
    x = layers.Dense(4, "softmax", dtype="float32")(layers.Flatten()(x))
    rising = keras.optimizers.schedules.PolynomialDecay(0.1, 30, 0.9)
    recipe = ksd.recipes.BYOT(alpha=rising, hint_weight=0.1)
    model = ksd.SelfDistiller(keras.Model(inputs, x), ["tap"], recipe, head="linear")
    # It overflows at first, then is doubled every four steps.
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(), 2.0**20, 4)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def train(engine, *callbacks):
    """Return the last epoch's logs and all state after three epochs."""
    with engine.scope():
        model = build()
        history = model.fit(
            X, Y, batch_size=8, epochs=3, verbose=0, callbacks=list(callbacks)
        ).history
        variables = [*model.variables, *model.optimizer.variables]
        logs = [np.array(values[-1]) for values in history.values()]
        skipped = history["nonfinite_steps"]
        return skipped, [*logs, *map(keras.ops.convert_to_numpy, variables)]


def main(folder):
    """Print what is found."""
    keras.config.set_dtype_policy("mixed_float16")
    jax = keras.backend.backend() == "jax"
    engine = (engines.DataParallelEngine if jax else engines.MirroredEngine)(2)
    skipped, whole = train(engine)
    try:
        train(engine, Stop(), ksd.callbacks.Resume(folder, save_freq=2))
    except StoppedError:
        _, torn = train(engine, ksd.callbacks.Resume(folder))
    pairs = zip(whole, torn, strict=True)
    print(max(np.abs(a.astype("float64") - b).max() for a, b in pairs), sum(skipped))


if __name__ == "__main__":
    main(sys.argv[1])
