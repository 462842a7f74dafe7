"""What training shows of every exit: TensorBoard, a table, the names of the logs."""

import contextlib
import io
import math
import re

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from keras_selfdistill.callbacks.epoch_table import epoch_table
from keras_selfdistill.training.logs.log_names import exits_in_order, parse_log_names
from tests.conftest import ROOT
from tests.docs.test_documents import code_blocks

PAGE = "docs/how_to/train.md"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Run the documents' example: the folder, what was printed, and the history."""
    base = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, activation="relu", name="tapped"),
            keras.layers.Dense(5, activation="relu"),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model = ksd.SelfDistiller(base, ["tapped"], "byot", head="linear")
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = np.random.default_rng(0).normal(size=(20, 4)), np.arange(20) % 3
    names = {"ksd": ksd, "model": model, "x_train": x, "y_train": y}
    names |= {"x_val": x[:5], "y_val": y[:5]}
    folder = tmp_path_factory.mktemp("live")
    blocks = code_blocks(PAGE, "python")
    code = next(block for block in blocks if "EpochTable" in block)
    text = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(text):
        exec(code.replace("verbose=0", "verbose=2"), names)
    assert (folder / "history.svg").exists()
    return folder / "logs", text.getvalue(), names["history"].history


def scalars(folder):
    """Return what TensorBoard itself reads: `{(run, tag): [(step, value), …]}`."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
    from tensorboard.util.tensor_util import make_ndarray

    runs = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    return {
        (run, tag): [
            (event.step, float(make_ndarray(event.tensor_proto)))
            for event in runs.Tensors(run, tag)
        ]
        for run, found in runs.Runs().items()
        for tag in found["tensors"]
    }


def test_all_exits_share_a_chart_in_tensorboard(trained):
    folder, _, history = trained
    found = scalars(folder)
    runs = {run for run, tag in found if tag == "epoch_accuracy"}
    exits = ["exit_1", "final", "ensemble"]
    assert runs == {f"{part}/{e}" for part in ("train", "validation") for e in exits}
    keys = {
        ("train/exit_1", "epoch_accuracy"): "exit_1_accuracy",
        ("train/final", "epoch_accuracy"): "accuracy",
        ("validation/ensemble", "epoch_accuracy"): "val_ensemble_accuracy",
        ("train", "epoch_soft_target_loss"): "soft_target_loss",
        ("validation", "epoch_loss"): "val_loss",
    }
    for place, key in keys.items():
        steps, values = zip(*found[place], strict=True)
        assert steps == (0, 1)
        np.testing.assert_allclose(values, history[key], rtol=1e-6)
    assert len(found) == len(history)


ENDS = {
    # task: (shape of a sample, units, activation, metric)
    "multiclass": ((4,), 3, "softmax", "accuracy"),
    "multilabel": ((4,), 3, "sigmoid", "binary_accuracy"),
    "binary": ((4,), 1, "sigmoid", "accuracy"),
    "regression": ((4,), 2, None, "mae"),
    "multiclass at positions": ((5, 4), 3, "softmax", "accuracy"),
    "binary at positions": ((5, 4), 1, "sigmoid", "accuracy"),
}
LOSSES = {
    "multiclass": "sparse_categorical_crossentropy",
    "multilabel": "binary_crossentropy",
    "binary": "binary_crossentropy",
    "regression": "mse",
}


@pytest.mark.once
@pytest.mark.parametrize("task", ENDS)
def test_exits_of_every_task_are_shown(task, tmp_path, capsys):
    shape, units, activation, metric = ENDS[task]
    name = task.split()[0]
    inputs = keras.Input(shape)
    x = keras.layers.Dense(5, activation="relu", name="tapped")(inputs)
    x = keras.layers.Dense(5, activation="relu")(x)
    outputs = keras.layers.Dense(units, activation=activation)(x)
    model = ksd.SelfDistiller(
        keras.Model(inputs, outputs),
        ["tapped"],
        "deep_supervision",
        head=None if "positions" in task else "linear",
        task=name,
    )
    model.compile("sgd", LOSSES[name], metrics=[metric], run_eagerly=True)
    random = np.random.default_rng(0)
    x = random.normal(size=(8, *shape)).astype("float32")
    y = random.integers(0, 2, (8, *shape[:-1], units))
    y = y[..., 0] if name == "multiclass" else y
    callbacks = [ksd.callbacks.EpochTable(), ksd.callbacks.TensorBoard(tmp_path)]
    history = model.fit(
        x, y, validation_data=(x, y), verbose=0, callbacks=callbacks
    ).history
    table = dict(re.findall(r"^(\w+) +([\d. ]+)$", capsys.readouterr().out, re.M))
    found = scalars(tmp_path)
    assert list(table) == ["exit_1", "final", "ensemble"]
    for source, row in table.items():
        key = metric if source == "final" else f"{source}_{metric}"
        expected = [history[key][0], history[f"val_{key}"][0]]
        assert row.split() == [f"{value:.4f}" for value in expected]
        for part, value in zip(("train", "validation"), expected, strict=True):
            ((step, shown),) = found[f"{part}/{source}", f"epoch_{metric}"]
            assert (step, shown) == (0, pytest.approx(value, rel=1e-6))
    assert len(found) == len(history)


@pytest.mark.once
def test_gradients_by_section_share_a_chart(tmp_path):
    callback = ksd.callbacks.TensorBoard(tmp_path)
    callback.on_epoch_end(3, {"section_1_gradient": 0.5, "section_2_gradient": 0.25})
    callback.on_train_end()
    found = scalars(tmp_path)
    assert found == {
        ("train/section_1", "epoch_gradient"): [(3, 0.5)],
        ("train/section_2", "epoch_gradient"): [(3, 0.25)],
    }


@pytest.mark.once
def test_tensorboard_is_asked_for(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard.summary", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        ksd.callbacks.TensorBoard()


def test_the_table_shows_the_history(trained):
    _, text, history = trained
    tables = text.split("epoch ")[1:]
    assert len(tables) == 2
    for epoch, table in enumerate(tables):
        assert table.startswith(f"{epoch + 1}: loss {history['loss'][epoch]:.4f} (val ")
        rows = dict(re.findall(r"^(\w+) +([\d. ]+)$", table, re.M))
        assert list(rows) == ["exit_1", "final", "ensemble"]
        for name, row in rows.items():
            key = "accuracy" if name == "final" else f"{name}_accuracy"
            expected = [history[key][epoch], history[f"val_{key}"][epoch]]
            assert row.split() == [f"{value:.4f}" for value in expected]
    # Below the line of its own epoch, above the next.
    assert text.index("Epoch 1/2") < text.index("epoch 1:") < text.index("Epoch 2/2")


@pytest.mark.once
def test_a_large_table_is_aligned_and_fits_100_columns():
    metrics = ["accuracy", "sparse_top_k_categorical_accuracy", "a", "b", "c", "d"]
    sources = ["", *(f"exit_{i:02d}_" for i in range(1, 13)), "ensemble_"]
    logs = {
        f"{part}{source}{metric}": math.pi * 10.0**i
        for part in ("", "val_")
        for source in sources
        for i, metric in enumerate(metrics)
    }
    logs |= {f"{name}_loss_of_training": 1e-7 for name in "abcdefgh"}
    logs |= {f"section_{i}_gradient": 0.5 for i in range(3)}
    lines = epoch_table(7, logs).splitlines()
    assert max(map(len, lines)) <= 100
    heads = [line for line in lines if line.startswith("  ")]
    assert " ".join(heads).split().count("val_sparse_top_k_categorical_accuracy") == 1
    assert len(" ".join(heads).split()) == 2 * len(metrics) + 1
    # Every column ends where its head does.
    for start in (i for i, line in enumerate(lines) if line in heads):
        ends = [match.end() for match in re.finditer(r"\S+", lines[start])]
        row = [match.end() for match in re.finditer(r"\S+", lines[start + 1])]
        assert row[1:] == ends


@pytest.mark.once
def test_names_of_the_logs():
    keys = ["loss", "val_loss", "accuracy", "val_exit_03_accuracy", "exit_12_accuracy"]
    found = parse_log_names([*keys, "section_2_gradient", "validity", "final_loss"])
    assert [tuple(found[key]) for key in keys] == [
        (False, "", "loss"),
        (True, "", "loss"),
        (False, "final", "accuracy"),
        (True, "exit_03", "accuracy"),
        (False, "exit_12", "accuracy"),
    ]
    assert found["section_2_gradient"].source == "section_2"
    assert not found["validity"].validation
    assert exits_in_order(found.values()) == ["exit_03", "exit_12", "final"]


def test_the_documents_tell_every_key_of_the_history(trained):
    _, _, history = trained
    page = (ROOT / PAGE).read_text()
    for key in history:
        assert f"`{key.removeprefix('val_')}`" in page
    assert "`val_…`" in page
    assert "`section_1_gradient`" in page
