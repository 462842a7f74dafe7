"""Artifacts, run by their real runtimes, against Keras and `EarlyExit.predict`."""

import importlib.util
import json
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from keras_selfdistill.section_runner import SectionRunner

from .conftest import miss, small_base

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
    fast.calibrate(*images, flops_budget=9.0)
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
@pytest.mark.parametrize("part", ["exit_1", "final", "ensemble"])
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

OPTIONS = {
    "confidence": {},
    "margin": {"criterion": "margin"},
    "entropy of means": {"criterion": "entropy", "scores_from": "running_mean"},
    "ensemble": {"last_resort": "ensemble"},
}


@on_tensorflow
@pytest.mark.parametrize("name", OPTIONS)
def test_one_file_decides_in_its_graph(trained, images, tmp_path, name):
    need("ai_edge_litert")
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    fast = thresholds_between(trained, images, **OPTIONS[name])
    fast.export(tmp_path / "saved")
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    names = [each.decode() for each in loaded.exit_names()["exit_names"].numpy()]
    assert names == fast.exit_names
    found = [loaded.serve(image[None]) for image in images[0]]
    answer = [
        np.concatenate([each[key] for each in found])
        for key in ("prediction", "exit", "score")
    ]
    answer[1] = np.array(names)[answer[1]]
    check(fast, images[0], answer)

    fast.export(tmp_path / "model.tflite", format="litert")
    interpreter = Interpreter(str(tmp_path / "model.tflite"))
    runner = interpreter.get_signature_runner()
    (input_name,) = interpreter.get_signature_list()["serving_default"]["inputs"]
    found = [runner(**{input_name: image[None]}) for image in images[0]]
    answer = [
        np.concatenate([each[key] for each in found])
        for key in ("prediction", "exit", "score")
    ]
    answer[1] = np.array(names)[answer[1]]
    check(fast, images[0], answer)


@on_tensorflow
def test_patience_in_the_graph(trained, images, tmp_path):
    import tensorflow as tf

    fast = ksd.EarlyExit(trained, "patience", thresholds=2.0)
    fast.export(tmp_path / "saved")
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    exits = np.concatenate([loaded.serve(image[None])["exit"] for image in images[0]])
    expected = fast.predict(images[0])
    assert np.array(fast.exit_names)[exits].tolist() == expected.exits.tolist()


@on_tensorflow
@pytest.mark.parametrize(
    ("name", "format"),
    [*((name, "onnx") for name in OPTIONS), ("entropy of means", "openvino")],
)
def test_a_folder_of_sections(trained, images, tmp_path, format, name):
    need("onnxruntime" if format == "onnx" else "openvino")
    fast = thresholds_between(trained, images, **OPTIONS[name])
    fast.export(tmp_path / "folder", format=format)
    runner = SectionRunner(tmp_path / "folder")
    parts = [runner(image[None]) for image in images[0]]
    check(fast, images[0], [np.concatenate(each) for each in zip(*parts, strict=True)])
    check(fast, images[0], runner(images[0]))


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


def test_wrong_exports_are_refused(trained, tmp_path):
    fast = ksd.EarlyExit(trained, thresholds=0.9)
    with pytest.raises(ValueError, match="Did you mean 'litert'"):
        fast.export(tmp_path / "a", format="litert2")
    with pytest.raises(ValueError, match="no thresholds yet"):
        ksd.EarlyExit(trained).export(tmp_path / "a")
    own = ksd.EarlyExit(trained, lambda rows: rows[:, 0], thresholds=0.9)
    with pytest.raises(ValueError, match="cannot be exported"):
        own.export(tmp_path / "a", format="onnx")
    if BACKEND != "tensorflow":
        with pytest.raises(ValueError, match="KERAS_BACKEND=tensorflow"):
            fast.export(tmp_path / "a", format="litert")
    assert not list(tmp_path.iterdir())
