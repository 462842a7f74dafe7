"""What an index would show dead of the long description is found."""

import importlib.util
import re
import runpy
import zipfile

import pytest
import setuptools

from tests.conftest import ROOT

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def check():
    path = ROOT / ".ci" / "check_description.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "dead"),
    [
        ('<a href="docs/models.md">x</a>', ["docs/models.md"]),
        ('<p><img src="docs/accuracy.svg"></p>', ["docs/accuracy.svg"]),
        ('<source srcset="docs/dark.svg">', ["docs/dark.svg"]),
        ('<a href="/docs">x</a> <a href>y</a>', ["/docs", ""]),
        ('<a href="#none">x</a> <h1 id="some">y</h1>', ["#none"]),
        ('<a href="#some">x</a> <h1 id="some">y</h1>', []),
        ('<a href="https://keras.io">x</a> <img src="http://keras.io/a.png">', []),
    ],
)
def test_dead_addresses_are_found(check, page, dead):
    assert check.faults(page) == dead


def test_the_description_has_nothing_of_the_repository(monkeypatch):
    given: dict = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(ROOT / "setup.py")
    text = given["long_description"]
    assert not re.search(r"\]\((?!https?://|#)", text)
    assert "](https://arxiv.org/abs/1905.08094)" in text
    assert "[results](#results)" in text
    assert "stop early" in text  # Of a link, the text.
    assert "Accuracy over multiply-adds" not in text  # A picture,
    assert "draw_accuracy.py" not in text  # and its caption.
    headings = re.findall("^## .*", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(headings) > 8
    assert re.findall("^## .*", text, re.MULTILINE) == headings


def test_the_description_is_read_from_a_wheel(check, tmp_path):
    path = tmp_path / "a-1-py3-none-any.whl"
    metadata = "Name: a\nDescription-Content-Type: text/markdown\n\n# α\n\ntext\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a-1.dist-info/METADATA", metadata)
    assert check.description(path) == "# α\n\ntext\n"
