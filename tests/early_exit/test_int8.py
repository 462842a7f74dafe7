"""int8 artifacts, run by their real runtimes, against the float network."""

import sys
import types

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.early_exit.export.int8.litert import LiteRTNetwork, _checked
from keras_selfdistill.early_exit.export.int8.memory import (
    arena_levels,
    float_operators,
)
from keras_selfdistill.early_exit.export.int8.onnx_sections import shorten_names
from keras_selfdistill.early_exit.export.section_runner import SectionRunner
from tests.conftest import small_base
from tests.early_exit.test_export import Moving, need

pytestmark = [
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow",
        reason="artifacts that decide are written on TensorFlow",
    ),
    # Exporters and runtimes warn of their own workings.
    pytest.mark.filterwarnings("ignore"),
]
FORMATS = {"litert": "net.tflite", "onnx": "sections"}


def digits(channels=3):
    from sklearn.datasets import load_digits

    found = load_digits()
    images = found.images[..., None].astype("float32") / 16
    return np.repeat(images, channels, axis=-1), found.target


@pytest.fixture(scope="module")
def images():
    return digits()[0][:64], digits()[1][:64] % 4


@pytest.fixture(scope="module")
def trained(images):
    keras.utils.set_random_seed(0)
    model = ksd.SelfDistiller(
        small_base(), ["stem_relu", "out_1"], "byot", head="linear"
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(*images, epochs=15, verbose=0)
    return model


def median_thresholds(model, x, **options):
    """Thresholds that half of all samples reach at every exit."""
    fast = ksd.EarlyExit(model, thresholds=np.inf, **options)
    fast.calibrate(x, np.zeros(len(x), int), macs_budget=9.0)
    fast.thresholds = np.median(fast._outcomes.scores, axis=0).tolist()
    return fast


class LiteRT:
    """An int8 file, run by LiteRT's interpreter for one sample at a time."""

    def __init__(self, path):
        need("ai_edge_litert")
        from ai_edge_litert.interpreter import Interpreter

        self.run = Interpreter(str(path)).get_signature_runner()
        self.details = self.run.get_input_details()

    def ready(self, name, values):
        """Quantise an input by hand, as users do on a device."""
        details = self.details[name]
        if details["dtype"] != np.int8:
            return values
        scale, zero = details["quantization"]
        return np.clip(np.rint(values / scale) + zero, -128, 127).astype("int8")

    def __call__(self, **inputs):
        ready = {name: self.ready(name, values) for name, values in inputs.items()}
        count = len(next(iter(ready.values())))
        rows = [
            self.run(**{name: values[i : i + 1] for name, values in ready.items()})
            for i in range(count)
        ]
        return [
            np.concatenate([row[name] for row in rows])
            for name in ("prediction", "exit", "score")
        ]


def answer_of(path, format, x, names):
    """Return (predictions, exit names, scores) of an artifact."""
    if format == "onnx":
        return SectionRunner(path)(x)
    prediction, exits, score = LiteRT(path)(input=x)
    return prediction, np.array(names)[exits], score


def model_of(path):
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0), schema


OPTIONS = {
    "confidence": {},
    "means": {"criterion": "entropy", "scores_from": "running_mean"},
    "ensemble": {"criterion": "margin", "last_resort": "ensemble"},
    # Remembers floats, integers and truth values from section to section.
    "own class": {"criterion": Moving(share=0.75)},
}


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("litert", "confidence"),
        ("litert", "means"),
        ("onnx", "ensemble"),
        pytest.param("litert", "ensemble", marks=pytest.mark.long),
        pytest.param("litert", "own class", marks=pytest.mark.long),
        pytest.param("onnx", "own class", marks=pytest.mark.long),
        pytest.param("onnx", "confidence", marks=pytest.mark.long),
        pytest.param("onnx", "means", marks=pytest.mark.long),
    ],
)
def test_the_artifact_stops_like_the_float_network(
    trained, images, tmp_path, format, name
):
    fast = median_thresholds(trained, images[0], **OPTIONS[name])
    path = tmp_path / FORMATS[format]
    report = fast.export(path, format, quantize="int8", representative_data=images[0])
    if format == "onnx":
        check_onnx(path)
    expected = fast.predict(images[0])
    predictions, exits, scores = answer_of(path, format, images[0], fast.exit_names)
    same = exits == expected.exits
    assert same.mean() >= 0.9
    assert len(set(exits)) == 3
    np.testing.assert_allclose(scores[same], expected.scores[same], atol=0.1)
    np.testing.assert_allclose(predictions[same], expected.predictions[same], atol=0.1)
    assert np.abs(scores[same] - expected.scores[same]).max() > 0  # It is int8.
    limits = [*fast.thresholds.values(), -np.inf]
    reached = scores >= np.array(limits)[[fast.exit_names.index(e) for e in exits]]
    assert reached.all()
    assert report.thresholds == fast.thresholds | {fast.exit_names[-1]: None}


