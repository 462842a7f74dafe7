"""Train on several devices, by the engines of the examples, and compare with one.

    python -m tests.integration.distributed_probe ENGINE FILE

trains a saved wrapper for five steps on one device, and again on several, and prints
the differences; run by test_distribution.py.
"""

import functools
import itertools
import json
import pathlib
import sys

import keras
import numpy as np
from keras import layers

import keras_selfdistill as ksd
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "examples"))
from distributed import engines

STEPS, BATCH = 5, 16


def network(name):
    """Return a small classifier with batch normalisation and weight decay."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, use_bias=False, name="conv_tap")(inputs)
    x = layers.BatchNormalization(name="bn_tap")(x)
    x = layers.ReLU(name="tap")(x)
    decay = keras.regularizers.L2(0.01)
    x = layers.Conv2D(
        8, 3, strides=2, use_bias=False, kernel_regularizer=decay, name="conv"
    )(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    outputs = layers.Dense(4, activation="softmax", name="dense")(x)
    return keras.Model(inputs, outputs, name=name)


def build():
    """Return a compiled wrapper with every kind of loss term, and a schedule."""
    keras.utils.set_random_seed(0)
    rising = keras.optimizers.schedules.PolynomialDecay(0.2, 3, 0.8)
    model = ksd.SelfDistiller(
        network("base"),
        ["tap"],
        ksd.recipes.BYOT(alpha=rising, hint_weight=0.1),
        teacher=network("teacher"),
        distillation_losses=[keras.distillation.FeatureDistillation("mse")],
    )
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        weighted_metrics=["accuracy"],
    )
    model.optimizer.build(model.trainable_variables)
    return model


def load(path, batch_normalization):
    """Return a saved wrapper, its batch normalisation such that devices can agree."""
    model = keras.saving.load_model(path)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            if batch_normalization == "synchronized":
                layer.synchronized = True
            elif batch_normalization == "inference":
                layer.trainable = False
    return model


def train(engine, model):
    """Return the logs of five steps and the weights after them."""
    random = np.random.default_rng(0)
    count = (STEPS, BATCH)
    arrays = (
        random.normal(size=(*count, 8, 8, 3)).astype("float32"),
        random.integers(0, 4, count),
        random.uniform(0.5, 1.5, count).astype("float32"),
    )
    batches = list(zip(*arrays, strict=True))
    shares = engines.Shares(batches, engine.process, engine.processes)
    logs = engine.fit(model, shares, steps_per_epoch=STEPS, epochs=1).history
    with engine.scope():
        weights = numbers(model)
    return {key: value for key, (value,) in logs.items()}, weights


def numbers(model):
    """Return the values of a model's weights; base and teacher share their paths."""
    pairs = enumerate(model.weights)
    return {f"{i} {v.path}": keras.ops.convert_to_numpy(v) for i, v in pairs}


def largest_difference(first, second):
    """Return the largest difference of the values of two mappings."""
    assert first.keys() == second.keys()
    return float(max(np.abs(first[key] - second[key]).max() for key in first))


@functools.cache
def on_one_device(path, mode):
    """Return the logs of five steps, all weights after, and trained ones before."""
    model = load(path, mode)
    trained = {id(variable) for variable in model.trainable_variables}
    is_trained = [id(variable) in trained for variable in model.weights]
    before = dict(itertools.compress(numbers(model).items(), is_trained))
    return *train(engines.Engine(), model), before


def compare(path, engine, mode):
    """Return how far several devices are from one, and how far that one went."""
    alone_logs, alone_weights, before = on_one_device(path, mode)
    with engine.scope():
        model = load(path, mode)
    logs, weights = train(engine, model)
    return {
        "logs": largest_difference(logs, alone_logs),
        "weights": largest_difference(weights, alone_weights),
        "way": min(float(np.abs(alone_weights[k] - before[k]).max()) for k in before),
        "names": sorted(logs),
        "replicas": engine.replicas,
        **(placement(model) if keras.backend.backend() == "jax" else {}),
    }


def placement(model):
    """Return over how many devices JAX has spread a model, and how many weights."""
    shardings = [variable.value.sharding for variable in model.trainable_variables]
    return {
        "devices": max(len(each.device_set) for each in shardings),
        "split": sum(not each.is_fully_replicated for each in shardings),
    }


def error_of_base_outside(engine):
    """Return what a wrapper says whose base was not made in the engine's scope."""
    base = network("outside")
    with engine.scope():
        model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
        model.compile("sgd", "sparse_categorical_crossentropy")
    try:
        train(engine, model)
    except ValueError as error:
        return str(error)


def comparisons(name, path):
    """Return the results for an engine, each under the name of what was compared."""
    match name:
        case "mirrored":
            engine = engines.MirroredEngine(cpu_devices=2)
            return {
                name: compare(path, engine, "synchronized"),
                "error": error_of_base_outside(engine),
            }
        case "multi_worker":
            engine = engines.MultiWorkerEngine(timeout=60)
            return {name: compare(path, engine, "synchronized")}
        case "ddp":
            engine = engines.DistributedDataParallelEngine(timeout=60)
            return {name: compare(path, engine, "inference")}
    # On JAX the mean over the batch is one over all devices.
    four = engines.DataParallelEngine(cpu_devices=4)
    names = keras.distribution.list_devices()
    two = engines.DataParallelEngine(cpu_devices=4, devices=names[:2])
    split = engines.ModelParallelEngine(cpu_devices=4)
    found = {"two": two, "four": four, "model_parallel": split}
    return {key: compare(path, each, "as it is") for key, each in found.items()}


def main(name, path):
    """Print what an engine makes of a model."""
    print(json.dumps(comparisons(name, path)))


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
