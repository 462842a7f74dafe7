"""The files of an example's run: whole or not there, and of one set of flags."""

import json

import pytest
from absl import app

from shared import run_folder
from tests.conftest import small_base

pytestmark = pytest.mark.once


def test_a_model_is_whole_or_not_there(tmp_path, monkeypatch):
    model = small_base()
    path = tmp_path / "model.keras"
    run_folder.save(model, path)
    before = path.read_bytes()

    def torn(source):
        source.write_bytes(b"half of")
        raise OSError("no space left")

    monkeypatch.setattr(model, "save", torn)
    with pytest.raises(OSError, match="no space"):
        run_folder.save(model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_only_files_are_replaced(tmp_path):
    victim, link = tmp_path / "victim.txt", tmp_path / "run" / "flags.json"
    victim.write_text("kept")
    link.parent.mkdir()
    link.symlink_to(victim)
    (link.parent / ".unfinished_flags.json").symlink_to(victim)
    with pytest.raises(FileExistsError, match="a link"):
        run_folder.write_json(link, {})
    link.unlink()
    run_folder.write_json(link, {"seed": 0})
    assert json.loads(link.read_text()) == {"seed": 0}
    assert victim.read_text() == "kept"


def test_a_run_goes_on_with_the_settings_it_was_begun_with(tmp_path):
    def begin(**settings):
        return run_folder.begin(tmp_path / "run", settings, kept="kept")

    def begun():
        return json.loads((tmp_path / "run" / "flags.json").read_text())

    folder = begin(epochs=3, seed=0)
    assert begin(epochs=5, seed=0) == folder  # nothing is there yet
    (folder / "kept").touch()
    begin(epochs=5, seed=0)
    with pytest.raises(
        app.UsageError, match=r"^Received backend=jax \(was None\), seed=1 \(was 0\); e"
    ):
        begin(epochs=5, seed=1, backend="jax")
    assert begun() == {"epochs": 5, "seed": 0}