# But for "Add", which residual blocks have, too.
SCORING = {"Div", "Exp", "Max", "Min", "Mul", "ReduceMax", "ReduceSum", "Sub", "Where"}


def check_onnx(path):
    """Weights and layers are int8, by channel; the score of an exit is float."""
    import onnx

    for section in sorted(path.glob("*.onnx")):
        graph = onnx.load(section).graph
        makers = {name: node for node in graph.node for name in node.output}
        values = {
            each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer
        }
        layers_seen = 0
        for node in graph.node:
            read = [makers[name].op_type for name in node.input[:2] if name in makers]
            if node.op_type in ("Conv", "MatMul", "Gemm"):
                layers_seen += 1
                assert read == ["DequantizeLinear"] * 2, node.name
                weights, scale = makers[node.input[1]].input[:2]
                assert values[weights].dtype == np.int8
                assert values[scale].size in values[weights].shape
                assert values[scale].size > 1
            if node.op_type == "QuantizeLinear":
                assert not {*read} & SCORING, node.name
        assert layers_seen


@pytest.fixture(scope="module")
def exported(trained, images, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "net.tflite"
    fast = median_thresholds(trained, images[0])
    report = fast.export(path, quantize="int8", representative_data=images[0])
    return fast, path, report


WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")


def test_no_layer_computes_in_float(exported):
    _, path, report = exported
    model, schema = model_of(path)
    kinds = {number: name for name, number in vars(schema.BuiltinOperator).items()}
    int8 = schema.TensorType.INT8
    sections = [model.subgraphs[0], *model.subgraphs[2::2]]
    assert len(sections) == 3
    seen = 0
    for section in sections:
        behind = False
        for operator in section.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            kind = kinds[max(code.builtinCode, code.deprecatedBuiltinCode)]
            read, made = operator.inputs[0], operator.outputs[0]
            behind |= kind == "DEQUANTIZE"  # What follows is the score.
            if not behind:
                assert section.tensors[read].type == int8, kind
                assert section.tensors[made].type == int8, kind
            if kind in WEIGHTED:
                assert not behind
                weights = section.tensors[operator.inputs[1]]
                assert weights.type == int8
                assert len(weights.quantization.scale) == weights.shape[0]
                seen += 1
        assert behind
        # What goes from section to section is int8, too, but for prediction and score.
        carried = [section.tensors[i].type for i in section.inputs]
        assert set(carried[-1:]) == {int8}
    counted = [s.operators.get(kind, 0) for s in report.sections for kind in WEIGHTED]
    assert seen == sum(counted) == 11  # Six convolutions, five dense layers.


def test_constants_are_aligned(exported):
    _, path, _ = exported
    model, schema = model_of(path)
    content = path.read_bytes()
    found = schema.Model.GetRootAs(content, 0)
    vectors = [found.Buffers(i).DataAsNumpy() for i in range(found.BuffersLength())]
    start = np.frombuffer(content, np.uint8).__array_interface__["data"][0]
    places = [
        each.__array_interface__["data"][0] - start
        for each in vectors
        if not isinstance(each, int)
    ]
    assert len(places) > 10
    assert not [place for place in places if place % 16]
    values = [bytes(each) for each in vectors if not isinstance(each, int)]
    assert len(values) == len(set(values))  # None stands there twice.
    assert model.metadata is None


def test_a_sample_at_a_time(exported, images):
    _, path, _ = exported
    runner = LiteRT(path)
    with pytest.raises(RuntimeError, match=r"(?i)reshape"):
        runner.run(input=runner.ready("input", images[0][:2]))


@pytest.mark.long
@pytest.mark.parametrize("format", FORMATS)
def test_thresholds_that_nothing_or_all_reach(trained, images, tmp_path, format):
    for limit, name in ((np.inf, "final"), (-np.inf, "exit_1")):
        path = tmp_path / FORMATS[format]
        fast = ksd.EarlyExit(trained, thresholds=limit)
        report = fast.export(
            path, format, quantize="int8", representative_data=images[0][:8]
        )
        _, exits, _ = answer_of(path, format, images[0][:3], fast.exit_names)
        assert list(exits) == [name] * 3
        assert ("never" if limit > 0 else "always") in str(report)


def two_inputs():
    """A base whose second input is read behind the exit alone."""
    early, late = keras.Input((6,), name="late_name"), keras.Input((6,), name="a_name")
    x = layers.Dense(8, "relu", name="tap")(early)
    x = layers.Concatenate()([layers.Dense(8, "relu")(late), x])
    return keras.Model([early, late], layers.Dense(3, "softmax")(x))


def test_inputs_and_tensors_are_not_mixed_up(tmp_path):
    keras.utils.set_random_seed(1)
    model = ksd.SelfDistiller(two_inputs(), ["tap"], "byot", head="linear")
    random = np.random.default_rng(0)
    # Of different ranges, so that exchanged inputs would show.
    x = [random.uniform(-1, 1, (40, 6)), random.uniform(0, 9, (40, 6))]
    x = [each.astype("float32") for each in x]
    for limit in (np.inf, -np.inf):
        fast = ksd.EarlyExit(model, thresholds=limit)
        fast.export(
            tmp_path / "net.tflite", quantize="int8", representative_data=tuple(x)
        )
        predictions, exits, _ = LiteRT(tmp_path / "net.tflite")(
            late_name=x[0], a_name=x[1]
        )
        expected = fast.predict(tuple(x))
        np.testing.assert_allclose(predictions, expected.predictions, atol=0.05)
        assert set(exits) == {1 if limit > 0 else 0}


@pytest.mark.parametrize(
    ("format", "goal"),
    [
        ("litert", {"max_accuracy_drop": 0.05}),
        ("onnx", {"macs_budget": 0.8, "per_exit": True}),
    ],
)
def test_thresholds_are_chosen_on_what_the_artifact_computes(
    trained, images, tmp_path, format, goal
):
    fast = ksd.EarlyExit(trained)
    path = tmp_path / FORMATS[format]
    x, y = images
    report = fast.export(
        path,
        format,
        quantize="int8",
        representative_data=x,
        recalibrate={"x": x, "y": y, **goal},
    )
    choice = report.calibration
    assert tuple(report.thresholds.values()) == (*choice.thresholds, None)
    assert fast.thresholds is None
    predictions, exits, _ = answer_of(path, format, x, fast.exit_names)
    right = predictions.argmax(-1) == y
    assert choice.accuracy == right.mean()
    costs = [fast.macs_ratios[name] for name in exits]
    assert choice.macs_ratio == pytest.approx(np.mean(costs))
    base = trained.base.predict(x, verbose=0).argmax(-1) == y
    assert choice.base_accuracy == base.mean()
    drop = goal.get("max_accuracy_drop", 1)
    assert right.mean() >= base.mean() - drop
    assert np.mean(costs) <= goal.get("macs_budget", 9)


def test_a_guarantee_is_for_the_network_it_was_tested_on(
    trained, images, tmp_path, caplog
):
    x, y = (np.concatenate([each] * 20) for each in images)
    fast = ksd.EarlyExit(trained)
    fast.calibrate(x, y, max_accuracy_drop=0.2, guarantee=0.9)
    ranges = np.random.default_rng(5).normal(size=x[:20].shape).astype("float32")
    options = {"quantize": "int8", "representative_data": ranges}
    fast.export(tmp_path / "net.tflite", **options)
    assert "that of the float network" in caplog.text
    caplog.clear()
    goal = {"x": x, "y": y, "max_accuracy_drop": 0.2, "guarantee": 0.9}
    report = fast.export(tmp_path / "net.tflite", **options, recalibrate=goal)
    assert "that of the float network" not in caplog.text
    assert report.calibration.accuracy_drop_bound == 0.2
    assert report.calibration.samples == len(x) // 2


def test_a_bound_counts_what_int8_loses(trained, images, monkeypatch, tmp_path):
    """A network that int8 broke keeps no promise by sending all to its last exit."""

    def broken(self, inputs):
        wrong = np.eye(4, dtype="float32")[(images[1] + 1) % 4]
        scores = np.linspace(0, 1, len(wrong), dtype="float32")
        return [(wrong, scores)] * 3

    monkeypatch.setattr(LiteRTNetwork, "run_all", broken)
    fast = ksd.EarlyExit(trained, thresholds=0.5)
    goal = dict(zip("xy", images, strict=True)) | {"max_accuracy_drop": 0.05}
    for guarantee, error in ((None, "No thresholds reach"), (0.9, "guaranteed")):
        with pytest.raises(ValueError, match=error):
            fast.export(
                tmp_path / "net.tflite",
                quantize="int8",
                representative_data=images[0][:8],
                recalibrate=goal | {"guarantee": guarantee},
            )
    assert not list(tmp_path.iterdir())


def with_nan(images):
    images = images.copy()
    images[1, 0, 0, 0] = np.nan
    return images


# What is passed to export, and what the error says.
REFUSED = {
    "quantisation. Received: quantize='int4'": {"quantize": "int4"},
    "without representative_data": {"representative_data": None},
    "(?s)no int8 artifact.*litert": {"format": "openvino"},
    "Only int8 needs representative_data": {"quantize": None},
    "wrong shape": {"representative_data": lambda x: x[..., :1]},
    r"Add the batch axis": {"representative_data": lambda x: x[0]},
    "is empty": {"representative_data": lambda x: x[:0]},
    "Received: 1 NaN": {"representative_data": with_nan},
    "Did you mean 'guarantee'": {"recalibrate": {"x": 1, "guarante": 0.9}},
    "Received: max_accuracy_drop": {"recalibrate": {"max_accuracy_drop": 0.1}},
    "exactly one goal": {"recalibrate": lambda x: {"x": x, "y": x}},
    "labels are needed": {"recalibrate": lambda x: {"x": x, "target_accuracy": 1}},
}


@pytest.mark.parametrize("error", REFUSED)
def test_bad_input_is_refused_before_any_work(
    trained, images, tmp_path, error, monkeypatch
):
    import tensorflow as tf

    monkeypatch.setattr(tf, "function", None)
    given = {"quantize": "int8", "representative_data": images[0]} | REFUSED[error]
    given = {
        name: value(images[0]) if callable(value) else value
        for name, value in given.items()
    }
    fast = ksd.EarlyExit(trained, thresholds=0.5)
    path = tmp_path / ("net" if "format" in given else "net.tflite")
    with pytest.raises(ValueError, match=error):
        fast.export(path, **given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("format", "module"),
    [("litert", "flatbuffers"), ("onnx", "onnxruntime.quantization")],
)
def test_a_missing_package_is_named_before_any_work(
    trained, tmp_path, monkeypatch, format, module
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{format} in int8 needs .*extra `export`"):
        ksd.EarlyExit(trained, thresholds=0.5).export(
            tmp_path / FORMATS[format], format, quantize="int8"
        )


def test_data_of_unknown_types_is_refused(trained, images, tmp_path):
    fast = ksd.EarlyExit(trained, thresholds=0.5)
    for given, error in (
        ({"representative_data": 3}, "Cannot read samples"),
        ({"representative_data": images[0], "recalibrate": 0.9}, "Expected: a dict"),
    ):
        with pytest.raises(TypeError, match=error):
            fast.export(tmp_path / "net.tflite", quantize="int8", **given)


def test_inputs_of_open_sizes_are_refused(tmp_path):
    inputs = keras.Input((None, None, 1))
    x = layers.Conv2D(4, 3, name="tap")(inputs)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(x))
    base = keras.Model(inputs, layers.Dense(3, "softmax")(x))
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
    with pytest.raises(ValueError, match="known sizes"):
        ksd.EarlyExit(model, thresholds=0.5).export(
            tmp_path / "net.tflite",
            quantize="int8",
            representative_data=np.zeros((2, 8, 8, 1)),
        )


def test_an_operator_without_int8_is_named(tmp_path, caplog):
    inputs = keras.Input((4,))
    x = layers.Dense(4, name="tap")(inputs)
    x = layers.Dense(4)(keras.ops.cumsum(x, axis=1))
    base = keras.Model(inputs, layers.Dense(3, "softmax")(x))
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
    fast = ksd.EarlyExit(model, thresholds=2.0)
    x = np.random.default_rng(0).normal(size=(30, 4)).astype("float32")
    path = tmp_path / "net.tflite"
    report = fast.export(path, quantize="int8", representative_data=x)
    assert report.float_operators == ("CUMSUM",)
    assert "Not in int8: CUMSUM." in str(report)
    assert "compute in float32: CUMSUM" in caplog.text
    predictions, _, _ = LiteRT(path)(input=x)
    np.testing.assert_allclose(predictions, fast.predict(x).predictions, atol=0.05)


def test_loops_are_refused_before_they_end_the_process(tmp_path, caplog):
    def export(name, **options):
        inputs = keras.Input((5, 3))
        x = layers.LSTM(4, return_sequences=True, name="tap", **options)(inputs)
        x = layers.GlobalAveragePooling1D()(x)
        base = keras.Model(inputs, layers.Dense(3, "softmax")(x))
        model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
        data = np.random.default_rng(0).normal(size=(8, 5, 3)).astype("float32")
        return ksd.EarlyExit(model, thresholds=0.5).export(
            tmp_path / name,
            "onnx" if name == "sections" else None,
            quantize="int8",
            representative_data=data,
        )

    with pytest.raises(ValueError, match=r"unroll=True"):
        export("net.tflite")
    # The converter may leave a step in float that only moves numbers.
    assert set(export("net.tflite", unroll=True).float_operators) <= {"SPLIT"}
    # ONNX runs them, in float32.
    assert export("sections").float_operators == ("LSTM",)
    assert "compute in float32: LSTM" in caplog.text


def test_what_the_converter_refuses_is_not_written(
    trained, images, tmp_path, monkeypatch
):
    import tensorflow as tf

    def fail(self):
        raise RuntimeError("Quantization not yet supported for op: 'ODD'")

    monkeypatch.setattr(tf.lite.TFLiteConverter, "convert", fail)
    with pytest.raises(ValueError, match=r"(?s)cannot be quantised.*'ODD'"):
        ksd.EarlyExit(trained, thresholds=0.5).export(
            tmp_path / "net.tflite",
            quantize="int8",
            representative_data=images[0][:2],
        )
    assert not list(tmp_path.iterdir())


def test_weights_left_in_float_are_refused():
    with pytest.raises(ValueError, match="CONV_2D in float32"):
        _checked(["CONV_2D", "CUMSUM"])


def test_the_arena_is_what_lives_at_once():
    """By hand: 0 (input, 100 bytes) → 1 (200) → 2 (50), and 1 with 2 → 3 (10)."""
    from ai_edge_litert import schema_py_generated as schema

    def tensor(size):
        return types.SimpleNamespace(shape=[size], type=schema.TensorType.INT8)

    def operator(read, made):
        return types.SimpleNamespace(
            inputs=read, outputs=made, intermediates=None, opcodeIndex=0
        )

    code = types.SimpleNamespace(builtinCode=0, deprecatedBuiltinCode=0)
    model = types.SimpleNamespace(operatorCodes=[code])
    subgraph = types.SimpleNamespace(
        tensors=[tensor(size) for size in (100, 200, 50, 10, 1000)],
        operators=[operator([0], [1]), operator([1, 4], [2]), operator([1, 2], [3])],
        inputs=[0],
        outputs=[3],
    )
    # In steps of 16 bytes; tensor 4 is a constant, which lies in the file.
    assert arena_levels(model, subgraph) == [112 + 208, 208 + 64, 208 + 64 + 16]


def test_the_report_says_what_fits(exported):
    _, path, report = exported
    text = str(report)
    assert report.file_bytes == path.stat().st_size
    assert [*report.thresholds] == ["exit_1", "exit_2", "final"]
    assert text.splitlines()[0].split() == [
        "exit",
        "threshold",
        "operators",
        "weights",
        "arena",
    ]
    assert "CONV_2D" in text
    assert report.arena_bytes == max(each.arena_bytes for each in report.sections)
    # The first convolution reads an image of 3 channels and makes one of 8. The last
    # number is what TensorFlow Lite Micro plans for this file.
    arenas = [each.arena_bytes for each in report.sections]
    assert arenas == [8 * 8 * 3 + 8 * 8 * 8, 2144, 2240]
    kernels = [w.size for w in small_base().get_weights() if w.ndim > 1]
    total = sum(each.weight_bytes for each in report.sections)
    assert sum(kernels) < total < 4 * sum(kernels)
    assert "<table>" in report._repr_html_()


def test_an_exit_is_quantised_by_keras_own_export(trained, images, tmp_path):
    """As the page on small devices shows it."""
    import tensorflow as tf

    small = trained.exit_model("exit_1")
    expected = small.predict(images[0], verbose=0)
    path = tmp_path / "exit_1.tflite"
    small.export(
        str(path),
        format="litert",
        verbose=False,
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=lambda: ([x[None]] for x in images[0]),
        target_spec={"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]},
        inference_input_type=tf.int8,
    )
    runner = LiteRT(path)
    (name,) = runner.details
    x = runner.ready(name, images[0])
    assert x.dtype == np.int8
    rows = [next(iter(runner.run(**{name: x[i : i + 1]}).values())) for i in range(64)]
    np.testing.assert_allclose(np.concatenate(rows), expected, atol=0.05)
    assert float_operators(path.read_bytes()) == []


def agreement(fast, x, y, train, folder):
    """Print and return changes of accuracy and exits, size, same classes, by format."""
    expected = fast.predict(x)
    accuracy = (expected.predictions.argmax(-1) == y).mean()
    found = {}
    for format, name in FORMATS.items():
        fast.export(folder / f"float_{name}", format)
        report = fast.export(
            folder / name, format, quantize="int8", representative_data=train
        )
        size = sum(each.stat().st_size for each in parts(folder / f"float_{name}"))
        predictions, exits, _ = answer_of(folder / name, format, x, fast.exit_names)
        shares = [(exits == each).mean() for each in fast.exit_names]
        wanted = [(expected.exits == each).mean() for each in fast.exit_names]
        found[format] = (
            abs((predictions.argmax(-1) == y).mean() - accuracy),
            max(abs(a - b) for a, b in zip(shares, wanted, strict=True)),
            report.file_bytes / size,
            (predictions.argmax(-1) == expected.predictions.argmax(-1)).mean(),
        )
        print(format, accuracy, wanted, found[format])
    return found


def test_short_names_mean_the_same_in_branches():
    need("onnx")
    need("onnxruntime")
    import onnx
    import onnxruntime

    helper, number = onnx.helper, onnx.TensorProto.FLOAT

    def value(name, shape=(2,)):
        return helper.make_tensor_value_info(name, number, shape)

    def branch(operator):
        # Reads a value from outside of it.
        node = helper.make_node(operator, ["long/doubled", "long/c"], ["long/out"])
        return helper.make_graph([node], operator, [], [value("long/out")])

    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "x"], ["long/doubled"], "long/add"),
            helper.make_node(
                "Clip", ["long/doubled", "", "long/c"], ["y"], "long/clip"
            ),
            helper.make_node("ReduceSum", ["x"], ["long/sum"], keepdims=0),
            helper.make_node("Less", ["long/sum", "long/c"], ["long/is_low"]),
            helper.make_node(
                "If",
                ["long/is_low"],
                ["z"],
                then_branch=branch("Add"),
                else_branch=branch("Mul"),
            ),
        ],
        "long/graph",
        [value("x")],
        [value("y"), value("z")],
        [helper.make_tensor("long/c", number, (), [3.0])],
    )
    versions = {"ir_version": 8, "opset_imports": [helper.make_opsetid("", 17)]}
    model = helper.make_model(graph, **versions)

    def answers(x):
        session = onnxruntime.InferenceSession(model.SerializeToString())
        return session.run(["y", "z"], {"x": np.array(x, "float32")})

    before = [answers(x) for x in ([0.5, 1], [2, 3])]
    shorten_names(model.graph, {"x", "y", "z"})
    assert b"long/" not in model.graph.SerializeToString().replace(b"long/graph", b"")
    onnx.checker.check_model(model)
    shorten_names(model.graph, {"x", "y", "z"})  # Names that are short already.
    for x, expected in zip(([0.5, 1], [2, 3]), before, strict=True):
        np.testing.assert_array_equal(answers(x), expected)
    np.testing.assert_array_equal(before[0], [[1, 2], [4, 5]])
    np.testing.assert_array_equal(before[1], [[3, 3], [12, 18]])


