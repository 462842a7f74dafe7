"""Versions: what is too old says so, and `setup.py` says what is old enough."""

import re

import pytest

from keras_selfdistill import _keras_version
from tests import floors
from tests.conftest import ROOT, run_python

pytestmark = pytest.mark.once


@pytest.mark.process
def test_an_older_keras_gives_one_clear_error(tmp_path):
    (tmp_path / "keras").mkdir()
    stub = '__version__ = "3.14.0"\n'  # All that there is of it: nothing else is read.
    (tmp_path / "keras" / "__init__.py").write_text(stub)
    code = "import keras_selfdistill"
    found = run_python("-c", code, check=False, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert found.returncode == 1
    *_, last = found.stderr.strip().splitlines()
    expected = "ImportError: keras_selfdistill needs Keras 3.15.1 or newer: "
    assert last.startswith(expected)
    assert f"Received: Keras 3.14.0 at {tmp_path}" in last
    assert "During handling" not in found.stderr


@pytest.mark.parametrize("version", ["3.15.0", "3.9.2", "2.99.9", "3.15"])
def test_older_versions_are_refused(version):
    with pytest.raises(ImportError, match=re.escape(version)):
        _keras_version.check_version(version)


@pytest.mark.parametrize("version", ["3.15.1", "3.15.2", "3.16.0.dev1", "4.0.0rc1"])
def test_newer_versions_are_not(version):
    _keras_version.check_version(version)


def test_floors_are_those_of_setup_and_of_the_check():
    pinned = floors.pinned()
    assert "keras==" + ".".join(map(str, _keras_version.OLDEST)) in pinned
    names = {each.split("==")[0] for each in pinned}
    assert names >= {"numpy", "absl-py", "h5py", "tensorflow", "jax", "pytest"}
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", each) for each in pinned)
    # PyTorch's floor is the version on which the whole suite runs.
    versions = dict(
        re.findall(r'"torch([>=]=)([0-9.]+)"', (ROOT / "setup.py").read_text())
    )
    assert versions["=="] == versions[">="] + ".0"
