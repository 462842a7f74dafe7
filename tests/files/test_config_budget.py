"""A small config that asks for much is refused before anything is made from it."""

import inspect
import json

import keras
import pytest

import keras_selfdistill as ksd
from keras_selfdistill.files import config_budget, config_calls
from keras_selfdistill.files.config_budget import check_budget
from keras_selfdistill.files.config_calls import check_calls
from keras_selfdistill.files.config_check import REFUSED
from keras_selfdistill.graph.ends import check, sizes
from keras_selfdistill.graph.ends.run import Run
from tests.files.test_keras_classes import serialisable
from tests.fuzz.mutations import archive_of, function, parts_of, symbol

pytestmark = pytest.mark.once


def metrics(number, name, **fields):
    return {"metrics": [symbol("keras.metrics", name, **fields)] * number}


def wrapper(exits, **compiled):
    """Return the config of a wrapper; each exit has metrics of its own."""
    config = symbol("keras", "Model", taps=[f"tap_{i}" for i in range(exits)])
    return {**config, "compile_config": compiled}


def operation(name, **fields):
    return symbol("keras.src.ops.numpy", name, **fields)


def optimizer_map(*patterns):
    sgd = symbol("keras.optimizers", "SGD")
    inner = symbol(
        "keras.optimizers",
        "OptimizerMap",
        default_optimizer=sgd,
        optimizer_map=dict.fromkeys(patterns, sgd),
    )
    return symbol("keras.optimizers", "MultiOptimizer", optimizer_map=inner)


def policy_map(pattern):
    policies = {pattern: symbol("keras", "DTypePolicy", name="float16")}
    return symbol("keras.dtype_policies", "DTypePolicyMap", policy_map=policies)


def muon(*patterns):
    return symbol("keras.optimizers", "Muon", exclude_layers=list(patterns))


def layers(number, name="layer"):
    return [symbol("keras.layers", "ReLU", name=name)] * number


