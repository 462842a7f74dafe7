"""What the documents show can be run."""

import re

import keras
import pytest

import keras_selfdistill as ksd

from .conftest import ROOT, require_backend

pytestmark = pytest.mark.once


def code_blocks(name, language):
    text = (ROOT / name).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_a_users_own_recipe_and_head(base, batch, tmp_path):
    names: dict = {}
    exec("\n".join(code_blocks("CONTRIBUTING.md", "python")), names)
    model = ksd.SelfDistiller(
        base, ["out_1"], names["SoftTargetsOnly"](), head=names["MaxPooled"]()
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    history = model.fit(*batch, verbose=0).history
    assert set(history) == {"loss", "label_loss", "soft_target_loss"}
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.recipe == names["SoftTargetsOnly"](temperature=4.0)
    assert "exit_1_max" in {layer.name for layer in loaded.layers}


def test_the_readme_example(batch, tmp_path, monkeypatch):
    code, *others = code_blocks("README.md", "python")
    recipe = next(block for block in others if "PolynomialDecay" in block)
    assert len(code.splitlines()) <= 10
    x, y = batch
    images = (keras.ops.convert_to_numpy(keras.ops.tile(x, (1, 4, 4, 1))), y[:, None])
    monkeypatch.setattr(keras.datasets.cifar100, "load_data", lambda: (images, images))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code.replace("epochs=200", "epochs=1, verbose=0"), names)
    assert {path.name for path in tmp_path.iterdir()} == {
        "classifier.keras",
        "smaller.keras",
    }
    loaded = keras.saving.load_model(tmp_path / "smaller.keras")
    assert loaded.output_shape == (None, 100)
    exec(recipe, names)
    assert float(names["recipe"].at(2500).alpha) == pytest.approx(0.15)


def test_ci_runs_the_commands_of_the_readme():
    commands = "\n".join(code_blocks("README.md", "bash")).splitlines()
    assert 'python -m pip install -e ".[test]" && python -m pytest' in commands
    assert (
        'python -m pip install -e ".[demo]" && python examples/quickstart.py'
        in commands
    )


@pytest.mark.filterwarnings("ignore")  # Exporters warn of their own workings.
def test_the_early_exit_example(base, batch, tmp_path, monkeypatch):
    require_backend("ai_edge_litert")
    *_, early_exit, device = code_blocks("README.md", "python")
    monkeypatch.chdir(tmp_path)
    model = ksd.SelfDistiller(base, ["out_1"], "byot")
    x, y = batch
    names = {"ksd": ksd, "model": model, "x_val": x, "y_val": y, "x_test": x}
    exec(early_exit + device, names)
    left_at = names["fast"].exit_names[int(names["answer"]["exit"][0])]
    assert left_at == names["result"].exits[0]
    assert (tmp_path / "fast.earlyexit").exists()
