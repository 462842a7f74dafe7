"""Wrappers in folders and on hubs, written by Keras and read by the safe loader."""

import importlib.util
import json
import os
import pathlib
import shutil
from unittest import mock

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from tests.conftest import miss, small_base

pytestmark = pytest.mark.once


def require(package):
    if importlib.util.find_spec(package) is None:
        miss(f"{package} is not installed")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    model = ksd.SelfDistiller(small_base(), ["out_1"], "byot")
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.fixture
def folder(model, tmp_path):
    """The wrapper as Keras writes it for hubs, beside files of the hub."""
    folder = tmp_path / "model"
    keras.saving.save_model(model, folder, zipped=False)
    (folder / "README.md").write_text("# A card")
    (folder / ".git").mkdir()
    (folder / "other.bin").write_bytes(b"\0")
    (folder / "assets").mkdir(exist_ok=True)
    (folder / "assets" / "summary_plot.png").write_bytes(b"PNG")
    return folder


def check_equal(loaded, model):
    assert isinstance(loaded, ksd.SelfDistiller)
    assert loaded.recipe == model.recipe
    for ours, theirs in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_folder_loads(model, folder):
    loaded = ksd.load_model(folder)
    check_equal(loaded, model)
    assert loaded.compiled


def test_what_is_missing_is_named(folder):
    (folder / "model.weights.h5").unlink()
    with pytest.raises(
        ksd.RefusedFileError, match=r"no model\.weights\.h5.*zipped=Fal"
    ):
        ksd.load_model(folder)


def test_a_folder_is_checked_like_a_file(folder):
    config = json.loads((folder / "config.json").read_text())
    layers = config["config"]["model"]["config"]["layers"]
    layers[-1] |= {"module": "os", "class_name": "system", "registered_name": None}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ksd.RefusedFileError, match="system"):
        ksd.load_model(folder)


@pytest.mark.parametrize("place", ["model", "snapshots/model"])
@pytest.mark.parametrize("name", ["config.json", "assets/a", "assets"])
def test_links_do_not_lead_out(name, place, folder, tmp_path):
    # `snapshots` is also the name of a folder in Hugging Face's cache.
    (tmp_path / "snapshots").mkdir()
    folder = folder.rename(tmp_path / place)
    secret = tmp_path / "secret"
    if name == "assets":
        shutil.rmtree(folder / name)
        secret.mkdir()
        (secret / "file").write_text("{}")
    else:
        (folder / name).unlink(missing_ok=True)
        secret.write_text("{}")
    (folder / name).symlink_to(secret)
    with pytest.raises(ksd.RefusedFileError, match="link that leads out"):
        ksd.load_model(folder)


def test_links_to_folders_are_refused(folder):
    (folder / "assets" / "real").mkdir()
    (folder / "assets" / "link").symlink_to(folder / "assets" / "real")
    with pytest.raises(ksd.RefusedFileError, match="'link' is a link to a folder"):
        ksd.load_model(folder)


def test_a_pipe_in_a_folder_is_not_waited_for(folder):
    os.mkfifo(folder / "assets" / "pipe")
    with pytest.raises(ksd.RefusedFileError, match="Not a regular file"):
        ksd.load_model(folder)


def stand_in(monkeypatch, owner, name, function):
    """Replace a function that needs the network, which takes what the real one does."""
    replaced = mock.create_autospec(getattr(owner, name), side_effect=function)
    monkeypatch.setattr(owner, name, replaced)


class HuggingFace:
    """The network of Hugging Face: a folder, and its cache of links to blobs."""

    def __init__(self, place):
        self.place = place

    def create_repo(self, _, repo_id, *, exist_ok=False):
        from huggingface_hub import RepoUrl

        assert exist_ok
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, _, *, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, self.place / "hub" / repo_id)

    def snapshot_download(self, repo_id, *, allow_patterns):
        cache = self.place / f"models--{repo_id.replace('/', '--')}"
        snapshot = cache / "snapshots" / "0a1b2c"
        hub = self.place / "hub" / repo_id
        from huggingface_hub.utils import filter_repo_objects

        there = [p.relative_to(hub).as_posix() for p in hub.rglob("*") if p.is_file()]
        for i, name in enumerate(
            filter_repo_objects(there, allow_patterns=allow_patterns)
        ):
            blob = cache / "blobs" / str(i)
            blob.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(hub / name, blob)
            link = snapshot / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
        return str(snapshot)


def test_a_wrapper_goes_to_hugging_face_and_back(model, tmp_path, monkeypatch):
    require("huggingface_hub")
    import huggingface_hub

    hub = HuggingFace(tmp_path)
    for name in ("create_repo", "upload_folder"):
        function = getattr(hub, name)
        stand_in(monkeypatch, huggingface_hub.HfApi, name, function)
    stand_in(monkeypatch, huggingface_hub, "snapshot_download", hub.snapshot_download)
    keras.saving.save_model(model, "hf://me/digits")
    assert (tmp_path / "hub/me/digits/README.md").exists()
    (tmp_path / "hub/me/digits/huge.bin").write_bytes(b"\0")
    check_equal(ksd.load_model("hf://me/digits"), model)
    cached = list(tmp_path.glob("models--me--digits/snapshots/*/*"))
    assert sorted(path.name for path in cached if path.is_file()) == [
        "config.json",
        "metadata.json",
        "model.weights.h5",
    ]


def test_a_wrapper_goes_to_kaggle_and_back(model, folder, tmp_path, monkeypatch):
    require("keras_hub")
    import kagglehub
    import keras_hub

    place = tmp_path / "kaggle"
    stand_in(
        monkeypatch,
        kagglehub,
        "model_upload",
        lambda handle, path: shutil.copytree(path, place / handle),
    )
    stand_in(
        monkeypatch, kagglehub, "model_download", lambda handle: str(place / handle)
    )
    handle = "kaggle://me/digits/keras/byot"
    keras_hub.upload_preset(handle, str(folder))
    check_equal(ksd.load_model(handle), model)


@pytest.mark.parametrize("package", ["huggingface_hub", "kagglehub"])
def test_the_package_of_a_hub_is_asked_for(package, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    path = {"huggingface_hub": "hf://a/b", "kagglehub": "kaggle://a/b/keras/c"}[package]
    with pytest.raises(ImportError, match=f"{path}.*pip install {package}"):
        ksd.load_model(path)
    assert not pathlib.Path(path.partition(":")[0] + ":").exists()
