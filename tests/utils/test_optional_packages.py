"""Packages of the extras are imported where they are needed, not before."""

import subprocess
import sys

import pytest

from keras_selfdistill.utils.optional_packages import optional_module

# Keras itself imports matplotlib and huggingface_hub where they are installed.
OPTIONAL = {"kagglehub", "keras_hub", "keras_tuner", "mlflow", "ray", "wandb"}
PRINT_IMPORTED = "import sys, keras_selfdistill; print(*sys.modules)"


@pytest.mark.process
def test_the_library_imports_no_package_of_an_extra():
    command = [sys.executable, "-c", PRINT_IMPORTED]
    imported = subprocess.run(command, check=True, capture_output=True, text=True)
    names = set(imported.stdout.split())
    assert "keras_selfdistill.callbacks.trackers" in names
    assert not names & OPTIONAL


def test_errors_of_a_package_that_is_installed_are_its_own(tmp_path, monkeypatch):
    (tmp_path / "ksd_broken.py").write_text("import ksd_missing")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="named 'ksd_missing'"):
        optional_module("ksd_broken", "This")
    with pytest.raises(ImportError, match="This needs the package ksd_missing"):
        optional_module("ksd_missing.part", "This")
