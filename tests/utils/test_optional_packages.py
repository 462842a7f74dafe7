"""Packages of the extras are imported where they are needed, not before."""

import subprocess
import sys

import pytest

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
