"""What the documents show can be run."""

import contextlib
import io
import itertools
import json
import re
import shlex
import statistics

import keras
import pytest

import keras_selfdistill as ksd
from tests.conftest import ROOT, require_backend

pytestmark = pytest.mark.once

START = "docs/index.md"
PAGES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))
TOOLS = {"mkdocs", "mypy", "ruff"}
MODULES = {"pip", "pytest", "venv"}


def fences(name):
    """Yield (language, text, number of lines before it) of a document's code blocks."""
    document = (ROOT / name).read_text(encoding="utf-8")
    pattern = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
    for found in pattern.finditer(document):
        yield *found.groups(), document.count("\n", 0, found.start(2))


def code_blocks(name, language):
    return [text for each, text, _ in fences(name) if each == language]


def run_page(name, names):
    """Run Python blocks in order; a block of text is what the one before printed."""
    printed = ""
    for language, text, lines in fences(name):
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile("\n" * lines + text, ROOT / name, "exec"), names)
            printed = output.getvalue()
        elif language == "text":
            assert printed == text


def test_a_users_own_recipe_and_head(base, batch, tmp_path):
    names: dict = {}
    exec("\n".join(code_blocks("CONTRIBUTING.md", "python")), names)
    model = ksd.SelfDistiller(
        base, ["out_1"], names["SoftTargetsOnly"](), head=names["MaxPooled"]()
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    history = model.fit(*batch, verbose=0).history
    terms = {"loss", "label_loss", "soft_target_loss"}
    assert set(history) == {*terms, "nonfinite_steps"}
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.recipe == names["SoftTargetsOnly"](temperature=4.0)
    assert "exit_1_max" in {layer.name for layer in loaded.layers}


# How far a training on another machine may be from what is shown: percentage points,
# nats, and a share of the file size. What does not depend on training is the same.
FREEDOM = {"accuracy": 5, "top-5": 3, "loss": 0.15, "ECE": 4, "agrees": 8}


def table_of(text):
    """Return a printed table by row and column, with the lines before and after it.

    Each column ends where its heading ends.
    """
    cell = re.compile(r"\S+(?: \S+)*")
    before, table, after = text.strip("\n").split("\n\n")
    heading, *lines = table.splitlines()
    ends = [found.end() for found in cell.finditer(heading)]
    rows = {}
    for line in lines:
        name, *values = cell.finditer(line)
        assert name.start() == 0
        assert [value.end() for value in values] == ends, line
        rows[name[0]] = dict(
            zip(cell.findall(heading), (value[0] for value in values), strict=True)
        )
    return rows, (before, re.sub("[CG]PU:", "", after))


def compare_reports(printed, shown):
    rows, words = table_of(printed)
    expected, expected_words = table_of(shown)
    assert words == expected_words
    assert list(rows) == list(expected)
    for name, row in rows.items():
        assert list(row) == list(expected[name])
        for column, text in row.items():
            wanted = expected[name][column]
            unit = re.sub(r"[\d.]+", "", wanted)
            if column == "ms" or column in FREEDOM or column == "size":
                assert re.sub(r"[\d.]+", "", text) == unit, (name, column)
                value, other = (float(t.strip(" %kMB")) for t in (text, wanted))
                limit = FREEDOM.get(column, 0.05 * other)
                assert column == "ms" or abs(value - other) <= limit, (name, column)
                assert value > 0
            else:
                assert text == wanted, (name, column)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("92.85%", "92.15%"), None),
        (("92.85%", "12.85%"), "'exit_1', 'accuracy'"),
        (("0.1510", "0.4510"), "'ensemble', 'loss'"),
        (("90.8 k", "90.9 k"), "'exit_2', 'MACs'"),
        (("7.63 k", "7.64 k"), "'exit_2', 'params'"),
        (("94.23%  99", "94.23%   99"), "final "),
        (("exit_2      ", "exit_3      "), "exit_3"),
        (("797 samples", "800 samples"), "800"),
        (("  0.29  ", "  0.99  "), None),
    ],
)
def test_reports_are_compared_by_their_numbers(change, message):
    (shown,) = code_blocks("README.md", "text")
    assert change[0] in shown
    printed = shown.replace(*change)
    if message is None:
        compare_reports(printed, shown)
    else:
        with pytest.raises(AssertionError, match=message):
            compare_reports(printed, shown)


