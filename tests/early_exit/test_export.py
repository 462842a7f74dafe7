"""Artifacts, run by their real runtimes, against Keras and `EarlyExit.predict`."""

import dataclasses
import importlib.util
import json
import os
import py_compile
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from keras_selfdistill.early_exit.export.earlier_export import check_earlier_export
from keras_selfdistill.early_exit.export.scored_section import ScoredSection
from keras_selfdistill.early_exit.export.section_runner import SectionRunner
from keras_selfdistill.early_exit.export.writers import format_of
from tests.conftest import miss, run_python, small_base

BACKEND = keras.backend.backend()
on_tensorflow = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="artifacts that decide are written on TensorFlow"
)
# Exporters and runtimes warn of their own workings.
pytestmark = pytest.mark.filterwarnings("ignore")


def need(package):
    if importlib.util.find_spec(package) is None:
        miss(f"{package} is not installed")


@pytest.fixture(scope="module")
def images():
    from sklearn.datasets import load_digits

    digits = load_digits().images[:64, :, :, None].astype("float32") / 16
    return np.repeat(digits, 3, axis=-1), load_digits().target[:64] % 4


@pytest.fixture(scope="module")
def trained(images):
    """A wrapper whose statistics and weights are not those of a fresh one."""
    keras.utils.set_random_seed(0)
    model = ksd.SelfDistiller(small_base(), ["stem_relu", "out_1"], "byot")
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(*images, epochs=3, verbose=0)
    return model


def thresholds_between(model, images, **options):
    """Thresholds at which some samples leave at every exit, none close to one."""
    fast = ksd.EarlyExit(model, thresholds=np.inf, **options)
    fast.calibrate(*images, macs_budget=9.0)
    scores = np.sort(fast._outcomes.scores, axis=0)
    middle = len(scores) // 2
    gaps = scores[middle : middle + 9] - scores[middle - 1 : middle + 8]
    at = middle + gaps.argmax(axis=0)
    columns = np.arange(scores.shape[1])
    fast.thresholds = ((scores[at, columns] + scores[at - 1, columns]) / 2).tolist()
    return fast


def check(fast, images, answer):
    """Compare (predictions, exit names, scores) of an artifact with `predict`."""
    expected = fast.predict(images)
    predictions, exits, scores = answer
    np.testing.assert_allclose(predictions, expected.predictions, atol=1e-4)
    np.testing.assert_allclose(scores, expected.scores, atol=1e-4)
    assert list(exits) == list(expected.exits)
    assert len(set(exits)) > 1


# ------------------------------------------------------ what Keras' own export makes


def run_saved_model(path, images):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))  # Holds the variables while it lives.
    return loaded.serve(images).numpy()


