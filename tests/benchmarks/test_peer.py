"""BYOT in plain PyTorch, written for a benchmark: the wrapper computes what it does."""

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from tests.conftest import long_on, require_backend

BATCH = 4
PLACES = {"first": 0, "last": 3, "reduce": 0, "downsample": 3, "expand": 6}


def module_of(network, layer):
    """Return the module of the PyTorch network for a layer of the wrapper."""
    first, *rest = layer.split("_")
    if first == "stem":
        return network.stem[["conv", "bn"].index(rest[0])]
    if first == "predictions":
        return network.classifiers[-1]
    behind = int(rest[-1] == "bn")
    if first == "exit":
        number = int(rest[0]) - 1
        if rest[1] == "logits":
            return network.classifiers[number]
        return network.branches[number][PLACES[rest[1]] + behind]
    block = network.stages[int(first[-1]) - 1][int(rest[0][-1]) - 1]
    if rest[1] == "shortcut":
        return block.shortcut[behind]
    return block.residual[PLACES[rest[1]] + behind]


def places(variable, network):
    """Return the parameter of a variable, and the variable's value in its layout."""
    layer, kind = variable.path.split("/")
    module = module_of(network, layer)
    value = keras.ops.convert_to_numpy(variable)
    if kind != "kernel":
        return (module.bias if kind in ("beta", "bias") else module.weight), value
    if module.weight.ndim == 4:
        after, before, *window = module.weight.shape
        value = value.reshape(*window, before, after)
        return module.weight, value.transpose(3, 2, 0, 1)
    return module.weight, value.T


@long_on("jax", "tensorflow")
def test_the_wrapper_trains_as_byot_in_plain_pytorch():
    require_backend("torch")
    import torch

    from peers import pytorch_byot

    random = np.random.default_rng(0)
    images = random.normal(size=(BATCH, 32, 32, 3)).astype("float32")
    labels = random.integers(0, 100, BATCH)
    base = ksd.networks.resnet18(width_multiplier=0.125)
    recipe = ksd.recipes.BYOT(hint_weight=1e-6 * BATCH, final_label_weight=0.9)
    model = ksd.SelfDistiller(base, 3, recipe, head="bottleneck")
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    trainer = pytorch_byot.Trainer(width_multiplier=0.125)
    network = trainer.network.to("cpu")
    for group in trainer.optimizer.param_groups:
        group.update(lr=0.01, momentum=0.0)
    with torch.no_grad():
        for variable in model.trainable_variables:
            parameter, value = places(variable, network)
            parameter.copy_(torch.from_numpy(np.array(value)))
    before = [
        keras.ops.convert_to_numpy(each).copy() for each in model.trainable_variables
    ]
    held = sum(parameter.numel() for parameter in network.parameters())
    assert held == sum(np.prod(each.shape) for each in model.trainable_variables)

    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    loss, *_ = trainer.step(pixels, torch.from_numpy(labels))
    logs = model.train_on_batch(images, labels, return_dict=True)
    assert float(logs["loss"]) == pytest.approx(loss, rel=1e-5)
    for variable, old in zip(model.trainable_variables, before, strict=True):
        parameter, value = places(variable, network)
        wrong = np.linalg.norm(value - parameter.detach().numpy())
        changed = np.linalg.norm(keras.ops.convert_to_numpy(variable) - old)
        assert wrong <= 0.01 * changed, variable.path
