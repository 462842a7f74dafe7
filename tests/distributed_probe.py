"""Train under tf.distribute on two logical CPUs and compare with one device.

Run by test_backends.py as `python -m tests.distributed_probe`; prints the differences.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_selfdistill as ksd


def network(name):
    """Return a small classifier without batch normalisation."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(
        4, 3, activation="relu", name="tap", kernel_regularizer=keras.regularizers.L2()
    )(inputs)
    x = layers.Conv2D(4, 3, strides=2, activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(x), name=name)


def build():
    """Return a compiled wrapper with every kind of loss term, and a schedule."""
    keras.utils.set_random_seed(0)
    rising = keras.optimizers.schedules.PolynomialDecay(0.2, 3, 0.8)
    model = ksd.SelfDistiller(
        network("base"),
        ["tap"],
        ksd.recipes.BYOT(alpha=rising, hint_weight=0.1),
        head="linear",
        teacher=network("teacher"),
        distillation_losses=[keras.distillation.FeatureDistillation("mse")],
    )
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