TOO_MUCH = {
    "thresholds": metrics(1500, "AUC", num_thresholds=2**20),
    "thresholds of several": metrics(2, "AUC", num_thresholds=2**17 - 1),
    "many metrics": metrics(20_000, "F1Score", threshold=0.5),
    "names of metrics": {"weighted_metrics": ["AUC"] * 1001},
    "names by output": {"metrics": {"a": [["AUC"] * 500], "b": ["mse"] * 501}},
    "names of losses": {"loss": {"a": ["mse"] * 1001}},
    "functions": {"metrics": [function("keras.metrics", "mean_squared_error")] * 1001},
    "losses of a loss": symbol(
        "keras.distillation", "FeatureDistillation", loss=["mse"] * 1001
    ),
    "many distillation losses": {
        "distillation_losses": [
            symbol("keras.distillation", "FeatureDistillation", loss="mse")
        ]
        * 501
    },
    "metrics of every exit": wrapper(40, metrics=["AUC"] * 24),
    "thresholds of every exit": wrapper(40, **metrics(5, "AUC", num_thresholds=1000)),
    "exits": wrapper(501),
    "classes": metrics(3, "MeanIoU", num_classes=50_000),
    "parts of a split": operation("Split", indices_or_sections=3_000_000),
    "parts of another split": operation("ArraySplit", indices_or_sections=3_000_000),
    "parts of an axis": symbol("keras.src.ops.core", "Unstack", num=3_000_000),
    "iterations": symbol(
        "keras.layers", "SpectralNormalization", power_iterations=2**30
    ),
    "dimensions": symbol(
        "keras.src.layers.convolutional.base_conv", "BaseConv", rank=10**9
    ),
    **{
        f"indices of {name}": symbol("keras.layers", name, num_oov_indices=10**7)
        for name in ("StringLookup", "IntegerLookup")
    },
    **{
        f"padded weights of {name}": symbol(
            "keras.layers", name, max_tokens=10**7, pad_to_max_tokens=True
        )
        for name in ("StringLookup", "IntegerLookup", "TextVectorization")
    },
    "n-grams": symbol("keras.layers", "TextVectorization", ngrams=10**7),
    "layers": layers(10_001),
    "objects": [symbol("keras.initializers", "Zeros")] * 100_001,
    "a search": muon("conv", "(a+)+$"),
    "a match": optimizer_map("(a|aa)+b"),
    "a match of policies": policy_map("(a+)+$"),
    "a long pattern": muon("a" * 1000),
    "names and wildcards": [
        optimizer_map(".*a.*a.*a.*a"),
        *layers(10, "a" * 1000),
    ],
    "a long equation": symbol("keras.layers", "EinsumDense", equation="a" * 10**5),
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_what_asks_for_too_much_is_refused(what):
    with pytest.raises(ValueError, match=r"Received: .*Expected: "):
        check_budget({"config": [TOO_MUCH[what]]})


# Integers of Keras' classes that make no list and no loop when a file is loaded.
HARMLESS = {
    "a size of weights, or of outputs, which are symbolic or bounded in checks": """
        block_size crossing_dim cropping depth_multiplier dilation_rate fill_value
        fft_length frame_length group_size groups hashing_dim kernel_size max_number n
        noise_shape num_bins num_discretization_bins num_heads num_key_value_heads
        num_mel_bins num_query_heads num_tokens padding pool_size sequence_stride size
        strides tile_grid_size amax_history_length
    """,
    "a number to compute with": """
        adam_lr_ratio axis dynamic_growth_steps max_freq max_value name oov_token
        sampling_rate value_range warmup_steps weight_bits
    """,
    "of quantisation with data, which no file asks for": """
        num_grid_points num_samples sequence_length
    """,
    "counted where it is padded": "max_tokens",
}


def is_whole(parameter):
    """Return whether a parameter may be an integer, by its default or its name."""
    default = parameter.default
    first = default[0] if isinstance(default, tuple) and default else default
    without = default in (None, parameter.empty)
    counts = parameter.name.startswith(("n", "max_", "min_"))
    return type(first) is int or (without and counts)


def test_every_integer_of_a_class_of_keras_is_counted_or_harmless():
    """A new Keras shows its new ones here: those of metrics are counted in any case."""
    found = set()
    for name, each in serialisable().items():
        if name not in REFUSED and not issubclass(each, keras.metrics.Metric):
            parameters = inspect.signature(each.__init__).parameters.values()
            found |= {one.name for one in parameters if is_whole(one)}
    harmless = set(" ".join(HARMLESS.values()).split())
    assert "num_oov_indices" in found
    assert found - config_budget._REPEATED == harmless


HONEST = {
    "metrics of every class": [
        metrics(100, "AUC", num_thresholds=1000),
        metrics(1, "IoU", num_classes=1000, target_class_ids=list(range(1000))),
    ],
    "metrics of many exits": wrapper(
        50,
        loss="mse",
        metrics=["accuracy", *metrics(2, "AUC")["metrics"]],
        weighted_metrics=["mse"] * 5,
    ),
    "a split": operation("Split", indices_or_sections=100),
    "wide layers": symbol("keras.layers", "Dense", units=10**6),
    "layers": layers(5000, "conv5_block32_concat"),
    "names": muon("conv1/", "^head", "embedding$", "block-2.dense"),
    "our own how-to": [*layers(2000, "block_" * 5), optimizer_map("(?!exit_).*")],
    "patterns": [
        *layers(500),
        optimizer_map("encoder/.*", ".*/bias|.*norm.*", "dense"),
        policy_map("decoder/.*"),
    ],
    "many words": symbol("keras.layers", "TextVectorization", max_tokens=10**6),
    "buckets": symbol("keras.layers", "StringLookup", num_oov_indices=10**4),
    "words": symbol("keras.layers", "StringLookup", vocabulary=["word"] * 10**5),
}


def nested(depth, times, **fields):
    """Return the config of a model that calls an inner one, and so on to one layer."""
    node = {"args": [symbol("__keras_tensor__", "__keras_tensor__")], "kwargs": {}}
    inner = symbol("keras.layers", "ReLU") if depth == 0 else nested(depth - 1, times)
    called = {**inner, "inbound_nodes": [node] * times, **fields}
    return symbol("keras", "Model", layers=[called])


SHARED = {"shared_object_id": 7}
TOO_OFTEN = {
    "nested calls": nested(25, 2),
    "many calls": nested(0, 30_001),
    "calls of calls": nested(1, 200),
    "layers of a layer": symbol("keras.layers", "TimeDistributed", layer=nested(25, 2)),
    "shared": [{**nested(3, 2), **SHARED}, *nested(0, 2, **SHARED)["config"]["layers"]],
}


@pytest.mark.parametrize("what", TOO_OFTEN)
def test_too_many_calls_of_layers_are_refused(what):
    with pytest.raises(ValueError, match=r"too often\. Received|of one object differ"):
        check_calls({"config": TOO_OFTEN[what]})


def test_calls_of_nested_models_are_counted():
    """By hand: 3 of the layer; 2 of the model around it, each with 3 and itself."""
    counter = config_calls._Calls()
    outer = nested(0, 3)["config"]["layers"]
    inner = symbol("keras", "Model", layers=outer)
    counter.count({**inner, "inbound_nodes": [{}, {}]}, ())
    assert counter._total == 3 + 2 * (3 + 1)


def test_calls_that_models_need_are_not_refused():
    shared = [{**nested(3, 2), **SHARED}, {**nested(3, 2), **SHARED}]
    deep = symbol("keras", "Model", model=nested(0, 1) | {"config": layers(9_000)})
    for each in (shared, deep, nested(8, 2), nested(30, 1)):
        check_calls({"config": each})


def test_calls_are_counted_when_a_file_is_loaded(tmp_path):
    inputs = keras.Input((4,))
    model = keras.layers.ReLU()
    for _ in range(14):
        model = keras.Model(inputs, model(model(inputs)))
    model.save(tmp_path / "a.keras")
    with pytest.raises(ksd.RefusedFileError, match="call layers too often"):
        ksd.load_model(tmp_path / "a.keras")


@pytest.mark.parametrize("what", HONEST)
def test_what_models_need_is_not_refused(what):
    check_budget({"config": [HONEST[what]]})
    check_calls({"config": [HONEST[what]]})


def end_of(inputs, layer=None):
    """Return a model of positions that ends in logits, a layer and a softmax."""
    x = keras.layers.Dense(4, name="tap")(inputs)
    x = keras.layers.Dense(3, name="logits")(keras.layers.ReLU()(x))
    x = layer(x) if layer else x
    return keras.Model(inputs, keras.layers.Softmax()(x))


@pytest.mark.parametrize("shape", [(2, 50, 4), (None, 50, 4)])
def test_sizes_in_a_file_take_no_time_or_memory(tmp_path, shape, monkeypatch):
    """The check of the end computes with values, of fewer positions than that."""
    model = ksd.SelfDistiller(end_of(keras.Input(batch_shape=shape)), ["tap"])
    model.save(tmp_path / "a.keras")
    parts = dict(parts_of((tmp_path / "a.keras").read_bytes()))
    large = json.dumps([shape[0], 2**30, 4])
    config = parts["config.json"].decode().replace(json.dumps(list(shape)), large)
    parts["config.json"] = config.encode()
    (tmp_path / "a.keras").write_bytes(archive_of(parts.items()))
    drawn, draw = [], check._random_input
    monkeypatch.setattr(
        check, "_random_input", lambda *a: drawn.append(draw(*a)) or drawn[-1]
    )
    loaded = ksd.load_model(tmp_path / "a.keras")
    assert loaded.inputs[0].shape == (shape[0], 2**30, 4)
    assert {tuple(each.shape) for each in drawn} == {(2, 16, 4)}


TOO_LARGE = {
    "upsampling": lambda: end_of(
        keras.Input((None, 4)), keras.layers.UpSampling1D(2**29)
    ),
    "repetition": lambda: end_of(
        keras.Input((5, 4)), lambda x: keras.ops.repeat(x, 2**29, axis=0)
    ),
    "a batch": lambda: end_of(keras.Input((2**29, 4)), keras.layers.Cropping1D(2**20)),
}


def test_pixels_that_are_reshaped_are_tried_with_one_sample(monkeypatch):
    """As many as of a data set for segmentation: no fewer of them fit the reshape."""
    monkeypatch.setattr(sizes, "_FEW_ELEMENTS", 100)
    monkeypatch.setattr(sizes, "_MOST_ELEMENTS", 200)
    inputs = keras.Input((2, 20, 2))
    x = keras.layers.Conv2D(1, 1, name="tap")(inputs)
    logits = keras.layers.Reshape((40, 1))(x)
    runs = [Run(keras.Function(x, keras.layers.Softmax()(logits)))]
    assert sizes.batch_shapes([x], runs) == [[1, 2, 20, 1]]


@pytest.mark.parametrize("what", TOO_LARGE)
def test_an_end_that_cannot_be_tried_is_refused(what):
    with pytest.raises(ValueError, match="too large to be tried on a random batch"):
        ksd.SelfDistiller(TOO_LARGE[what](), ["tap"])


def test_it_is_checked_when_a_file_is_loaded(tmp_path):
    """The file's owner can still load it, by Keras."""
    base = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(4, name="tap"),
            keras.layers.Dense(4),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
    optimizer = keras.optimizers.Muon(exclude_layers=["(a+)+$"])
    model.compile(optimizer, "sparse_categorical_crossentropy")
    optimizer.build(model.trainable_variables)
    model.save(tmp_path / "a.keras")
    with pytest.raises(ksd.RefusedFileError, match=r"exponential time.*a\+"):
        ksd.load_model(tmp_path / "a.keras")
    loaded = keras.saving.load_model(tmp_path / "a.keras")
    assert loaded.optimizer.exclude_layers == ["(a+)+$"]
