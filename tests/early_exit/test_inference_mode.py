"""What is cut from a graph runs as in Keras' own `predict`, whatever layers it holds.

The layers are found in `keras.layers`, so that those of a new Keras come by themselves.
"""

import functools
import importlib.util
import inspect
import math

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.early_exit.export.section_runner import SectionRunner
from tests.conftest import miss

BACKEND = keras.backend.backend()
# Exporters and runtimes warn of their own workings.
pytestmark = pytest.mark.filterwarnings("ignore")

# Arguments by name: those that a class requires, and what makes it draw numbers.
REQUIRED = {
    "cell": lambda: layers.GRUCell(3, dropout=0.5),
    "factor": lambda: 0.5,
    "filters": lambda: 3,
    "head_dim": lambda: 4,
    "height": lambda: 6,
    "height_factor": lambda: 0.3,
    "kernel_size": lambda: 3,
    "key_dim": lambda: 4,
    "layers": lambda: [layers.RandomFlip(), layers.RandomBrightness(0.5)],
    "num_heads": lambda: 2,
    "num_key_value_heads": lambda: 2,
    "num_query_heads": lambda: 2,
    "rate": lambda: 0.5,
    "units": lambda: 3,
    "width": lambda: 6,
    "width_factor": lambda: 0.3,
}
# Arguments that draw nothing by default.
RANDOM = {
    "brightness_factor": 0.5,
    "dropout": 0.5,
    "recurrent_dropout": 0.5,
    "stddev": 0.9,
    "x_factor": 0.5,
}
SPECIAL = {
    layers.Bidirectional: {"layer": lambda: layers.LSTM(3, dropout=0.5)},
    layers.EinsumDense: {
        "equation": lambda: "bhwc,cd->bhwd",
        "output_shape": lambda: (8, 8, 4),
    },
    layers.RandomPosterization: {"factor": lambda: 3},
    layers.SpectralNormalization: {"layer": lambda: layers.Dense(4)},
    layers.TimeDistributed: {"layer": lambda: layers.Dropout(0.5)},
}
# Why some compute the same in training.
ALIKE = {
    layers.AutoContrast: "draws nothing",
    layers.CenterCrop: "draws nothing",
    layers.ContrastLimitedAdaptiveHistogramEqualization: "draws nothing",
    layers.Dense: "asks for the statistics of float8 alone",
    layers.EinsumDense: "asks for the statistics of float8 alone",
    layers.Equalization: "draws nothing",
    layers.Resizing: "draws nothing",
}
# Why some are no layers of a base by themselves.
LEFT_OUT = {
    layers.FlaxLayer: "a Flax module",
    layers.GRUCell: "runs in an RNN layer",
    layers.JaxLayer: "a JAX function",
    layers.Lambda: "a Python function, which may do anything",
    layers.LSTMCell: "runs in an RNN layer",
    layers.MaxNumBoundingBoxes: "of bounding boxes",
    layers.SimpleRNNCell: "runs in an RNN layer",
    layers.StackedRNNCells: "runs in an RNN layer",
    layers.TFSMLayer: "a saved program",
    layers.TorchModuleWrapper: "a PyTorch module",
}
# These would take images, too, and then fail.
SHAPE_OF = {layers.GroupQueryAttention: (6, 6), layers.RNN: (6, 6)}
# In inference images keep their size, though the layer's symbolic output does not.
POOLED = {layers.RandomCrop}
SHAPES = [(8, 8, 3), (6, 6), (4, 4, 4, 3), (2, 6, 6, 6, 2)]  # Images first.


def asks_whether_it_trains(layer_class):
    return "training" in inspect.signature(layer_class.call).parameters


CLASSES = sorted(
    {
        value
        for value in vars(layers).values()
        if inspect.isclass(value)
        and issubclass(value, keras.Layer)
        and asks_whether_it_trains(value)
    }
    - LEFT_OUT.keys(),
    key=lambda value: value.__name__,
)


def make(layer_class):
    """Return a layer that draws numbers in training, if its class can."""
    special, found = SPECIAL.get(layer_class, {}), {}
    for name, parameter in inspect.signature(layer_class).parameters.items():
        if name in RANDOM:
            found[name] = RANDOM[name]
        elif parameter.default is parameter.empty or name in special:
            value = {**REQUIRED, **special}.get(name)
            found |= {name: value()} if value else {}
    return layer_class(**found)


