"""The tutorials' notebooks are those of their scripts, and run as they are stored."""

import copy
import importlib.util
import os
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT, miss, run_python

NAMES = ("digits", "applications", "early_exit", "own_recipe", "byot_table")


@pytest.fixture(scope="module")
def build():
    for package in ("jupytext", "nbclient", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            miss(f"{package} is not installed")
    spec = importlib.util.spec_from_file_location(
        "tutorials_build", ROOT / "tutorials" / "build.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def notebook(build):
    """A notebook of three cells: words alone, words with numbers, and measured ones."""
    cells = [build.nbformat.v4.new_markdown_cell("# Title")]
    for text, tags in (
        ("12 layers", []),
        ("exit_1 right 90.0%  costs 20.0%\nafter  3.1 s, 1.2 MB", ["measured"]),
    ):
        output = build.nbformat.v4.new_output("stream", text=text)
        picture = build.nbformat.v4.new_output(
            "display_data", data={"image/png": "aaaa", "text/plain": "<Figure>"}
        )
        cells.append(
            build.nbformat.v4.new_code_cell(
                f"print({len(tags)})", metadata={"tags": tags}
            )
        )
        cells[-1].outputs = [output, picture]
    return build.nbformat.v4.new_notebook(cells=cells, metadata={"constants": {}})


@pytest.mark.once
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_script_executed(build, name):
    notebook = build.read_notebook(name)
    assert build.TUTORIALS == NAMES
    assert build.cell_differences(notebook, build.read_script(name)) == []
    assert notebook.cells[-1].source.startswith("*The outputs come from: ")
    assert notebook.metadata["constants"] == {}  # What is shown is what ran.
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert kinds <= {"stream", "display_data", "execute_result"}
    size = (ROOT / "tutorials" / f"{name}.ipynb").stat().st_size
    assert size < 250_000


def installing(name):
    """Return the part of a tutorial's first cell that installs the package."""
    text = (ROOT / "tutorials" / f"{name}.py").read_text(encoding="utf-8")
    start, end = text.index("import importlib"), text.index("os.environ.setdefault(")
    return text[start:end]


def write_wheel(folder, version):
    """Write a wheel whose package holds its version alone."""
    folder.mkdir(parents=True, exist_ok=True)
    about = f"keras_selfdistill-{version}.dist-info"
    files = {
        "keras_selfdistill/__init__.py": f"version = {version!r}",
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: keras-selfdistill\n"
        f"Version: {version}\nProvides-Extra: demo\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any",
        f"{about}/RECORD": "",
    }
    path = folder / f"keras_selfdistill-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def write_checkout(folder):
    """Write a checkout whose package holds its version alone."""
    (folder / "keras_selfdistill").mkdir(parents=True)
    (folder / "keras_selfdistill" / "__init__.py").write_text("version = 'checkout'")
    (folder / "setup.py").write_text(
        "import setuptools\nsetuptools.setup(name='keras-selfdistill', version='0', "
        "packages=['keras_selfdistill'], extras_require={'demo': []})"
    )


@pytest.mark.once
@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ("index", "1"),
        ("wheel", "2"),
        ("index before a wheel", "1"),
        ("checkout", "checkout"),
        ("checkout around", "checkout"),
        ("nothing", None),
    ],
)
def test_where_the_first_cell_installs_from(tmp_path, beside, expected):
    assert len({installing(name) for name in NAMES}) == 1
    here = tmp_path / "notebooks"
    here.mkdir()
    index = tmp_path / "index"
    index.mkdir()
    if "index" in beside:
        write_wheel(index, "1")
    if "wheel" in beside:
        write_wheel(here, "0")
        write_wheel(here, "2")
    if beside.startswith("checkout"):
        write_checkout(here.parent if beside.endswith("around") else here / "clone")
    installed = tmp_path / "installed"
    absent = "importlib.util.find_spec = lambda name: None\n"
    result = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            f"import importlib.util\n{absent}{installing('digits')}",
        ],
        cwd=here,
        env={
            **os.environ,
            "PIP_FIND_LINKS": str(index),
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # For pip, "no": the option's name negates.
            "PIP_TARGET": str(installed),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        },
        capture_output=True,
        text=True,
    )
    package = installed / "keras_selfdistill" / "__init__.py"
    if expected is None:
        assert result.returncode
        assert "put its wheel" in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr
        assert not package.exists()
    else:
        assert result.returncode == 0, result.stderr
        assert package.read_text() == f"version = {expected!r}"