@pytest.mark.long
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="what it shows ran on TensorFlow, which alone writes LiteRT",
)
@pytest.mark.filterwarnings("ignore")  # Exporters warn of their own workings.
def test_the_readme_example(tmp_path, monkeypatch):
    """As written; its numbers may differ from one machine to another, its form not."""
    require_backend("sklearn")
    require_backend("ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter

    code, early_exit = code_blocks("README.md", "python")
    (shown,) = code_blocks("README.md", "text")
    monkeypatch.chdir(tmp_path)
    keras.utils.clear_session()  # The name of the model is that of the first.
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(code, names)
    compare_reports(output.getvalue(), shown)
    loaded = keras.saving.load_model(tmp_path / "smaller.keras")
    assert loaded.output_shape == (None, 10)
    exec(early_exit, names)
    classify = Interpreter("fast.tflite").get_signature_runner()
    number = int(classify(input=names["x_test"][:1])["exit"][0])
    assert names["fast"].exit_names[number] == names["result"].exits[0]


def test_the_badges_are_those_of_setup(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import draw_badges

    for name, content in draw_badges.badges().items():
        assert (ROOT / "docs" / name).read_text() == content
        assert f"](docs/{name})" in (ROOT / "README.md").read_text()


def test_pictures_have_no_background_and_turn_on_dark_pages(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import draw_concepts
    from dark_mode import STYLE, with_dark_mode

    pictures = [
        path for path in ROOT.glob("docs/*.svg") if not path.stem.startswith("badge_")
    ]
    assert len(pictures) == 4
    for path in pictures:
        picture = path.read_text(encoding="utf-8")
        assert with_dark_mode(picture.replace(STYLE, "")) == picture
    for name in ("teachers", "early_exit"):
        assert (ROOT / f"docs/{name}.svg").read_text() == getattr(draw_concepts, name)()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) < 1000  # As `wc -w` counts.


def test_the_citations_of_the_readme_and_of_its_file_agree():
    (entry,) = code_blocks("README.md", "bibtex")
    fields = dict(re.findall(r"(\w+)=\{(.*)\},\n", entry.replace("\\_", "_")))
    cited = (ROOT / "CITATION.cff").read_text()
    assert set(fields) == {"author", "title", "version", "year"}
    assert f"authors:\n  - name: {fields['author'].strip('{}')}\n" in cited
    assert f'title: "{fields["title"]}"\n' in cited
    assert f"version: {fields['version']}\n" in cited
    assert fields["version"] == ksd.__version__


def test_ci_runs_the_commands_of_the_readme():
    commands = "\n".join(code_blocks("README.md", "bash")).splitlines()
    script = (ROOT / ".ci" / "run").read_text().replace("\\", "")
    for command in (
        'python -m pip install -e ".[test]" && python -m pytest',
        'python -m pip install -e ".[demo]" && python examples/quickstart.py',
    ):
        assert command in commands
        assert f"'{command}' README.md" in script


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Folder and names that the start page leaves: all other pages go on from it."""
    folder, names = tmp_path_factory.mktemp("start"), {}
    with contextlib.chdir(folder):
        run_page(START, names)
    return folder, names


@pytest.mark.long
# KerasTuner 1.4.8 names threads by methods that Python deprecates, and loads weights
# of any model before its optimizer is built.
@pytest.mark.filterwarnings("ignore:(currentThread|getName):DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
# tf2onnx asks for `np.object`.
@pytest.mark.filterwarnings("ignore:In the future .np.object:FutureWarning")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != START and code_blocks(page, "python")]
)
def test_a_page_runs(start, page):
    folder, names = start
    with contextlib.chdir(folder):
        run_page(page, dict(names))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", *PAGES])
def test_scripts_and_flags_exist(name):
    document = (ROOT / name).read_text()
    for path in re.findall(
        r"\b(?<!/)(?:benchmarks|docs|examples|tests)(?:/\w+)*/\w+\.\w+", document
    ):
        assert (ROOT / path).exists(), path
    blocks = "".join(code_blocks(name, "bash")).replace("\\\n", " ").splitlines()
    inline = re.findall(r"(?<!`)`(python [^`]+)`", document)
    for line in [*blocks, *inline]:
        for command in line.split("&&"):
            check_command(shlex.split(command))


def source_of_flags(script):
    """Return the source of a script and of the flags that it shares with others."""
    source = script.read_text()
    shared = (ROOT / "examples" / "shared" / "image_flags.py").read_text()
    functions = re.findall(r"def (\w+)\((.*?)(?=\n\n\n|\Z)", shared, re.DOTALL)
    bodies = [body for name, body in functions if f"image_flags.{name}(" in source]
    return "".join([source, *bodies])


def check_command(words):
    """Look whether the file, flags or extras that a command names are there."""
    words = [*itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words)]
    program, first, *others = [*words, ""]
    if program == "python" and first.endswith(".py"):
        source = source_of_flags(ROOT / first)
        for flag in re.findall(r"(?:^| )--(\w+)", " ".join(others)):
            assert re.search(rf'DEFINE_\w+\(\s*"{flag}"', source), f"{first} --{flag}"
    elif program in ("bash", "."):
        assert first.startswith(".venv") or (ROOT / first).exists(), first
    elif program == "python":
        assert first == "-m"
        module = others[0].split(".")
        assert others[0] in MODULES or list(ROOT.glob(f"{'/'.join(module)}*")), others
        for extra in re.findall(r"\.\[(\w+)\]", " ".join(others)):
            assert f'"{extra}": ' in (ROOT / "setup.py").read_text(), extra
    else:
        assert program in TOOLS, program


def test_the_picture_shows_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import draw_accuracy

    points = draw_accuracy.points()
    shown = draw_accuracy.described(points)
    picture = (ROOT / "docs" / "accuracy.svg").read_text()
    assert f">{shown}<" in picture
    readme = (ROOT / "README.md").read_text()
    described = re.search(r"!\[Accuracy over multiply-adds: (.*?)\]", readme)[1]
    assert f"exit 2 at {100 * points['exit_2'][0]:.0f}% of the multiply-adds" in readme
    final, plain, ensemble = (
        f"{100 * points.pop(name)[1]:.1f}%"
        for name in ("final", "trained plainly", "ensemble")
    )
    exits = [
        f"{100 * right:.1f}% at {100 * cost:.0f}%" for cost, right in points.values()
    ]
    assert described == (
        f"{', '.join(exits)}; {final} at the end, where plain training gives {plain}; "
        f"ensemble {ensemble}"
    )


def accuracies(preset, method):
    """Return the accuracies over a method's seeds, in per cent, by exit."""
    folder = ROOT / "benchmarks" / "results" / preset
    runs = [
        json.loads(path.read_text())["test_accuracy"]
        for path in sorted(folder.glob(f"{method}-seed*.json"))
    ]
    return {name: [100 * run[name] for run in runs] for name in runs[0]}


def cell(values):
    """Return a cell of the README's table: mean, and deviation over seeds."""
    spread = f"±{statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def test_the_results_of_the_readme_are_those_of_the_files():
    readme = (ROOT / "README.md").read_text()
    section = readme.split("## Results")[1].split("## What you get")[0]
    lines = [line.split(" | ") for line in section.splitlines() if " | " in line]
    heading, *rows = lines
    assert heading == ["trained by", "deployed base", "exit 2", "ensemble"]
    columns = ("final", "exit_2", "ensemble")
    methods = (
        "plain",
        "deep_supervision_separable",
        "separable_byot",
        "rotation_exits",
    )
    for (_, *cells), method in zip(rows[:4], methods, strict=True):
        found = accuracies("cpu", method)
        known = [cell(found[name]) if name in found else "–" for name in columns]
        assert cells == known, method
    byot, labels = (accuracies("paper", m) for m in ("byot", "deep_supervision"))
    plain = accuracies("cpu", "plain")["final"][:1]  # With the seed of rotations.
    assert f"(plain {cell(plain)})" in rows[3][0]
    assert rows[4][1:] == [
        f"{cell(byot[name])} ({cell(labels[name])})" for name in columns
    ]
    prose = " ".join(section.split())
    (seeds,) = {len(values) for values in [*byot.values(), *labels.values()]}
    assert seeds == 1
    first = f"{cell(byot['exit_1'])}, labels {cell(labels['exit_1'])}"
    assert f"(row 5, exit 1: {first})" in prose
    table = (ROOT / "benchmarks" / "results" / "paper.md").read_text()
    final, plain = re.search(r"the paper gives (\S+) \(plain (\S+)\)", prose).groups()
    assert f"/ {final}, ensemble" in table
    assert f"(plain {plain})" in table


def test_the_speed_of_the_readme_is_that_of_the_benchmarks():
    readme = " ".join((ROOT / "README.md").read_text().split())
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    steps = [
        float(each)
        for each in re.findall(r"^\| `--backend=\w+` \| (1\.\d\d) ", page, re.M)
    ]
    of_one = [
        float(each)
        for each in re.findall(r"^\| `--backend=\w+` \| 1 \| \S+ \| (\S+) ", page, re.M)
    ]
    assert len(steps) == len(of_one) == 3
    (on_card,) = re.findall(r"^\| JAX .* ms \| (1\.\d\d) ", page, re.M)
    assert (
        f"takes {min(steps)} to {max(steps)} times the base's on a CPU, {on_card} on an"
    ) in readme
    assert (
        f"early exit is {min(of_one)} to {max(of_one)} times as fast as the base for "
        "one image at a time"
    ) in readme


def test_every_library_that_is_compared_has_its_migration():
    readme = (ROOT / "README.md").read_text()
    section = readme.split("## Compared with")[1].split("## Documentation")[0]
    names = [line.split(" | ")[0] for line in section.splitlines() if " | " in line]
    pages = (ROOT / "docs" / "migration.md").read_text()
    headings = " ".join(re.findall(r"^## (.*)$", pages, re.M))
    assert names[1:] == [
        "this one",
        "`keras.distillation` (Keras 3.15)",
        "several outputs in plain Keras",
        "torchdistill",
        "the papers' code",
    ]
    for name in ("keras.distillation", "several outputs", "torchdistill"):
        assert name in headings


def test_the_citation_names_the_version_and_every_paper():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", citation, re.M)[1] == ksd.__version__
    assert f"version={{{ksd.__version__}}}" in (ROOT / "README.md").read_text()
    papers = (
        "Be Your Own Teacher",
        "Towards Efficient and Compact Neural Networks",
        "Student Helping Teacher",
        "Deeply-Supervised Nets",
    )
    references = re.findall(r'^    title: "(.*)"$', citation, re.M)
    assert len(references) == len(papers)
    for paper, title in zip(papers, references, strict=True):
        assert paper in title


def test_every_public_name_has_its_place_in_the_api():
    pages = "\n".join(path.read_text() for path in ROOT.glob("docs/api/*.md"))
    shown = re.findall(r"^::: keras_selfdistill\.(\w+)$", pages, flags=re.MULTILINE)
    assert sorted(shown) == sorted(ksd.__all__)


def test_every_callback_picture_and_analysis_is_named_at_a_glance():
    page = (ROOT / "docs" / "api" / "index.md").read_text()
    modules = (ksd.callbacks, ksd.visualization, ksd.analysis)
    results = {"Features", "FlatMinima", "Gradients", "PredictionComparison"}
    names = {name for module in modules for name in module.__all__} - results
    assert names
    for name in names | set(ksd.__all__):
        assert re.search(rf"\b{name}\b", page), name


@pytest.mark.long
def test_survivors_are_changes_that_the_command_makes():
    from tests import mutants

    survivors = json.loads(mutants.SURVIVORS.read_text())
    assert list(survivors) == list(mutants.TESTS)
    for name, reasons in survivors.items():
        made = {change for _, change, _ in mutants.all_mutants(name)}
        assert set(reasons) <= made