def parts(path):
    return path.glob("*.onnx") if path.is_dir() else [path]


@pytest.mark.long
@pytest.mark.parametrize(
    ("widths", "head", "ratio"),
    [
        ((16, 32, 64), "bottleneck", 0.36),
        ((16, 64, 256), "separable", 0.30),
    ],
)
def test_digits_in_int8(tmp_path, widths, head, ratio):
    """In int8, a quarter of the smallest file is structure."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((8, 8, 1))
    for stage, width in enumerate(widths, start=1):
        strides = 1 if stage == 1 else 2
        x = layers.Conv2D(width, 3, strides=strides, padding="same")(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU(name=f"stage{stage}_out")(x)
    x = layers.GlobalAveragePooling2D()(x)
    base = keras.Model(inputs, layers.Dense(10, "softmax")(x))
    model = ksd.SelfDistiller(base, ["stage1_out", "stage2_out"], "byot", head=head)
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy")
    x, y = digits(channels=1)
    model.fit(x[:1000], y[:1000], epochs=10, verbose=0)
    fast = ksd.EarlyExit(model, thresholds=0.9)
    found = agreement(fast, x[1000:], y[1000:], x[:300], tmp_path)
    for drop, moved, size, same in found.values():
        assert drop <= 0.01
        assert moved <= 0.03
        assert size <= ratio
        assert same >= 0.98


@pytest.mark.long
@pytest.mark.real_data
def test_cifar100_in_int8(tfds_folder, tmp_path):
    from shared import cifar100

    data = cifar100.load(tfds_folder, train_examples=3000)
    keras.utils.set_random_seed(0)
    base = ksd.networks.resnet18(width_multiplier=0.25)
    model = ksd.SelfDistiller(base, taps=2, recipe="byot", head="separable")
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    x = cifar100.normalize(data.train.images)
    model.fit(x, data.train.labels, epochs=1, verbose=0)
    test = cifar100.normalize(data.test.images[:1000])
    fast = median_thresholds(model, test)
    labels = np.asarray(data.test.labels[:1000])
    found = agreement(fast, test, labels, x[:200], tmp_path)
    # After one epoch a network is seldom right, so accuracy says little; its classes
    # are close to each other.
    for drop, moved, size, same in found.values():
        assert drop <= 0.01
        assert same >= 0.8
        assert moved <= 0.03
        assert size <= 0.3
