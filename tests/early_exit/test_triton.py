"""The model repository for Triton, run by a stand-in, against `EarlyExit.predict`."""

import importlib.util
import json
import py_compile
import shutil

import keras
import numpy as np
import pytest
from google.protobuf import text_format
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.early_exit.export import triton_repository
from keras_selfdistill.early_exit.export.earlier_export import check_earlier_export
from tests.conftest import small_base
from tests.early_exit.test_export import OPTIONS, check, need, thresholds_between
from tests.early_exit.triton_config import ModelConfig

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Exporters warn of their own workings.
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow",
        reason="artifacts that decide are written on TensorFlow",
    ),
]
IMAGES = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")
KEYS = "exits", "thresholds", "sections"
SECTIONS = ["small_section_1", "small_section_2", "small_section_3"]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return ksd.SelfDistiller(small_base(), ["stem_relu", "out_1"], "byot")


def between(model, **options):
    """Return an `EarlyExit` with samples at every exit, none close to a threshold."""
    return thresholds_between(model, (IMAGES, np.arange(64) % 4), **options)


def serve(fast, path):
    """Export a repository, and return a stand-in for Triton that serves it."""
    need("onnxruntime")
    from tests.early_exit.triton_server import Server

    fast.export(path, format="triton")
    return Server(path)


@pytest.fixture(scope="module")
def repository(model, tmp_path_factory):
    """An `EarlyExit`, its repository, and a stand-in that serves it."""
    fast, path = between(model), tmp_path_factory.mktemp("triton") / "models"
    return fast, path, serve(fast, path)


def joined(responses, names):
    """Return (predictions, exit names, scores) of all responses."""
    keys = ("prediction", "exit", "score")
    prediction, exits, score = (
        np.concatenate([each[key] for each in responses]) for key in keys
    )
    assert exits.shape == score.shape == (len(prediction), 1)
    return prediction, np.array(names)[exits[:, 0]], score[:, 0]


def check_sizes(fast, server):
    """Compare requests of several sizes, alone and batched, with `predict`."""
    for sizes in ([1] * 64, [7, 32, 25], [64]):
        parts = np.split(IMAGES, np.cumsum(sizes)[:-1])
        alone = [each for part in parts for each in server.infer({"input": part})]
        check(fast, IMAGES, joined(alone, fast.exit_names))
        batched = server.infer(*({"input": part} for part in parts))
        check(fast, IMAGES, joined(batched, fast.exit_names))
        assert [len(each["exit"]) for each in batched] == sizes


def test_requests_of_any_size_get_what_predict_returns(repository):
    fast, _, server = repository
    check_sizes(fast, server)


@pytest.mark.parametrize(
    "name",
    [
        "own class of means",  # Remembers floats, integers and truth values.
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("ensemble", "entropy of means", "own class")
        ),
    ],
)
def test_what_criteria_remember_travels_on(model, tmp_path, name):
    fast = between(model, **OPTIONS[name])
    check_sizes(fast, serve(fast, tmp_path / "models"))


def test_only_samples_that_have_not_exited_are_passed_on(repository):
    fast, _, server = repository
    exits = fast.predict(IMAGES).exits
    server.calls.clear()
    server.infer(*({"input": part} for part in np.split(IMAGES, 4)))
    samples = [64, np.sum(exits != "exit_1"), np.sum(exits == "final")]
    assert server.calls == list(zip(SECTIONS, samples, strict=True))
    server.calls.clear()
    server.infer({"input": IMAGES[exits == "exit_1"]})
    assert [name for name, _ in server.calls] == SECTIONS[:1]


def edited(path, copy, before, after):
    """Copy a repository, with a part of the configuration for clients replaced."""
    shutil.copytree(path, copy)
    config = copy / "small" / "config.pbtxt"
    text = config.read_text()
    assert text.count(before) == 1, text
    config.write_text(text.replace(before, after))
    return copy


def test_thresholds_may_be_edited(repository, tmp_path):
    from tests.early_exit.triton_server import Server, TritonModelException

    fast, path, server = repository
    (before,) = server.infer({"input": IMAGES})
    first = before["score"][before["exit"] == 0]
    thresholds = json.dumps(list(fast.thresholds.values()))
    # A score that equals the threshold is high enough.
    found = json.dumps([float(first.min()), 3e38])
    other = Server(edited(path, tmp_path / "a", thresholds, found))
    (after,) = other.infer({"input": IMAGES})
    assert np.array_equal(after["exit"] == 0, before["exit"] == 0)
    assert set(after["exit"].ravel()) == {0, 2}
    broken = edited(path, tmp_path / "b", thresholds, "[0.5]")
    with pytest.raises(TritonModelException, match=r"\[0.5\](.|\n)*2 numbers"):
        Server(broken)


def test_scores_that_are_no_numbers_go_on_to_the_end(repository):
    _, _, server = repository
    images = IMAGES[:3].copy()
    images[1] = np.nan
    plain, broken = server.infer({"input": IMAGES[:3]}, {"input": images})
    assert np.array_equal(broken["exit"][[0, 2]], plain["exit"][[0, 2]])
    assert broken["exit"][1] == 2


