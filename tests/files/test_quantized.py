"""Wrappers that were quantised, or compiled as our how-to says, save and load."""

import copy
import json
import pickle

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from tests.conftest import marks_long_on, to_numpy

# Keras names each layer that it does not quantise.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`"),
    *marks_long_on("jax", "tensorflow"),  # PyTorch compiles nothing.
]
X = np.random.default_rng(0).normal(size=(6, 8)).astype("float32")
Y = np.arange(6) % 3
LOSS = "sparse_categorical_crossentropy"


def build(activation="softmax"):
    """A wrapper whose head holds a layer in a layer, too."""
    keras.utils.set_random_seed(3)
    base = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(8, activation="relu", name="hidden"),
            keras.layers.Dense(8, activation="relu", name="deeper"),
            keras.layers.Dense(3, activation=activation, name="answers"),
        ]
    )
    return ksd.SelfDistiller(base, ["hidden"], "byot", head="linear")


def assert_same(model, other):
    for one, two in zip(
        *(keras.tree.flatten(each(X)) for each in (model, other)), strict=True
    ):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(two))


def reloaded(model, folder):
    """Yield the wrapper in every way in which it can be made again."""
    model.save(folder / "a.keras")
    yield keras.saving.load_model(folder / "a.keras")
    yield keras.saving.load_model(folder / "a.keras", compile=False)
    yield ksd.load_model(folder / "a.keras")
    yield copy.deepcopy(model)
    yield pickle.loads(pickle.dumps(model))


CONFIGS = {
    "int8": None,
    "int4": None,
    "float8": None,
    "its own": keras.quantizers.Int4QuantizationConfig(block_size=4),
}


@pytest.fixture(
    scope="module",
    params=[
        "int8",
        *(pytest.param(name, marks=pytest.mark.long) for name in [*CONFIGS][1:]),
    ],
)
def quantised(request):
    """A quantised wrapper, which tests must leave as it is."""
    model, config = build(), CONFIGS[request.param]
    model.quantize(*([] if config else [request.param]), config=config)
    return model


def test_a_quantised_wrapper_is_made_again_as_it_was(quantised, tmp_path):
    before = to_numpy(build()(X)["exit_1"])
    modes = {each.name: each.quantization_mode for each in quantised.layers}
    assert modes["exit_1_logits"] is not None
    for again in reloaded(quantised, tmp_path):
        assert_same(quantised, again)
        assert modes == {each.name: each.quantization_mode for each in again.layers}
        # As JSON, where a tuple is a list.
        one, two = (
            json.dumps(each.get_config()["quantized"]) for each in (again, quantised)
        )
        assert one == two
    moved = np.abs(to_numpy(quantised(X)["exit_1"]) - before).max()
    assert 0 < moved < 0.3


def test_what_is_cut_from_it_loads_too(quantised, tmp_path):
    for name in ("final_model", "ensemble_model"):
        model = getattr(quantised, name)()
        model.save(tmp_path / f"{name}.keras")
        assert_same(model, ksd.load_model(tmp_path / f"{name}.keras"))
    fast = ksd.EarlyExit(quantised, thresholds=0.4)
    fast.save(tmp_path / "a.earlyexit")
    again = ksd.EarlyExit.load(tmp_path / "a.earlyexit")
    np.testing.assert_array_equal(
        again.predict(X).predictions, fast.predict(X).predictions
    )


def test_it_trains_on_after_loading(tmp_path):
    model = build(activation=None)
    model.quantize("int8")
    model.save(tmp_path / "a.keras")
    losses = []
    for each in (model, ksd.load_model(tmp_path / "a.keras")):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        each.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
        losses.append(each.fit(X, Y, epochs=2, verbose=0, shuffle=False).history)
    assert losses[0] == losses[1]


@pytest.mark.once
def test_layers_of_which_nobody_knows_are_not_quantised(tmp_path):
    model = build()
    model.quantize("int8")
    config = model.get_config()
    (name, *_), value = config["quantized"], config["quantized"]["exit_1_logits"]
    for bad in ({"other": value}, {name: {"mode": "int8"}}, {name: None}):
        with pytest.raises(ValueError, match=r"config is invalid.*Expected"):
            ksd.SelfDistiller.from_config({**config, "quantized": bad})


@pytest.mark.once
def test_a_quantisation_that_cannot_be_done_again_is_not_saved(tmp_path):
    model = build()
    config = keras.quantizers.GPTQConfig([], None)
    model.get_layer("exit_1_logits").quantize("gptq", config=config)
    with pytest.raises(ValueError, match=r"'exit_1_logits', quantised by 'gptq'"):
        model.get_config()


def test_a_wrapper_with_two_optimizers_is_made_again(tmp_path):
    """As in docs/how_to/trained_base.md."""
    model, sgd = build(), keras.optimizers.SGD
    optimizer = keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            default_optimizer=sgd(0.1, momentum=0.9),
            optimizer_map={"(?!exit_).*": sgd(0.01, momentum=0.9)},
        )
    )
    model.compile(optimizer, LOSS, metrics=["accuracy"], run_eagerly=True)
    model.fit(X, Y, verbose=0, shuffle=False)
    again = list(reloaded(model, tmp_path))
    expected = model.fit(X, Y, verbose=0, shuffle=False).history
    for each in again:
        if each.compiled:
            assert each.fit(X, Y, verbose=0, shuffle=False).history == expected
            for one, other in zip(each.variables, model.variables, strict=True):
                np.testing.assert_array_equal(to_numpy(one), to_numpy(other))