@functools.cache
def fitting(layer_class):
    """Return the first shape that a class takes, and in which form it takes inputs."""
    forms = [lambda x: (x,), lambda x: (x, x), lambda x: ([x, x],)]
    problems = []
    for shape in [SHAPE_OF[layer_class]] if layer_class in SHAPE_OF else SHAPES:
        for form in forms:
            try:
                output = make(layer_class)(*form(keras.Input(shape)))
            except Exception as error:
                problems.append(f"{shape}: {error}")
            else:
                if isinstance(output, keras.KerasTensor) and output.shape[0] is None:
                    return shape, form
    return pytest.fail("\n".join([layer_class.__name__, *problems]))


def make_base(layer_class):
    """Return a base whose first layer is of this class."""
    shape, form = fitting(layer_class)
    inputs = keras.Input(shape)
    x = layers.Rescaling(1 / 255)(make(layer_class)(*form(inputs)))
    pooled = layer_class in POOLED
    x = layers.GlobalAveragePooling2D()(x) if pooled else layers.Flatten()(x)
    x = layers.Dense(6, "tanh", name="tap")(x)
    x = layers.Dense(5, "tanh")(x)
    return keras.Model(inputs, layers.Dense(3, "softmax")(x))


def make_x(base, samples=4):
    random = np.random.default_rng(0)
    return random.uniform(0, 255, (samples, *base.inputs[0].shape[1:])).astype(
        "float32"
    )


class AlwaysDropout(layers.Dropout):
    """Monte-Carlo dropout: it draws in inference, too."""

    def call(self, inputs, training=False):
        return super().call(inputs, training=True)


def small_base(*first, classes=3):
    """Return a base of dense layers behind others, and inputs for it."""
    inputs = keras.Input((4, 4, 2))
    x = inputs
    for layer in first:
        x = layer(x)
    x = layers.Dense(6, "tanh", name="tap")(layers.Flatten()(x))
    x = layers.BatchNormalization(name="norm")(layers.Dense(5, "tanh")(x))
    return keras.Model(inputs, layers.Dense(classes, "softmax", name="top")(x))


def early_exit(base, **options):
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
    return ksd.EarlyExit(model, **{"thresholds": 2.0, **options})


def test_augmentation_in_the_base_is_off():
    flip = layers.RandomFlip(name="norm")  # Renamed, since the base has such a name.
    nested = keras.Sequential([keras.Input((4, 4, 2)), flip], name="backbone")
    base = small_base(
        layers.RandomFlip(),
        lambda x: layers.GaussianNoise(0.9)(x, training=True),
        nested,
        lambda x: nested(x, training=True),
    )
    x = make_x(base, 64)
    expected = base.predict(x, verbose=0)
    fast = early_exit(base)
    np.testing.assert_allclose(fast.predict(x).predictions, expected, atol=1e-6)
    np.testing.assert_allclose(
        fast.model.predict(x, verbose=0)["final"], expected, atol=1e-6
    )
    fast.calibrate(x, expected.argmax(axis=-1), max_accuracy_drop=0.0)
    assert fast.calibration.base_accuracy == 1.0


