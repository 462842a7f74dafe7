"""What experiment trackers show of every exit, read back from their own files."""

import copy
import importlib.util
import json
import struct
import sys

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from tests.conftest import miss

NAMES = {
    # key of the logs: name in the tracker
    "loss": "loss",
    "val_loss": "val_loss",
    "label_loss": "label_loss",
    "accuracy": "accuracy/final",
    "exit_1_accuracy": "accuracy/exit_1",
    "val_accuracy": "val_accuracy/final",
    "val_exit_1_accuracy": "val_accuracy/exit_1",
    "val_ensemble_accuracy": "val_accuracy/ensemble",
    "section_2_gradient": "gradient/section_2",
}


def require(package):
    if importlib.util.find_spec(package) is None:
        miss(f"{package} is not installed")


def fit(callback):
    """Train two epochs and return the history."""
    base = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, activation="relu", name="tapped"),
            keras.layers.Dense(5, activation="relu"),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model = ksd.SelfDistiller(base, ["tapped"], "byot", head="linear")
    model.compile(
        "sgd",
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        log_gradients=True,
        run_eagerly=True,
    )
    x, y = np.random.default_rng(0).normal(size=(9, 4)), np.arange(9) % 3
    options = {"validation_data": (x, y), "epochs": 2, "verbose": 0}
    return model.fit(x, y, callbacks=[callback], **options).history


def check(found, history):
    """Compare what a tracker has, `{name: [(epoch, value), …]}`, with the history."""
    assert len(found) == len(history)
    for key, name in NAMES.items():
        epochs, values = zip(*found[name], strict=True)
        assert epochs == (0, 1)
        np.testing.assert_allclose(values, history[key], rtol=1e-6)
    # No name is also that of a group, as MLflow may keep them as files and folders.
    folders = {name.partition("/")[0] for name in found if "/" in name}
    assert not folders & found.keys()


def wandb_records(path):
    """Yield the records in a file of W&B: a log of LevelDB, of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    content, at, whole = path.read_bytes(), 7, b""
    assert content.startswith(b":W&B")
    while at + 7 <= len(content):
        left_in_block = 32_768 - at % 32_768
        if left_in_block < 7:
            at += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # Whole, or the last part.
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


@pytest.mark.once
@pytest.mark.process
def test_wandb_has_all_exits_in_groups(tmp_path, monkeypatch):
    require("wandb")
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings = wandb.Settings(x_disable_stats=True, console="off")
    with wandb.init(dir=tmp_path, project="test", settings=settings) as run:
        run.log({"of the user": 1.0})
        history = fit(copy.deepcopy(ksd.callbacks.WandbLogger()))  # As KerasTuner does.
    wandb.teardown()  # Its process writes the end of the file when it ends.
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    records = list(wandb_records(path))
    rows = [
        {".".join(item.nested_key): json.loads(item.value_json) for item in items}
        for record in records
        if (items := record.history.item)
    ]
    rows = [row for row in rows if "epoch" in row]
    own = [{k: v for k, v in row.items() if k[0] != "_"} for row in rows]
    names = own[0].keys() - {"epoch"}
    found = {name: [(row["epoch"], row[name]) for row in own] for name in names}
    check(found, history)
    axes = [r.metric for r in records if r.WhichOneof("record_type") == "metric"]
    assert {each.name: each.step_metric for each in axes if each.step_metric} == (
        dict.fromkeys(names, "epoch")
    )


@pytest.mark.once
def test_mlflow_has_all_exits_in_groups(tmp_path, monkeypatch):
    require("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # The other needs SQL.
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    try:
        with mlflow.start_run() as run:
            history = fit(copy.deepcopy(ksd.callbacks.MLflowLogger()))
        client, run = mlflow.MlflowClient(), run.info.run_id
        found = {
            name: [(m.step, m.value) for m in client.get_metric_history(run, name)]
            for name in client.get_run(run).data.metrics
        }
    finally:
        mlflow.set_tracking_uri(before)
    check(found, history)


@pytest.mark.once
@pytest.mark.parametrize("name", ["WandbLogger", "MLflowLogger"])
def test_a_run_is_asked_for_before_training(name):
    require("wandb" if name == "WandbLogger" else "mlflow")
    with pytest.raises(RuntimeError, match=r"no active run\. Expected: `with \w+\."):
        fit(getattr(ksd.callbacks, name)())


@pytest.mark.once
@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_the_package_is_asked_for(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    name = {"wandb": "WandbLogger", "mlflow": "MLflowLogger"}[package]
    expected = rf"{name} needs.*pip install {package}`.*extra `{package}`"
    with pytest.raises(ImportError, match=expected):
        getattr(ksd.callbacks, name)()