@pytest.mark.once
@pytest.mark.parametrize(
    ("cell", "old", "new", "constants", "stale"),
    [
        (1, "12 layers", "12  layers", {}, True),
        (1, "12 layers", "13 layers", {}, True),
        (2, "3.1 s", "250.75 s", {}, False),
        (2, "1.2 MB", "980 kB", {}, False),
        (2, "90.0%", "82.5%", {}, False),
        (2, "90.0%", "74.5%", {}, True),
        (2, "90.0%", "9.5%", {"EPOCHS": 1}, False),
        (2, "20.0%", "45.0%", {}, True),
        (2, "right", "wrong", {"EPOCHS": 1}, True),
        (2, "after  3.1 s", "3.1 s", {}, True),
    ],
)
def test_what_a_stale_output_is(build, notebook, cell, old, new, constants, stale):
    fresh = copy.deepcopy(notebook)
    assert build.differences(notebook, fresh) == []
    text = fresh.cells[cell].outputs[0].text
    assert old in text
    fresh.cells[cell].outputs[0].text = text.replace(old, new)
    fresh.metadata["constants"] = constants
    assert bool(build.differences(notebook, fresh)) is stale


@pytest.mark.once
def test_pictures_are_counted_and_cells_compared(build, notebook):
    fresh = copy.deepcopy(notebook)
    fresh.cells[1].outputs[1].data["image/png"] = "bbbb"
    assert build.differences(notebook, fresh) == []
    del fresh.cells[1].outputs[1]
    assert "pictures" in build.differences(notebook, fresh)[-1]
    fresh = copy.deepcopy(notebook)
    fresh.cells[0].source = "# Other title"
    assert "cell 0 is not the script's" in build.differences(notebook, fresh)[0]
    fresh.cells.append(build.nbformat.v4.new_markdown_cell("more"))
    assert build.differences(notebook, fresh) == ["3 cells, but the script has 4"]


@pytest.mark.once
def test_a_table_is_compared_by_its_cells(build, notebook):
    notebooks = []
    for page in ("<td>exit_1</td>", "<b>exit_1</b>", "<td>exit_2</td>"):
        data = {"text/html": page, "text/plain": "Report"}
        notebooks.append(copy.deepcopy(notebook))
        outputs = notebooks[-1].cells[1].outputs
        outputs.append(build.nbformat.v4.new_output("display_data", data))
    assert build.differences(notebooks[0], notebooks[1]) == []
    assert "exit_2" in build.differences(notebooks[0], notebooks[2])[0]


@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "backend"),
    [*((name, "tensorflow") for name in NAMES), ("own_recipe", "jax")],
)
def test_a_tutorial_runs_as_stored(build, name, backend):
    reads_images = "tfds.load" in (ROOT / "tutorials" / f"{name}.py").read_text()
    if reads_images and "TFDS_DATA_DIR" not in build.environment():
        miss("CIFAR-100 is not here: set CIFAR100_DIR")
    result = run_python(
        ROOT / "tutorials" / "build.py",
        "--check",
        "--small",
        f"--only={name}",
        backend=backend,
    )
    assert f"{name}: up to date" in result.stdout


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # Jupyter's own, of sockets and event loops.
def test_constants_errors_and_stale_outputs_of_a_script(build, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    cells = ['# %% small={"N": 2}\nN = 5', "# %%\nprint('n', N)"]
    (tmp_path / "script.py").write_text("\n\n".join(cells))
    full = build.execute("script", small=False)
    assert [output.text for output in full.cells[1].outputs] == ["n 5\n"]
    small = build.execute("script", small=True)
    assert "`N = 2`" in small.cells[-1].source
    (stale, *_) = build.differences(full, small)
    assert stale == "cell 1 prints 'n 2', in the notebook 'n 5'"
    (tmp_path / "script.py").write_text("\n\n".join([*cells, "# %%\n1 / (N - 2)"]))
    error = build.nbclient.exceptions.CellExecutionError
    with pytest.raises(error, match="ZeroDivisionError"):
        build.execute("script", small=True)
