"""Train under tf.distribute on two logical CPUs and compare with one device.

Run by test_backends.py as `python -m tests.distributed_probe`; prints the differences.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_selfdistill as ksd


def build():
    """Return a compiled wrapper without batch normalisation."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(
        4, 3, activation="relu", name="tap", kernel_regularizer=keras.regularizers.L2()
    )(inputs)
    x = layers.Conv2D(4, 3, strides=2, activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    base = keras.Model(inputs, layers.Dense(4, activation="softmax")(x))
    recipe = ksd.recipes.BYOT(alpha=0.5, hint_weight=0.1)
    model = ksd.SelfDistiller(base, ["tap"], recipe, head="linear")
    model.compile(
        keras.optimizers.SGD(0.1),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def main():
    """Print the largest difference in weights and in logs."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, two)
    random = np.random.default_rng(0)
    x, y = random.random((32, 8, 8, 3), "float32"), np.arange(32) % 4
    single = build()
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        mirrored = build()
    logs = [
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0).history
        for model in (single, mirrored)
    ]
    pairs = zip(single.get_weights(), mirrored.get_weights(), strict=True)
    print(max(np.abs(a - b).max() for a, b in pairs))
    print(max(abs(logs[0][key][0] - logs[1][key][0]) for key in logs[0]))


if __name__ == "__main__":
    main()
