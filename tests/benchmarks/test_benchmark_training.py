"""Training in the accuracy benchmark, on each backend."""

import math

import keras
import numpy as np

import keras_selfdistill as ksd
from accuracy_grid import checkpoint, methods, presets, training
from shared import cifar100
from tests.conftest import long_on

SMOKE = presets.PRESETS["smoke"]


def trained(folder):
    """Returns the logs and weights of a small wrapper, trained by preset `smoke`."""
    cell = methods.Cell(preset=SMOKE, method="byot", seed=0, fields={})
    random = np.random.default_rng(0)
    data = cifar100.Split(
        random.integers(0, 256, (200, 32, 32, 3), "uint8"), np.arange(200) % 100
    )

    def build(optimizer):
        inputs = keras.Input((32, 32, 3))
        x = keras.layers.Flatten()(inputs)
        x = keras.layers.Dense(4, activation="relu", name="tap")(x)
        x = keras.layers.Dense(4, activation="relu")(x)
        base = keras.Model(inputs, keras.layers.Dense(100, activation="softmax")(x))
        model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
        model.compile(optimizer, methods.label_loss(SMOKE), metrics=["accuracy"])
        return model

    model, epochs = training.train(
        cell,
        data,
        build,
        checkpoint.Checkpoint(folder / "checkpoint.npz", {}),
        label=cell.name,
        prepare=None,
        augment_on="device",
        deadline=math.inf,
    )
    logs = [{name: each[name] for name in ("loss", "accuracy")} for each in epochs]
    return model.steps_per_execution, logs, model.get_weights()


@long_on("jax")
def test_cutmix_is_keras_layer_with_a_seed_for_each_batch():
    fields = {"alpha": 1.0, "probability": 1.0}
    cell = methods.Cell(preset=SMOKE, method="cutmix", seed=0, fields=fields)
    mix = methods.prepare_cutmix(cell)
    images = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype("float32")
    labels, to_numpy = np.arange(6), keras.ops.convert_to_numpy
    for key in (1, 2):
        rng = np.random.default_rng(key)
        rng.random()  # Whether to mix the batch.
        seed = keras.random.SeedGenerator(int(rng.integers(2**31)))
        layer = keras.layers.CutMix(factor=(1.0, 1.0))
        drawn = layer.get_random_transformation(images, seed=seed)
        targets = keras.ops.one_hot(labels, 100)
        expected = layer.transform_images(images, drawn)
        found, shares = mix(images, labels, np.random.default_rng(key))
        np.testing.assert_array_equal(found, to_numpy(expected))
        assert not np.array_equal(found, images)
        expected = to_numpy(layer.transform_labels(targets, drawn))
        np.testing.assert_allclose(shares, expected, atol=1e-6)


@long_on("jax")
def test_several_steps_at_a_time_train_as_one_by_one(tmp_path, monkeypatch):
    on_jax = keras.backend.backend() == "jax"
    for steps, expected in {391: 23, 79: 1, 64: 32}.items():
        assert training.steps_per_execution(steps) == (expected if on_jax else 1)
    if not on_jax:
        return
    (tmp_path / "several").mkdir()
    count, logs, weights = trained(tmp_path / "several")
    assert count == 2  # All of an epoch.
    assert len(logs) == SMOKE.epochs
    monkeypatch.setattr(training, "steps_per_execution", lambda steps: 1)
    count, expected, others = trained(tmp_path)
    assert count == 1
    assert logs == expected
    for ours, theirs in zip(weights, others, strict=True):
        np.testing.assert_array_equal(ours, theirs)
