"""Spoil the half batch of one of two replicas; both must skip the step.

Run by test_numerics.py as `python -m tests.training.nonfinite_probe`.
"""

import keras
import numpy as np
import tensorflow as tf

from tests.training.test_numerics import (
    assert_equal_states,
    changed,
    fragile,
    spoilt,
    state,
)


def half_spoilt(kind):
    """Return a batch of which the second replica's half is spoilt."""
    good, bad = spoilt("nothing"), spoilt(kind)
    return [
        np.concatenate([ours[:8], theirs[8:]])
        for ours, theirs in zip(good, bad, strict=True)
    ]


def fit(model, batch):
    """Train for one step and return the logs."""
    x, y, weights = (tf.constant(each) for each in batch)
    data = tf.data.Dataset.from_tensors((x, y, weights)).unbatch().batch(16)
    history = model.fit(data, verbose=0).history
    return {name: values[0] for name, values in history.items()}


def main():
    """Train under a strategy with and without a loss scale."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, two)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        plain = fragile()
        scaled = fragile(
            optimizer=keras.optimizers.LossScaleOptimizer(
                keras.optimizers.SGD(0.1), initial_scale=64.0
            ),
            log_gradients=True,
        )
    scaled.get_layer("dropout").rate = 0.0
    for model in (plain, scaled):
        logs = fit(model, half_spoilt("nothing"))
        assert logs["nonfinite_steps"] == 0
        before = state(model)
        # Its gradient is NaN in one replica, its loss in neither.
        logs = fit(model, half_spoilt("gradient"))
        assert logs["nonfinite_steps"] == 1
        assert np.isfinite(logs["loss"])
        assert_equal_states(state(model), before, but=["dynamic_scale", "step_counter"])
        logs = fit(model, half_spoilt("nothing"))
        assert {"kernel", "moving_mean"} <= set(changed(state(model), before))
    assert float(scaled.optimizer.dynamic_scale.numpy()) == 32.0
    single = fragile(log_gradients=True, optimizer=keras.optimizers.SGD(0.1))
    single.set_weights(scaled.get_weights())
    batch = half_spoilt("nothing")
    # Alike halves, so that both replicas have the whole batch's statistics.
    batch = [np.concatenate([each[:8], each[:8]]) for each in batch]
    single.get_layer("dropout").rate = 0.0
    logs = [fit(model, batch) for model in (single, scaled)]
    for name, value in logs[0].items():
        np.testing.assert_allclose(logs[1][name], value, rtol=1e-4, err_msg=name)
    print("as it should be")


if __name__ == "__main__":
    main()
