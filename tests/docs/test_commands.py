"""Every command that the documents show runs as it stands, made small by flags behind.

The commands are found by reading: blocks and inline code of README and docs, and the
docstrings of scripts and tests. A new one must be made small here, or be named with the
test that runs it.
"""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import zlib

import keras
import pytest

import keras_selfdistill as ksd
from tests.conftest import ROOT
from tests.docs.test_documents import check_command
from tests.examples.test_cifar100 import write_fake
from tests.examples.test_examples import NATIVE_NOISE
from tests.examples.test_images_parts import make_folder

pytestmark = [pytest.mark.once, pytest.mark.process]

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**/*.md")
SCRIPTS = ("benchmarks/**/*.py", "docs/*.py", "examples/**/*.py", "tutorials/*.py")
MODULES = ("keras_selfdistill/**/*.py", "tests/**/*.py")

# What makes a command small; behind its own flags, the last of a name counts.
SMALL = {
    "benchmarks/accuracy.py": "--preset=smoke --seeds=0 --methods=byot",
    "benchmarks/artifacts.py": "--width_multiplier=0.125 --taps=1 --repeats=1",
    "benchmarks/early_exit.py": "--width_multiplier=0.125 --rounds=1 --batch_sizes=4 "
    "--images=8",
    "benchmarks/serving.py": "--smoke",
    "benchmarks/step_cost.py": "--width_multiplier=0.125 --image_size=8 "
    "--batch_size=4 --taps=1 --recipes=byot",
    "benchmarks/train_step.py": "--width_multiplier=0.125 --batch_size=4 "
    "--rounds=7 --steps=1 --memory=false",
    "benchmarks/wrap_all.py": "--models=MobileNet --image_size=32 "
    "--step_image_size=32 --rounds=1",
    "docs/draw_accuracy.py": "",
    "docs/draw_badges.py": "",
    "docs/draw_concepts.py": "",
    "docs/draw_exits.py": "",
    "examples/analysis.py": "--train_examples=100 --width_multiplier=0.125 --epochs=1 "
    "--images=50 --noise=0,0.02 --noise_repeats=1",
    "examples/compress.py": "--train_examples=100 --epochs=1 --fine_tune_epochs=1 "
    "--repeats=1",
    "examples/rounds.py": "--train_examples=100 --width_multiplier=0.125 --epochs=1 "
    "--rounds=1",
    "examples/train_cifar100.py": "--train_examples=100 --width_multiplier=0.125 "
    "--epochs=1",
    "examples/train_images.py": "--data_dir=photos --model=resnet18 --weights=none "
    "--width_multiplier=0.125 --image_size=8 --taps=1 --head_epochs=1 --epochs=1 "
    "--batch_size=8",
    "examples/train_distributed.py": "--epochs=1 --train_examples=64",
    "examples/tune.py": "--train_examples=100 --width_multiplier=0.125 --epochs=1 "
    "--trials=1",
    "examples/write_shards.py": "--data_dir=photos",
    "tests.fuzz": "--mutations=9",
    "tests.mutants": "taps --sample=1",
    "tests.training.nonfinite_probe": "",
}

# What is run elsewhere, as it stands or with arguments in the place of words in
# capitals: by CI, or by the test of this name.
ELSEWHERE = {
    "benchmarks/accuracy_time.py": "tests/benchmarks/test_accuracy_benchmark.py",
    "examples/quickstart.py": ".ci/run",
    "examples/serve.py": "tests/examples/test_serve.py",  # Until it is stopped.
    "pip": ".ci/run",
    "pytest": ".ci/run",
    "section_runner.py": "tests/early_exit/test_export.py",
    "venv": ".ci/run",
    "tests.floors": ".ci/run",
    "tests.integration.backend_probe": "tests/integration/test_backends.py",
    "tests.callbacks.devices_resume_probe": "tests/callbacks/test_resume.py",
    "tests.integration.distributed_probe": "tests/integration/test_distribution.py",
    "tests.integration.processes_probe": "tests/integration/test_distribution.py",
    "tests.costs.flop_probe": "tests/costs/test_counting.py",
    "tests.integration.long_run_probe": "tests/integration/test_long_runs.py",
    "tests.callbacks.resume_probe": "tests/callbacks/test_resume.py",
    "tutorials/build.py": "tests/docs/test_tutorials.py",
}
OF_TWO_MACHINES = "--engine=multi_worker"  # Begins with the machines' addresses.
# The first command of a script runs on the backend of the tests, the others on PyTorch,
# where a small network trains in the shortest time.
FIRST, OTHERS = keras.backend.backend(), "torch"
PROMPT = r"(?:\w+=\S+ )*python (?:-m )?[\w./]+"


def docstrings(source):
    """Yield the docstring of a module and of all in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            yield ast.get_docstring(node) or ""


def lines_of(path):
    """Yield what a document or a script shows as code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        yield from re.findall(r"(?<!`)`([^`]+)`(?!`)", text)
        return
    for found in docstrings(text):
        yield re.sub(r"`([^`]+)`", r"\n\1\n", found)