def run_onnx(path, images):
    need("onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def run_litert(path, images):
    need("ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    at = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(at, images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(at, images)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def run_openvino(path, images):
    need("openvino")
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.compile_model(path, "CPU", options)(images)[0]


RUNTIMES = {
    "tf_saved_model": ("", run_saved_model, ("tensorflow", "jax")),
    "onnx": (".onnx", run_onnx, ("tensorflow", "torch")),
    "litert": (".tflite", run_litert, ("tensorflow",)),
    "openvino": (".xml", run_openvino, ("tensorflow", "torch")),
}


@pytest.mark.parametrize("format", RUNTIMES)
@pytest.mark.parametrize(
    "part", ["exit_1", "final", pytest.param("ensemble", marks=pytest.mark.long)]
)
def test_deployed_models_run_elsewhere(trained, images, tmp_path, part, format):
    suffix, run, backends = RUNTIMES[format]
    if BACKEND not in backends:
        pytest.skip(f"Keras on {BACKEND} does not export {format}")
    parts = {"ensemble": trained.ensemble_model, "final": trained.final_model}
    model = parts.get(part, lambda: trained.exit_model(part))()
    path = tmp_path / f"model{suffix}"
    expected = model.predict(images[0], verbose=0)  # Keras exports what was called.
    model.export(str(path), format=format, verbose=False)
    batch = len(images[0]) if BACKEND != "torch" or format != "openvino" else 1
    found = [
        run(path, images[0][i : i + batch]) for i in range(0, len(images[0]), batch)
    ]
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-4)


# ----------------------------------------------------------- what stops early itself


@keras.saving.register_keras_serializable(package="tests")
def odds(probabilities):
    """A criterion of one's own, for arrays and tensors."""
    xp = ksd.criteria.array_namespace(probabilities)
    ordered = xp.sort(probabilities, axis=-1)
    return ordered[:, -1] / (ordered[:, -1] + ordered[:, -2])


@keras.saving.register_keras_serializable(package="tests")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Moving(ksd.criteria.Criterion):
    """A criterion of one's own that remembers floats, integers and truth values."""

    share: float = 0.5

    def __call__(self, probabilities, memory):
        xp = ksd.criteria.array_namespace(probabilities)
        mean, best = probabilities, xp.argmax(probabilities, axis=-1)
        wavered = xp.not_equal(best, best)
        if memory:
            mean = self.share * probabilities + (1 - self.share) * memory["mean"]
            wavered = xp.logical_or(
                memory["wavered"], xp.not_equal(best, memory["best"])
            )
        memory["mean"], memory["best"], memory["wavered"] = mean, best, wavered
        return xp.max(mean, axis=-1) - xp.where(wavered, 0.125, 0.0)


@keras.saving.register_keras_serializable(package="tests")
def by_operations(probabilities):
    """A criterion of one's own in Keras' operations alone."""
    return keras.ops.sum(probabilities**2, axis=-1)


OPTIONS = {
    "own function": {"criterion": odds},
    "own class": {"criterion": Moving(share=0.75)},
    "own class of means": {"criterion": Moving(), "scores_from": "running_mean"},
    "own operations": {"criterion": by_operations},
    "confidence": {},
    "margin": {"criterion": "margin"},
    "entropy of means": {"criterion": "entropy", "scores_from": "running_mean"},
    "ensemble": {"last_resort": "ensemble"},
}


def in_batches(call, x, sizes):
    """Join what a SavedModel returns for batches of some sizes, one after another."""
    parts, start = [], 0
    for size in sizes:
        found = call(x[start : start + size])
        start += size
        assert {len(each) for each in found.values()} == {size}
        parts.append(found)
    assert start == len(x)
    keys = ("prediction", "exit", "score")
    return [np.concatenate([each[key] for each in parts]) for key in keys]


def answer_of(path, format, x, names):
    """Return (predictions, exit names, scores) of an artifact of any format."""
    if format == "tf_saved_model":
        import tensorflow as tf

        found = in_batches(tf.saved_model.load(str(path)).serve, x, [len(x)])
    elif format == "litert":
        need("ai_edge_litert")
        from ai_edge_litert.interpreter import Interpreter

        runner = Interpreter(str(path)).get_signature_runner()
        found = in_batches(lambda row: runner(input=row), x, [1] * len(x))
    elif format == "triton":
        need("onnxruntime")
        from tests.early_exit.triton_server import Server

        (response,) = Server(path).infer({"input": x})
        prediction, exits, score = response.values()
        found = prediction, exits[:, 0], score[:, 0]
    else:
        need("onnxruntime" if format == "onnx" else "openvino")
        return SectionRunner(path)(x)
    prediction, exits, score = found
    return prediction, np.array(names)[exits], score


@pytest.fixture
def optimized():
    """TensorFlow's graphs are optimized, as elsewhere than in tests.

    Else its convolutions of no samples have a wrong shape (TensorFlow 2.21).
    """
    import tensorflow as tf

    set_options = tf.config.optimizer.set_experimental_options
    set_options({"disable_meta_optimizer": False})
    yield
    set_options({"disable_meta_optimizer": True})


@on_tensorflow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("name", OPTIONS)
def test_a_saved_model_routes_each_sample_of_a_batch(trained, images, tmp_path, name):
    import tensorflow as tf

    fast = thresholds_between(trained, images, **OPTIONS[name])
    fast.export(tmp_path / "saved")
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    names = [each.decode() for each in loaded.exit_names()["exit_names"].numpy()]
    assert names == fast.exit_names
    serving = loaded.signatures["serving_default"]
    for call in (loaded.serve, lambda x: serving(input=tf.constant(x))):
        for sizes in ([1] * 64, [7, 32, 0, 25], [64]):
            prediction, exits, score = in_batches(call, images[0], sizes)
            check(fast, images[0], (prediction, np.array(names)[exits], score))


@on_tensorflow
@pytest.mark.parametrize("name", ["confidence", "ensemble", "own class"])
def test_litert_takes_one_sample_and_refuses_more(trained, images, tmp_path, name):
    need("ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter

    fast = thresholds_between(trained, images, **OPTIONS[name])
    fast.export(tmp_path / "model.tflite")
    interpreter = Interpreter(str(tmp_path / "model.tflite"))
    runner = interpreter.get_signature_runner()
    (input_name,) = interpreter.get_signature_list()["serving_default"]["inputs"]
    prediction, exits, score = in_batches(
        lambda x: runner(**{input_name: x}), images[0], [1] * 64
    )
    check(fast, images[0], (prediction, np.array(fast.exit_names)[exits], score))
    with pytest.raises(RuntimeError, match=r"(?i)reshape"):
        runner(**{input_name: images[0][:2]})


@pytest.fixture(scope="module")
def patient(images):
    """An `EarlyExit` by patience whose exits agree on some samples."""
    model = ksd.SelfDistiller(small_base(), ["stem_relu", "out_1"], "byot")
    fast = ksd.EarlyExit(model, "patience", thresholds=2.0)
    for seed in range(50):
        random = np.random.default_rng(seed)
        for name in ("exit_1_logits", "exit_2_logits"):
            kernel, bias = model.get_layer(name).get_weights()
            kernel = 3 * random.normal(size=kernel.shape)
            model.get_layer(name).set_weights([kernel, bias])
        if len(set(fast.predict(images[0]).exits)) > 1:
            return fast
    pytest.fail("No exits agree.")


@on_tensorflow
@pytest.mark.parametrize(
    "format",
    [
        "tf_saved_model",
        "litert",
        "onnx",
        pytest.param("openvino", marks=pytest.mark.long),
    ],
)
def test_patience_in_the_graph(patient, images, tmp_path, format):
    path = tmp_path / "artifact"
    patient.export(path, format=format)
    check(patient, images[0], answer_of(path, format, images[0], patient.exit_names))


class GivenSection:
    """Returns what it is given, where a layer might make a number of NaN."""

    name = "given"
    inputs = (None,)

    def __call__(self, alive, training):
        return {"output": alive[0], "alive": []}


def not_of_classes(probabilities):
    """A criterion that is NaN where the first class is unlikely, and else infinite."""
    xp = ksd.criteria.array_namespace(probabilities)
    return xp.where(probabilities[:, 0] > 0.5, np.inf, np.nan)


@pytest.mark.parametrize(
    "criterion",
    ["confidence", "margin", "entropy", "patience", odds, Moving(), not_of_classes],
)
def test_what_is_no_number_is_not_sure(trained, criterion):
    rows = [[0.7, 0.1, 0.1, 0.1], [np.nan] * 4, [0.1, np.nan, 0.4, 0.5]]
    rows = np.array([*rows, [0.1, 0.2, 0.3, 0.4]], "float32")
    scorer = ksd.EarlyExit(trained, criterion, thresholds=0.0)._scorer
    _, expected = scorer(0, rows, {})
    section = ScoredSection(GivenSection(), scorer, 0, 4)
    score = keras.ops.convert_to_numpy(section.call([rows])[1])
    np.testing.assert_allclose(score, expected, rtol=1e-5)
    assert np.isfinite(score).all()
    sure = [True, False, False, criterion is not not_of_classes]
    assert (score >= 0.0).tolist() == sure
    # What is written for thresholds that are infinite.
    assert (score >= -3e38).all()
    assert not (score >= 3e38).any()


@on_tensorflow
@pytest.mark.parametrize(
    ("name", "format"),
    [
        *((name, "onnx") for name in OPTIONS if "own" not in name),
        ("own class of means", "onnx"),
        ("entropy of means", "openvino"),
        pytest.param("own class of means", "openvino", marks=pytest.mark.long),
    ],
)
def test_a_folder_of_sections(trained, images, tmp_path, format, name):
    need("onnxruntime" if format == "onnx" else "openvino")
    fast = thresholds_between(trained, images, **OPTIONS[name])
    fast.export(tmp_path / "folder", format=format)
    runner = SectionRunner(tmp_path / "folder")
    parts = [runner(image[None]) for image in images[0]]
    check(fast, images[0], [np.concatenate(each) for each in zip(*parts, strict=True)])
    check(fast, images[0], runner(images[0]))
    for some, none in zip(runner(images[0]), runner(images[0][:0]), strict=True):
        assert (none.shape, none.dtype) == ((0, *some.shape[1:]), some.dtype)


@on_tensorflow
def test_the_runner_needs_no_keras(trained, images, tmp_path):
    need("onnxruntime")
    fast = thresholds_between(trained, images)
    fast.export(tmp_path / "folder", format="onnx")
    np.save(tmp_path / "images.npy", images[0])
    code = (
        "import runpy, sys\n"
        "sys.modules['keras'] = sys.modules['tensorflow'] = None\n"
        "del sys.argv[0]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    script = tmp_path / "folder" / "section_runner.py"
    arguments = [script, tmp_path / "folder", tmp_path / "images.npy"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    expected = fast.predict(images[0])
    assert done.stdout.splitlines() == [
        f"class {row.argmax()} at {name}"
        for row, name in zip(expected.predictions, expected.exits, strict=True)
    ]


@on_tensorflow
def test_a_changed_folder_is_refused(trained, images, tmp_path):
    need("onnxruntime")
    folder = tmp_path / "folder"
    ksd.EarlyExit(trained, thresholds=0.9).export(folder, format="onnx")
    manifest = json.loads((folder / "manifest.json").read_text())
    changes = [
        {"version": 2},
        {"runtime": "pickle"},
        {"thresholds": [0.9]},
        {"thresholds": ["0.9", True]},
        {"exits": [1, 2, 3]},
        {"sections": manifest["sections"][:2]},
        {
            "sections": [
                {"model": "a", "files": {"../a": ""}},
                *manifest["sections"][1:],
            ]
        },
        {"sections": [{"model": "a", "files": {}}, *manifest["sections"][1:]]},
    ]
    for change in changes:
        (folder / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(ValueError, match="manifest"):
            SectionRunner(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    section = folder / "section_2.onnx"
    section.write_bytes(section.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not the file"):
        SectionRunner(folder)


@on_tensorflow
def test_an_artifact_is_replaced_whole(trained, tmp_path, monkeypatch):
    fast = ksd.EarlyExit(trained, thresholds=0.9)
    path = tmp_path / "model.tflite"
    fast.export(path, format="litert")
    before = path.read_bytes()
    import tensorflow as tf

    def fail(self):
        raise RuntimeError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(tf.lite.TFLiteConverter, "convert", fail)
        with pytest.raises(RuntimeError, match="disk full"):
            fast.export(path, format="litert")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    for _ in range(2):
        fast.export(tmp_path / "saved")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.tflite", "saved"]


FORMATS = {
    "tf_saved_model": "saved",
    "litert": "model.tflite",
    "onnx": "sections",
    "openvino": "sections",
    "triton": "models",
}


def content(path):
    """Return the bytes of a file, or of all files of a folder by name."""
    if path.is_dir() and not path.is_symlink():
        return {each.name: content(each) for each in path.iterdir()}
    return path.read_bytes()


def listing(path):
    """Return what stands at a path, with the time of each last change."""
    found = [path, *path.rglob("*")]
    return {each: (each.stat().st_mtime_ns, each.stat().st_size) for each in found}


@on_tensorflow
@pytest.mark.parametrize(
    "format",
    [
        *(each for each in FORMATS if each not in ("openvino", "triton")),
        pytest.param("openvino", marks=pytest.mark.long),
        pytest.param("triton", marks=pytest.mark.long),
    ],
)
def test_an_export_replaces_an_earlier_one(trained, images, tmp_path, format):
    fast = ksd.EarlyExit(trained, thresholds=np.inf)
    path = tmp_path / FORMATS[format]
    # What is empty loses nothing.
    path.touch() if format == "litert" else path.mkdir()
    fast.export(path, format)
    before = content(path)
    fast.thresholds = -np.inf
    fast.export(path, format)
    assert content(path) != before
    _, exits, _ = answer_of(path, format, images[0][:2], fast.exit_names)
    assert list(exits) == ["exit_1"] * 2
    assert list(tmp_path.iterdir()) == [path]


@on_tensorflow
def test_a_folder_whose_runner_was_imported_is_replaced(trained, tmp_path):
    need("onnxruntime")
    fast = ksd.EarlyExit(trained, thresholds=0.9)
    path = tmp_path / "sections"
    fast.export(path, "onnx")
    py_compile.compile(str(path / "section_runner.py"))
    assert (path / "__pycache__").is_dir()
    fast.export(path, "onnx")
    assert not (path / "__pycache__").exists()


def edit(path):
    """Add a line to a file, as with an editor."""
    path.write_bytes(path.read_bytes() + b"# mine\n")


def grow(path):
    """Add a byte in the middle of a file."""
    found = path.read_bytes()
    path.write_bytes(found[: len(found) // 2] + b"x" + found[len(found) // 2 :])


def set_in_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# What somebody does to an export, and what the error then names.
EDITS = {
    "tf_saved_model": {
        "notes.txt": lambda path: (path / "notes.txt").write_text("mine"),
        "data": lambda path: (path / "assets" / "data").mkdir(),
        "__pycache__": lambda path: (path / "__pycache__").mkdir(),
        "saved_model.pb": lambda path: grow(path / "saved_model.pb"),
        "fingerprint.pb": lambda path: (path / "fingerprint.pb").unlink(),
        "early_exit.json": lambda path: edit(path / "early_exit.json"),
        "note.*|early_exit.json": lambda path: set_in_json(
            path / "early_exit.json", note="mine"
        ),
        "not as an export writes it": lambda path: deep_json(path / "early_exit.json"),
        "a folder of 'assets'": lambda path: pipe(path / "early_exit.json"),
    },
    "onnx": {
        "section_2.onnx": lambda path: grow(path / "section_2.onnx"),
        "section_runner.py": lambda path: edit(path / "section_runner.py"),
        "manifest.json": lambda path: set_in_json(
            path / "manifest.json", thresholds=[0.1, 0.2]
        ),
        "__pycache__/mine.py": lambda path: (
            (path / "__pycache__").mkdir()
            or (path / "__pycache__" / "mine.py").write_text("mine")
        ),
    },
    "litert": {
        "changed or removed: 'model'": grow,
        "the end of an earlier export": edit,
        "no export wrote": lambda path: path.write_bytes(
            path.read_bytes()[: path.read_bytes().rindex(b"PK\x03\x04")]
        ),
        "no export": lambda path: path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(100)),
    },
}


def deep_json(path):
    path.write_text("[" * 100_000 + "]" * 100_000)


def pipe(path):
    """Put a pipe there, which to read would wait for ever."""
    path.unlink()
    os.mkfifo(path)


def copied(source, path):
    shutil.copytree(source, path) if source.is_dir() else shutil.copy(source, path)


@on_tensorflow
@pytest.mark.parametrize("format", EDITS)
def test_an_export_that_somebody_changed_stays(trained, tmp_path, format):
    need("onnxruntime")
    fast = ksd.EarlyExit(trained, thresholds=0.9)
    fast.export(tmp_path / FORMATS[format], format)
    for i, (hint, change) in enumerate(EDITS[format].items()):
        path = tmp_path / str(i) / FORMATS[format]
        path.parent.mkdir()
        copied(tmp_path / FORMATS[format], path)
        check_earlier_export(format)(path)
        change(path)
        before = listing(path)
        with pytest.raises(FileExistsError, match=hint) as error:
            fast.export(path, format)
        assert str(path) in str(error.value)
        assert listing(path) == before
    other = "openvino" if format == "onnx" else "onnx"
    if format != "litert":
        with pytest.raises(FileExistsError, match=f"export of format '{format}'"):
            fast.export(tmp_path / FORMATS[format], other)


@on_tensorflow
@pytest.mark.parametrize("format", FORMATS)
def test_what_a_user_has_there_stays(trained, tmp_path, format, monkeypatch):
    fast = ksd.EarlyExit(trained, thresholds=0.9)
    project = tmp_path / FORMATS[format]
    (project / "src").mkdir(parents=True)
    (project / "src" / "main.py").write_text("mine")
    link = tmp_path / "links" / FORMATS[format]
    link.parent.mkdir()
    link.symlink_to(project)
    file = tmp_path / "files" / FORMATS[format]
    file.parent.mkdir()
    file.write_text("mine")
    before = content(tmp_path / "files"), content(project)
    monkeypatch.chdir(project / "src")
    for path, hint in (
        (project, "a folder of 'src'"),
        (link, "a link to"),
        (file, "a file"),
        ("..", "a folder of"),
        (".", "a folder of 'main.py'"),
    ):
        with pytest.raises(FileExistsError, match=hint):
            fast.export(path, format)
    assert (content(tmp_path / "files"), content(project)) == before
    assert link.is_symlink()


_KILLED = """
import os, signal, sys
import keras_selfdistill as ksd
from keras_selfdistill.early_exit.export import writers
from tests.conftest import small_base
model = ksd.SelfDistiller(small_base(), ["stem_relu"], "byot")
fast = ksd.EarlyExit(model, thresholds=0.0)
fast.export(sys.argv[1], sys.argv[2])
write_list = writers.write_list
def die(*arguments):
    write_list(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
writers.write_list = die
fast.thresholds = 1e3
fast.export(sys.argv[1], sys.argv[2])
"""


@on_tensorflow
@pytest.mark.process
@pytest.mark.long
@pytest.mark.parametrize("format", ["tf_saved_model", "onnx"])
def test_a_killed_export_leaves_the_earlier_one(trained, images, tmp_path, format):
    path = tmp_path / "model"
    killed = run_python("-c", _KILLED, path, format, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    _, exits, _ = answer_of(path, format, images[0][:2], ["exit_1", "final"])
    assert list(exits) == ["exit_1"] * 2
    before = content(path)
    (left,) = (each for each in tmp_path.iterdir() if each != path)
    assert content(left)["new"]["model"].keys() == before.keys()  # Complete.
    ksd.EarlyExit(trained, thresholds=0.5).export(path, format)
    assert content(path) != before
    assert list(tmp_path.iterdir()) == [path]


@on_tensorflow
def test_a_failed_export_leaves_no_folders(trained, tmp_path, monkeypatch):
    fast = ksd.EarlyExit(trained, thresholds=0.9)
    import tensorflow as tf

    def fail(*args, **kwargs):
        raise RuntimeError("disk full")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        fast.export(tmp_path / "a" / "b" / "saved")
    assert not list(tmp_path.iterdir())


@on_tensorflow
def test_layers_with_seeds_are_exported(tmp_path):
    """An RNN layer draws its dropout's seed in inference, too, for nothing."""
    import tensorflow as tf

    inputs = keras.Input((3, 2))
    x = keras.layers.LSTM(4, dropout=0.5, name="tap")(inputs)
    x = keras.layers.Dense(4)(x)
    base = keras.Model(inputs, keras.layers.Dense(3, "softmax")(x))
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
    ksd.EarlyExit(model, thresholds=2.0).export(tmp_path / "saved")
    x = np.random.default_rng(0).normal(size=(5, 3, 2)).astype("float32")
    found = tf.saved_model.load(str(tmp_path / "saved")).serve(x)["prediction"]
    np.testing.assert_allclose(found, base.predict(x, verbose=0), atol=1e-5)


@on_tensorflow
@pytest.mark.parametrize("name", ["my größe (2)", "_hidden"])
def test_names_of_bases_may_have_any_characters(tmp_path, name):
    base = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, name="tap"),
            keras.layers.Dense(3, "relu"),
            keras.layers.Dense(3, "softmax"),
        ],
        name=name,
    )
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
    fast = ksd.EarlyExit(model, thresholds=0.5)
    fast.export(tmp_path / "sections", format="onnx")
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    need("onnxruntime")
    found, *_ = SectionRunner(tmp_path / "sections")(x)
    np.testing.assert_allclose(found, fast.predict(x).predictions, atol=1e-5)


@pytest.mark.once
def test_the_suffix_names_the_format():
    assert format_of("a.tflite") == format_of("a.TFLITE", "litert") == "litert"
    assert format_of("a") == format_of("model.v1.2") == "tf_saved_model"
    assert format_of("sections", "onnx") == "onnx"
    assert format_of("models", "triton") == "triton"
    for path, format, hint in (
        ("q.tflite", "tf_saved_model", "litert"),
        ("q.onnx", None, "folder of sections"),
        ("q.onnx", "onnx", "folder of sections"),
        ("q.xml", "openvino", "folder of sections"),
        ("q.onnx", "triton", "folder of sections"),
        ("q.keras", None, "EarlyExit.load"),
    ):
        with pytest.raises(ValueError, match=hint):
            format_of(path, format)


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="it writes them")
def test_other_backends_refuse_before_they_read_data(trained, tmp_path):
    fast = ksd.EarlyExit(trained, thresholds=0.5)
    options = {"quantize": "int8", "representative_data": iter([])}
    with pytest.raises(ValueError, match="TensorFlow backend only"):
        fast.export(tmp_path / "net.tflite", **options)


def test_wrong_exports_are_refused(trained, tmp_path):
    fast = ksd.EarlyExit(trained, thresholds=0.9)
    with pytest.raises(ValueError, match=r"'triton'(.|\n)*Did you mean 'litert'"):
        fast.export(tmp_path / "a", format="litert2")
    with pytest.raises(ValueError, match="no thresholds yet"):
        ksd.EarlyExit(trained).export(tmp_path / "a")
    own = ksd.EarlyExit(trained, lambda rows: np.sort(rows)[:, -1], thresholds=0.9)
    if BACKEND == "tensorflow":
        for format in FORMATS:
            with pytest.raises(ValueError, match=r"cannot be exported(.|\n)*xp\.sort"):
                own.export(tmp_path / "a", format=format)
    if BACKEND != "tensorflow":
        with pytest.raises(ValueError, match="KERAS_BACKEND=tensorflow"):
            fast.export(tmp_path / "a", format="litert")
    assert not list(tmp_path.iterdir())


@on_tensorflow
def test_onnx_that_cannot_run_is_not_written(trained, tmp_path):
    need("onnxruntime")
    best = lambda rows: keras.ops.argmax(rows, axis=-1)  # noqa: E731
    with pytest.raises(Exception, match="Bitcast"):
        ksd.EarlyExit(trained, best, thresholds=1.0).export(tmp_path / "a", "onnx")
    assert not list(tmp_path.iterdir())


@on_tensorflow
def test_a_criterion_remembers_rows_of_numbers(trained, tmp_path):
    def count(probabilities, memory):
        memory["exits"] = np.array(memory.get("exits", 0) + 1)
        return probabilities[:, 0]

    fast = ksd.EarlyExit(trained, thresholds=0.9)
    scorer = dataclasses.replace(fast._scorer, criterion=count)
    with pytest.raises(ValueError, match=r"under 'exits' for 2 samples"):
        ScoredSection(GivenSection(), scorer, 0, 4)