def test_what_draws_in_inference_draws_anew():
    base = small_base(AlwaysDropout(0.5, seed=1))
    x = make_x(base, 2)
    expected = [base.predict(x, verbose=0) for _ in range(3)]
    assert len({each.tobytes() for each in expected}) == 3
    seed = base.layers[1].seed_generator.state
    seed.assign([1, 0])
    fast = early_exit(base)
    seed.assign([1, 0])
    found = [fast.predict(x).predictions for _ in range(3)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_is_not_assigned_stays_as_it_is():
    base = small_base()
    fast = early_exit(base)
    mean = base.get_layer("norm").moving_mean
    before = mean.value
    fast.predict(make_x(base))
    assert mean.value is before


@pytest.mark.parametrize("change", ["lora", "quantize"])
def test_variables_that_are_added_or_replaced_are_seen(change):
    keras.utils.set_random_seed(0)
    base = small_base()
    fast = early_exit(base)
    x = make_x(base)
    before = fast.predict(x).predictions
    top = base.get_layer("top")
    if change == "lora":
        top.enable_lora(2)
        top.lora_kernel_b.assign(np.arange(6).reshape(2, 3))
    else:
        top.quantize("int4")
    expected = keras.ops.convert_to_numpy(base(x, training=False))
    assert abs(expected - before).max() > 1e-3
    np.testing.assert_allclose(fast.predict(x).predictions, expected, atol=1e-5)


each_class = pytest.mark.parametrize(
    "layer_class", CLASSES, ids=lambda value: value.__name__
)


@pytest.mark.long
@each_class
def test_layers_that_train_otherwise(layer_class):
    keras.utils.set_random_seed(0)
    base = make_base(layer_class)
    x = make_x(base)
    expected = base.predict(x, verbose=0)
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
    np.testing.assert_array_equal(model.final_model().predict(x, verbose=0), expected)
    together = model.predict(x, verbose=0)
    np.testing.assert_allclose(together["final"], expected, atol=1e-5)
    fast = ksd.EarlyExit(model, thresholds=2.0)
    found = fast.predict(x)
    assert set(found.exits) == {"final"}
    np.testing.assert_allclose(found.predictions, expected, atol=1e-5)
    fast.thresholds = -1.0
    exit_1 = model.exit_model("exit_1").predict(x, verbose=0)
    np.testing.assert_allclose(fast.predict(x).predictions, exit_1, atol=1e-5)
    np.testing.assert_allclose(together["exit_1"], exit_1, atol=1e-5)
    # Last, as it moves the statistics that inference reads. Some layers draw seldom.
    trained = (keras.ops.convert_to_numpy(base(x, training=True)) for _ in range(3))
    differs = any(abs(each - expected).max() > 1e-4 for each in trained)
    assert differs == (layer_class not in ALIKE)


def run_saved_model(path, x):
    import tensorflow as tf

    return tf.saved_model.load(str(path)).serve(x)["prediction"].numpy()


def run_onnx(path, x):
    return SectionRunner(path)(x)[0]


def run_litert(path, x):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path)).get_signature_runner()
    (name,) = runner.get_input_details()
    found = [runner(**{name: sample[None]})["prediction"] for sample in x]
    return np.concatenate(found)


# By format: the packages that write and run it, and how it is run.
FORMATS = {
    "tf_saved_model": ((), run_saved_model),
    "onnx": (("tf2onnx", "onnxruntime"), run_onnx),
    "litert": (("ai_edge_litert",), run_litert),
}


def make_base_of_several(layer_classes):
    """Return a base where several layers read one input side by side."""
    inputs, features = keras.Input((max(map(math.prod, SHAPES)),)), []
    for layer_class in layer_classes:
        shape, form = fitting(layer_class)
        x = layers.Reshape(shape)(inputs[:, : math.prod(shape)])
        x = layers.Rescaling(1 / 255)(make(layer_class)(*form(x)))
        pooled = layer_class in POOLED
        x = layers.GlobalAveragePooling2D()(x) if pooled else layers.Flatten()(x)
        # However large a layer's output is, it counts as much as the others.
        features.append(layers.Dense(3, "tanh")(x))
    x = layers.Concatenate(name="tap")(features)
    x = layers.Dense(8, "tanh")(x)
    return keras.Model(inputs, layers.Dense(3, "softmax")(x))


# Its symbolic output is its input itself, so that no layer may lie before it.
FIRST_ALONE = {layers.Equalization}
TOGETHER = [each for each in CLASSES if each not in FIRST_ALONE]
# Most of the time of an export is the same for one layer and for several.
GROUPS = [TOGETHER[part::7] for part in range(7)]


@pytest.mark.long
@pytest.mark.skipif(BACKEND != "tensorflow", reason="artifacts are written there")
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("group", [*GROUPS, *([each] for each in FIRST_ALONE)])
def test_exports_of_layers_that_train_otherwise(group, format, tmp_path):
    packages, run = FORMATS[format]
    for package in packages:
        if importlib.util.find_spec(package) is None:
            miss(f"{package} is not installed")
    keras.utils.set_random_seed(0)
    base = make_base(*group) if len(group) == 1 else make_base_of_several(group)
    x = make_x(base)
    expected = base.predict(x, verbose=0)
    early_exit(base).export(tmp_path / "exported", format)
    found = run(tmp_path / "exported", x)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    trained = keras.ops.convert_to_numpy(base(x, training=True))
    assert (abs(trained - expected).max() > 1e-4) == bool({*group} - ALIKE.keys())


@pytest.mark.long
@pytest.mark.once
def test_no_layer_is_forgotten():
    """Those left out ask whether they train, and the others are all there."""
    assert all(map(asks_whether_it_trains, LEFT_OUT))
    names = {each.__name__ for each in CLASSES}
    assert {"BatchNormalization", "Dropout", "LSTM", "RandomFlip", "MixUp"} <= names
    assert {fitting(each)[0] for each in CLASSES} == set(SHAPES)
    assert set(CLASSES) >= {*ALIKE, *POOLED, *SPECIAL}