def make_early_exit_of_tokens():
    """Return an EarlyExit with two inputs: any number of tokens, and an age."""
    keras.utils.set_random_seed(0)
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    age = keras.Input((), name="age")
    x = layers.Dense(8, "relu", name="tap")(layers.Embedding(10, 4)(tokens))
    x = layers.GlobalAveragePooling1D()(layers.Dense(8, "relu")(x))
    x = layers.Dense(5, "softmax")(layers.Concatenate()([x, layers.Reshape((1,))(age)]))
    base = keras.Model([tokens, age], x, name="my-text.v2")
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
    return ksd.EarlyExit(model, thresholds=0.0)


def test_an_error_reaches_its_own_request_alone(tmp_path):
    fast = make_early_exit_of_tokens()
    server = serve(fast, tmp_path / "models")
    assert sorted(server.sections) == [f"my_text_v2_section_{i}" for i in (1, 2)]
    random = np.random.default_rng(0)
    x = {
        "tokens": random.integers(0, 10, (8, 6), "int32"),
        "age": random.normal(size=8).astype("float32"),
    }
    scores = np.sort(fast.predict(x).scores)
    server.model._thresholds = [float(scores[3:5].mean())]
    fast.thresholds = server.model._thresholds
    # No tensor of Triton has the axis of samples alone.
    of_triton = x | {"age": x["age"][:, None]}
    check(fast, x, joined(server.infer(of_triton), fast.exit_names))

    first = {name: array[:3] for name, array in of_triton.items()}
    second = {name: array[3:] for name, array in of_triton.items()}
    wrong = {**second, "tokens": second["tokens"] + 1000}  # No such token.
    found, message, other = server.infer(first, wrong, second)
    check(fast, x, joined([found, other], fast.exit_names))
    assert message.startswith("my_text_v2_section_1: ")
    assert "1000" in message or "out of" in message

    def fail(tensors, names):
        raise RuntimeError("out of memory")

    server.sections["my_text_v2_section_2"] = fail
    messages = server.infer(first, second)
    assert "my_text_v2_section_2: out of memory" in messages


def test_the_files_are_those_that_triton_expects(repository):
    fast, path, _ = repository
    assert sorted(each.name for each in path.iterdir()) == [
        "early_exit.json",
        "small",
        *SECTIONS,
    ]
    files = {"small": "model.py", **dict.fromkeys(SECTIONS, "model.onnx")}
    for name, file in files.items():
        assert sorted(each.name for each in (path / name).iterdir()) == [
            "1",
            "config.pbtxt",
        ]
        assert [each.name for each in (path / name / "1").glob("*.*")] == [file]
    text = (path / "small" / "config.pbtxt").read_text()
    config = text_format.Parse(text, ModelConfig())
    shapes = {end.name: list(end.dims) for end in (*config.input, *config.output)}
    assert shapes == {"input": [8, 8, 3], "prediction": [4], "exit": [1], "score": [1]}
    found = {key: json.loads(config.parameters[key].string_value) for key in KEYS}
    assert found["exits"] == fast.exit_names
    assert found["thresholds"] == list(fast.thresholds.values())
    assert [each["model"] for each in found["sections"]] == SECTIONS
    with pytest.raises(text_format.ParseError, match="max_batchsize"):
        text_format.Parse("max_batchsize: 4", ModelConfig())


def test_only_an_unchanged_repository_is_replaced(repository, tmp_path):
    _, path, _ = repository
    refuse = check_earlier_export("triton")
    shutil.copytree(path, tmp_path / "served")
    py_compile.compile(str(tmp_path / "served" / "small" / "1" / "model.py"))
    assert list((tmp_path / "served").rglob("*.pyc"))
    refuse(tmp_path / "served")
    tuned = edited(path, tmp_path / "tuned", "count: 2", "count: 4")
    with pytest.raises(FileExistsError, match=r"small/config\.pbtxt"):
        refuse(tuned)


def test_parameters_of_triton_itself_may_be_added(repository, tmp_path):
    from tests.early_exit.triton_server import Server

    fast, path, _ = repository
    key = "FORCE_CPU_ONLY_INPUT_TENSORS"
    own = f'parameters {{ key: "{key}" value {{ string_value: "no" }} }}'
    before = 'parameters {\n  key: "exits"'
    tuned = edited(path, tmp_path / "tuned", before, f"{own}\n{before}")
    found = Server(tuned).infer({"input": IMAGES})
    check(fast, IMAGES, joined(found, fast.exit_names))


def test_types_that_numpy_lacks_are_refused():
    class Found:
        name, type, shape = "alive", "tensor(bfloat16)", [None, 4]

    with pytest.raises(ValueError, match=r"bfloat16(.|\n)*tf_saved_model"):
        triton_repository._described(Found())


def test_the_model_needs_triton():
    assert importlib.util.find_spec("triton_python_backend_utils") is None
    with pytest.raises(ModuleNotFoundError, match="triton_python_backend_utils"):
        importlib.import_module("keras_selfdistill.early_exit.export.triton_model")
