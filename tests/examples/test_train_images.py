"""train_images.py as a user runs it: killed, gone on with, measured, deployed."""

import functools
import json
import re

import h5py
import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from images import batches, split
from tests.conftest import ROOT, require_backend, run_python
from tests.examples.test_images_parts import CLASSES, make_folder, make_shards
from tests.interruption import killed_replacing, run_script, run_whole_and_killed

pytestmark = pytest.mark.process
SCRIPT = ROOT / "examples" / "train_images.py"
TINY = {
    "model": "resnet18",
    "weights": "none",
    "width_multiplier": 0.125,
    "image_size": "16,20",
    "taps": 1,
    "head_epochs": 1,
    "epochs": 2,
    "batch_size": 8,
    "base_learning_rate": 0.001,
    "max_accuracy_drop": 0.9,
    "class_weight": "balanced",
}
OF_A_CLOCK = {"milliseconds", "bytes"}


def run(data_dir, output_dir, before="", **flags):
    """Run the script in its own process, after some Python code.

    Names in capitals are variables of its environment, and `backend` is its backend.
    """
    environment = {name: flags.pop(name) for name in [*flags] if name.isupper()}
    if "backend" in flags:
        environment["backend"] = flags.pop("backend")
    given = {**TINY, "data_dir": data_dir, "output_dir": output_dir, **flags}
    return run_script(
        SCRIPT,
        *(f"--{name}={value}" for name, value in given.items()),
        before=before,
        # A later run need not compile again what an earlier one did.
        JAX_COMPILATION_CACHE_DIR=str(data_dir.parent / "compiled"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        **environment,
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("photos") / "folder", (24, 16, 16, 12))


@pytest.fixture(scope="module")
def runs(photos, tmp_path_factory):
    """Two equal runs: one at a stretch, one killed and begun again."""
    whole, killed = (tmp_path_factory.mktemp(name) for name in ("whole", "killed"))

    def look():
        assert (killed / "distilled" / "heads.weights.h5").exists()
        assert not (killed / "distilled" / "all.weights.h5").exists()
        assert not (killed / "artifact").exists()

    second = run_whole_and_killed(
        functools.partial(run, photos, whole),
        functools.partial(run, photos, killed),
        kill=killed_replacing(".checkpoint", 3),
        when_killed=look,
    )
    return whole, killed, second.stdout + second.stderr


def results(folder):
    return json.loads((folder / "results.json").read_text())


def without_clock(value):
    if isinstance(value, dict):
        return {
            name: without_clock(each)
            for name, each in value.items()
            if name not in OF_A_CLOCK
        }
    return [without_clock(each) for each in value] if isinstance(value, list) else value


def arrays_of(path):
    found = {}

    def collect(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(collect)
    return found


@pytest.mark.long
def test_a_killed_run_ends_like_one_that_was_not(runs):
    whole, killed, output = runs
    assert "Resumed at epoch 1, batch 0" in output
    for name in ("distilled/all.weights.h5", "plain/all.weights.h5"):
        ours, theirs = arrays_of(killed / name), arrays_of(whole / name)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            np.testing.assert_array_equal(value, theirs[key], err_msg=f"{name} {key}")
    assert without_clock(results(killed)) == without_clock(results(whole))
    assert (killed / "split.json").read_bytes() == (whole / "split.json").read_bytes()
    before = (whole / "distilled" / "heads.weights.h5", "distilled/all.weights.h5")
    assert any(
        not np.array_equal(value, arrays_of(whole / before[1])[key])
        for key, value in arrays_of(before[0]).items()
    )


def load_split(photos, folder):
    return split.load_or_make(photos, folder / "split.json", share=0.3, seed=0)


@pytest.mark.long
def test_the_artifact_is_as_accurate_as_its_readme_says(runs, photos):
    folder = runs[0] / "artifact"
    found = results(runs[0])
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "base.keras", "chosen_exit.keras", "classes.txt"),
        *("early_exit.earlyexit", "early_exit.tflite", "pictures"),
    }
    assert (folder / "classes.txt").read_text("utf-8").split("\n") == [*CLASSES, ""]
    test = batches.Whole(load_split(photos, runs[0]).test, (16, 20), 8)
    x = np.concatenate([test[index][0] for index in range(len(test))])
    y = np.concatenate([test[index][1] for index in range(len(test))])
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["plain base", "exit_1", "final", "ensemble"]

    def accuracy(name):
        model = keras.saving.load_model(folder / name)
        return np.mean(np.argmax(model.predict(x, verbose=0), axis=-1) == y)

    chosen = found["chosen_exit"]
    assert accuracy("base.keras") == pytest.approx(rows["final"]["accuracy"])
    assert accuracy("chosen_exit.keras") == pytest.approx(chosen["test_accuracy"])
    assert chosen["test_accuracy"] == rows[chosen["name"]]["accuracy"]
    early = found["early_exit"]
    fast = ksd.EarlyExit.load(folder / "early_exit.earlyexit")
    logs = fast.evaluate(x, y, return_dict=True, verbose=0)
    assert logs["accuracy"] == pytest.approx(early["test_accuracy"])
    assert logs["macs_ratio"] == pytest.approx(early["macs_ratio"])
    assert early["guarantee"] == 0.95
    assert early["accuracy_drop_bound"] == 0.9

    readme = (folder / "README.md").read_text("utf-8")
    cells = {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:]
        for line in readme.splitlines()
        if line.startswith("| ")
    }
    for name, row in rows.items():
        assert cells[name][0] == f"{row['accuracy']:.2%}"
        assert cells[name][2] == f"{row['macs_ratio']:.2%}"
    assert cells["early exit"][0] == f"{early['test_accuracy']:.2%}"
    for index, name in enumerate(CLASSES):
        in_test = int((y == index).sum())
        assert cells[name][3] == str(in_test)
    for picture in re.findall(r"\]\((pictures/.*?)\)", readme):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_the_litert_file_exits_where_this_library_does(runs, photos):
    require_backend("ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter

    folder = runs[0] / "artifact"
    test = batches.Whole(load_split(photos, runs[0]).test, (16, 20), 1)
    fast = ksd.EarlyExit.load(folder / "early_exit.earlyexit")
    classify = Interpreter(str(folder / "early_exit.tflite")).get_signature_runner()
    for index in range(len(test)):
        x, _ = test[index]
        found, expected = classify(input=x), fast.predict(x)
        assert fast.exit_names[int(found["exit"][0])] == expected.exits[0]
        np.testing.assert_allclose(found["prediction"], expected.predictions, atol=1e-4)


@pytest.mark.long
def test_a_finished_run_is_only_measured_again(runs, photos):
    whole = runs[0]
    before = {
        name: (whole / name).read_bytes()
        for name in ("split.json", "distilled/all.weights.h5")
    }
    again = run(photos, whole)
    assert again.returncode == 0, again.stderr
    assert "Epoch" not in again.stdout
    assert before == {name: (whole / name).read_bytes() for name in before}


@pytest.mark.long
def test_broken_images_end_the_run_before_training(tmp_path):
    broken = make_folder(tmp_path / "broken")
    (broken / "犬" / "3.png").write_bytes(b"GIF89a")
    ended = run(broken, tmp_path / "refused")
    assert ended.returncode != 0
    assert "犬/3.png: " in ended.stderr
    assert not (tmp_path / "refused" / "split.json").exists()
    assert "Epoch" not in ended.stdout


# As where it is not installed: to Keras, an entry of `sys.modules` is an installed one.
WITHOUT_TENSORFLOW = """
import importlib.machinery
finder = importlib.machinery.PathFinder
find = finder.find_spec

def find_others(name, path=None, target=None):
    missing = name.split(".")[0] in ("tensorflow", "tensorflow_datasets")
    return None if missing else find(name, path, target)

finder.find_spec = find_others
"""
DEVICES = {"tensorflow": "mirrored", "jax": "data_parallel"}


@pytest.mark.long
@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_several_devices_and_half_precision(photos, tmp_path, precision):
    engine = DEVICES.get(keras.backend.backend(), "none")
    alone = precision == "mixed_float16" and keras.backend.backend() != "tensorflow"
    flags = {"mixed_precision": precision, "distribute": engine, "epochs": 1}
    before = WITHOUT_TENSORFLOW if alone else ""
    data = photos
    if precision == "mixed_float16":  # Grain needs no TensorFlow, either.
        data = tmp_path / "shards"
        make_shards(photos, data)
    done = run(data, tmp_path, before, **flags)
    assert done.returncode == 0, done.stderr
    assert alone != (tmp_path / "artifact" / "early_exit.tflite").exists()
    readme = (tmp_path / "artifact" / "README.md").read_text("utf-8")
    assert alone == ("TensorFlow, which writes it, is not installed" in readme)
    found = results(tmp_path)
    assert found["flags"]["mixed_precision"] == precision
    assert all(0 <= row["accuracy"] <= 1 for row in found["rows"])
    assert np.isfinite([row["loss"] for row in found["rows"]]).all()


# Flags of one process are those of all its scripts: these have one of their own.
_REFUSE = """
import json, sys
from absl import app
from absl.testing import flagsaver
import train_images

train_images.define_flags()
first, cases = json.loads(sys.argv[1])
for case in cases:
    with flagsaver.flagsaver():
        train_images.FLAGS(["train", *first, *case])
        try:
            train_images.main(["train"])
        except app.UsageError as error:
            print(error)
"""


@pytest.mark.long
@pytest.mark.once
def test_impossible_flags_are_refused(photos, tmp_path):
    begun = tmp_path / "begun"
    (begun / "distilled").mkdir(parents=True)
    (begun / "flags.json").write_text('{"epochs": 2, "seed": 0}')
    damaged = tmp_path / "shards"
    make_shards(photos, damaged)
    (damaged / "shards.json").unlink()
    backend = keras.backend.backend()
    other = next(engine for name, engine in DEVICES.items() if name != backend)
    cases = {
        "--held_out=1.0": "held_out=1.0; expected a number between 0 and 1",
        "--image_size=2,0": "image_size=2,0; expected a number of pixels",
        "--image_size=a": "image_size=a; expected a number of pixels",
        "--batch_size=64": "batch_size=64; expected at most the 47 training images",
        "--model=resnet": "model=resnet; expected a function of keras.applications",
        f"--distribute={other}": f"distribute={other} with KERAS_BACKEND={backend}",
        f"--output_dir={begun}": "epochs=20 (was 2), ",
        f"--data_dir={damaged}": "shards.json; expected a whole folder",
    }
    first = [f"--data_dir={photos}", f"--output_dir={tmp_path}", "--weights=none"]
    given = json.dumps([first, [[case] for case in cases]])
    path = f"{ROOT / 'examples'}:{ROOT}"
    done = run_python("-c", _REFUSE, given, PYTHONPATH=path)
    for message in cases.values():
        assert message in done.stdout
    assert done.stdout.count("Received") == len(cases)
    assert not list(tmp_path.glob("**/*.h5"))
