"""The search for constants: test images take no part, and a killed search goes on."""

import importlib
import json
import types

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from shared import image_sets
from tests.conftest import ROOT, miss, run_python

SCRIPT = ROOT / "examples" / "tune.py"
TINY = ("--epochs=1", "--train_examples=100", "--taps=1", "--judged_by=exit_1")


@pytest.fixture(scope="module")
def tune():
    try:
        return importlib.import_module("tune")
    except ImportError:
        miss("keras_tuner is not installed")


@pytest.mark.once
def test_trials_are_judged_on_training_images_that_they_do_not_train_on(tune):
    images = image_sets.load("digits", "unused", seed=3)
    parts = tune.hold_out(images, 0.25, seed=5)
    rows = [{each.tobytes() for each in part[0]} for part in (parts.train, parts.test)]
    assert len(parts.test[0]) == round(0.25 * len(images.train[0]))
    assert rows[0] | rows[1] == {each.tobytes() for each in images.train[0]}
    assert not rows[0] & rows[1]
    labels = {x.tobytes(): y for x, y in zip(*images.train, strict=True)}
    for part in (parts.train, parts.test):
        assert all(labels[x.tobytes()] == y for x, y in zip(*part, strict=True))
    # Images of CIFAR-100 are augmented and normalised in training alone.
    coloured = np.arange(10 * 32 * 32 * 3).reshape(10, 32, 32, 3).astype("uint8")
    parts = tune.hold_out(
        image_sets.Images("cifar100", (coloured, np.arange(10)), ()), 0.2, seed=0
    )
    assert [part[0].dtype for part in parts[1:]] == ["uint8", "float32"]


@pytest.mark.once
@pytest.mark.parametrize("name", ksd.recipes.RECIPES)
def test_the_own_constants_of_every_recipe_are_within_what_is_searched(tune, name):
    recipe = ksd.recipes.RECIPES[name]()
    space = tune.search_space(recipe)
    assert space.values
    for each in space.space:
        assert each.default == getattr(recipe, each.name)
        assert each.min_value <= each.default <= each.max_value
    lowest = {each.name: each.min_value for each in space.space}
    highest = {each.name: each.max_value for each in space.space}
    for constants in (lowest, highest):
        ksd.recipes.RECIPES[name](**constants)  # Raises where one is out of range.


@pytest.mark.once
# KerasTuner 1.4.8 names threads by methods that Python deprecates.
@pytest.mark.filterwarnings("ignore:(currentThread|getName):DeprecationWarning")
def test_a_search_draws_by_its_seed_and_goes_on_where_training_diverges(
    tune, tmp_path, monkeypatch
):
    def train(recipe, _):
        if recipe.alpha > 0.5:
            raise FloatingPointError("no finite step")
        return recipe

    from keras_tuner.src import backend

    monkeypatch.setattr(tune, "train", train)
    monkeypatch.setattr(tune, "accuracy", lambda recipe, _: 1 - recipe.alpha)
    values = {"recipe": "byot", "trials": 6, "seed": 0}
    monkeypatch.setattr(tune, "FLAGS", types.SimpleNamespace(**values))
    found = tune.search(None, tmp_path / "a")
    assert found == tune.search(None, tmp_path / "b")
    scores = [each["held_out_accuracy"] for each in found]
    assert scores[-2:] == [0.0, 0.0]
    assert scores[0] > 0
    tune.FLAGS.trials = 1
    glob = backend.io.glob
    monkeypatch.setattr(backend.io, "glob", lambda path: sorted(glob(path))[::-1])
    assert tune.search(None, tmp_path / "a") == found  # None is left out.


def run(folder, *flags, check=True):
    return run_python(
        SCRIPT,
        f"--output_dir={folder}",
        *TINY,
        *flags,
        check=check,
        backend="torch",  # Compiles nothing.
        OMP_NUM_THREADS="1",
    )


@pytest.mark.process
@pytest.mark.long
def test_a_search_goes_on_and_its_result_can_be_recomputed(tune, tmp_path):
    run(tmp_path, "--trials=1")
    first = json.loads((tmp_path / "results.json").read_text())
    output = run(tmp_path, "--trials=3").stdout
    found = json.loads((tmp_path / "results.json").read_text())
    assert len(found["trials"]) == 3
    assert first["trials"][0] in found["trials"]
    scores = [each["held_out_accuracy"] for each in found["trials"]]
    assert scores == sorted(scores, reverse=True)
    assert f"best {scores[0]:.2%}, worst {scores[-1]:.2%}" in output

    images = image_sets.load("digits", "unused", train_examples=100, seed=0)
    expected = {"own": {}, "chosen": found["trials"][0]["constants"]}
    for name, constants in expected.items():
        model = keras.saving.load_model(tmp_path / f"{name}.keras")
        assert model.recipe == ksd.recipes.BYOT(**constants)
        logits = model.predict(images.test[0], verbose=0)["exit_1"]
        accuracy = np.mean(logits.argmax(axis=-1) == images.test[1])
        assert found[name]["test_accuracy"] == pytest.approx(accuracy)
        assert f"{accuracy:.2%}" in output


@pytest.mark.process
@pytest.mark.long
def test_wrong_flags_are_refused_before_training(tune, tmp_path):
    result = run(tmp_path, "--judged_by=exit_2", check=False)
    assert result.returncode
    text = " ".join((result.stdout + result.stderr).split())
    assert "--judged_by=exit_2; expected one of exit_1, final, ensemble" in text
    assert not list(tmp_path.iterdir())