def found_commands():
    """Return every command that begins Python, by the place where it is first shown."""
    found = {}
    for pattern in (*DOCUMENTS, *SCRIPTS, *MODULES):
        for path in sorted(ROOT.glob(pattern)):
            for text in lines_of(path):
                for line in re.sub(r"\\\n\s*", " ", text).splitlines():
                    for part in line.split("&&"):
                        command = " ".join(part.split("  #")[0].split())
                        if re.match(PROMPT, command):
                            found.setdefault(command, path.relative_to(ROOT))
    return found


def program(command):
    """Return the script or the module that a command runs."""
    return re.match(r"(?:\w+=\S+ )*python (?:-m )?([\w./]+)", command)[1]


def made_small(command):
    """Return the variables and the words of a command, its small flags behind."""
    words = shlex.split(command) + SMALL[program(command)].split()
    start = words.index("python")
    return words[:start], words[start + 1 :]


def distinct(commands):
    """Return commands without those that are others once they are small."""
    found = {}
    for command in commands:
        variables, words = made_small(command)
        flags = {word.split("=")[0]: word for word in words}  # The last one counts.
        found.setdefault((*variables, *sorted(flags.values())), command)
    return list(found.values())


FOUND = found_commands()
RUN = distinct(
    command
    for command in FOUND
    if program(command) not in ELSEWHERE and OF_TWO_MACHINES not in command
)


def backend_of(command):
    """Return the backend of a command that does not choose one itself."""
    first = next(each for each in RUN if program(each) == program(command))
    # Cells of the accuracy benchmark are kept with the backend that made them.
    kept = program(command) == "benchmarks/accuracy.py"
    return FIRST if kept or command == first else OTHERS


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A copy of the repository, with fake images and networks where commands look."""
    home = tmp_path_factory.mktemp("commands")
    root = home / "repository"
    for name in ("benchmarks", "docs", "examples", "keras_selfdistill", "tests"):
        shutil.copytree(
            ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("LICENSE", "setup.py"):
        shutil.copy(ROOT / name, root / name)
    (home / "tensorflow_datasets").mkdir()
    write_fake(home / "tensorflow_datasets", train_per_class=3)
    make_folder(root / "photos")
    base = ksd.networks.resnet18(width_multiplier=0.125)
    wrapper = ksd.SelfDistiller(base, 3, "byot")
    for name, model in {
        "byot/checkpoint": wrapper,
        "three_epochs/checkpoint": wrapper,
        "analysis/distilled": wrapper,
        "analysis/plain": wrapper.final_model(),
    }.items():
        (root / "runs" / name).parent.mkdir(parents=True, exist_ok=True)
        model.save(root / "runs" / f"{name}.keras")
    return root


@pytest.mark.long
@pytest.mark.parametrize("command", RUN)
def test_a_command_runs(workshop, command):
    variables, words = made_small(command)
    home = workshop.parent  # Where ~/tensorflow_datasets is.
    words = [re.sub(r"^~", str(home), word) for word in words]  # As a shell does.
    if program(command).startswith("examples/"):
        words.append(f"--output_dir=runs/{zlib.crc32(command.encode())}")
    example = program(command).startswith("examples/")
    inherited = dict(os.environ)
    if example:  # It keeps native code quiet by itself, until its first own line.
        inherited.pop("TF_CPP_MIN_LOG_LEVEL", None)
        inherited["PYTHONUNBUFFERED"] = "1"
    environment = {
        **inherited,
        "KERAS_BACKEND": backend_of(command),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(workshop),
        "HOME": str(home),
        **dict(each.split("=", 1) for each in variables),
    }
    result = subprocess.run(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=workshop,
        env=environment,
    )
    assert result.returncode == 0, f"{FOUND[command]}\n{result.stdout}"
    if example:
        assert not re.search(NATIVE_NOISE, result.stdout.splitlines()[0])
    assert not re.search(r"\bnan\b", result.stdout, re.IGNORECASE)


def test_every_command_is_made_small_or_run_elsewhere():
    programs = {program(command) for command in FOUND}
    assert programs == SMALL.keys() | ELSEWHERE.keys()
    assert len(RUN) >= 20
    examples = {f"examples/{path.name}" for path in ROOT.glob("examples/*.py")}
    run_here = {program(command) for command in RUN}
    in_own_test = {"examples/quickstart.py", "examples/serve.py"}
    assert examples - run_here == in_own_test
    for name, place in ELSEWHERE.items():
        words = re.split(r"[./]", name.removesuffix(".py"))
        assert words[-1] in (ROOT / place).read_text(), name


def test_other_programs_are_run_by_ci():
    content = (ROOT / ".ci/run").read_text()
    blocks = [
        block
        for pattern in DOCUMENTS
        for path in ROOT.glob(pattern)
        for block in re.findall(r"^```bash\n(.*?)^```$", path.read_text(), re.M | re.S)
    ]
    lines = re.sub(r"\\\n\s*", " ", "\n".join(blocks))
    parts = {part.strip() for line in lines.splitlines() for part in line.split("&&")}
    others = {part for part in parts if part and not re.match(PROMPT, part)}
    served = {". .venv/bin/activate", "mkdocs serve"}  # CI has another, and builds.
    assert others >= served
    for command in others - served:
        assert re.search(rf"^{re.escape(command)}$", content, re.M), command


@pytest.mark.parametrize("script", [name for name in SMALL if name.endswith(".py")])
def test_the_flags_that_make_commands_small_exist(script):
    check_command(["python", script, *SMALL[script].split()])
