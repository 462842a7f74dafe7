"""The examples run as a newcomer would run them, at tiny size."""

import re

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from tests.conftest import ROOT, require_backend, run_python
from tests.docs.test_documents import source_of_flags

pytestmark = pytest.mark.process

# Lines of TensorFlow's, XLA's and CUDA's own logs, before absl's log is set up, too.
NATIVE_NOISE = r"(?im)oneDNN|cuda|absl::|^[IWEF]0000|\.cc:\d+\]"


def test_native_noise_is_known():
    """What the import of TensorFlow prints where nobody keeps it quiet."""
    require_backend("tensorflow")
    result = run_python("-c", "import tensorflow", TF_CPP_MIN_LOG_LEVEL=None)
    assert re.search(NATIVE_NOISE, result.stderr)


@pytest.mark.long
def test_quickstart(tmp_path):
    result = run_python(
        ROOT / "examples" / "quickstart.py",
        "--epochs=2",
        f"--output_dir={tmp_path}",
        TF_CPP_MIN_LOG_LEVEL=None,  # The example itself keeps native code quiet.
    )
    assert result.stdout.startswith("Training the plain base")
    assert not re.search(NATIVE_NOISE, result.stderr)
    title = result.stdout.index("multiclass, 899 samples")
    _, _, headings, *table = result.stdout[title:].splitlines()
    columns = re.split(r"\s{2,}", headings)
    cells = [re.split(r"\s{2,}", line) for line in table[:5]]
    rows = {line[0]: dict(zip(columns, line, strict=True)) for line in cells}
    assert list(rows) == ["plain base", "exit_1", "exit_2", "final", "ensemble"]
    for name in ("plain base", "final"):
        assert (rows[name]["params"], rows[name]["MACs ratio"]) == ("24.3 k", "100.0%")
    shares = [float(rows[f"exit_{i}"]["MACs ratio"].rstrip("%")) for i in (1, 2)]
    assert 0 < shares[0] < shares[1] < 100
    for row in rows.values():
        assert 10 < float(row["accuracy"].rstrip("%")) <= 100
    assert (tmp_path / "accuracy_vs_compute.png").read_bytes()[:4] == b"\x89PNG"
    model = keras.saving.load_model(tmp_path / "selfdistilled.keras")
    assert isinstance(model, ksd.SelfDistiller)
    images = np.zeros((2, 8, 8, 1), "float32")
    assert list(model.predict(images, verbose=0)) == ["exit_1", "exit_2", "final"]


@pytest.mark.parametrize(
    "script",
    [
        "quickstart",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in (
                "train_cifar100",
                "compress",
                "rounds",
                "analysis",
                "train_distributed",
            )
        ),
    ],
)
def test_help_explains_every_flag(script):
    result = run_python(ROOT / "examples" / f"{script}.py", "--help", check=False)
    text = result.stdout + result.stderr
    assert "--output_dir" in text
    source = source_of_flags(ROOT / "examples" / f"{script}.py")
    names = [part.split('"')[1] for part in source.split("flags.DEFINE_")[1:]]
    assert len(names) >= 6
    for name in names:
        assert f"{name}:" in text, name


def test_a_wrong_command_line_is_answered_in_one_message():
    result = run_python(ROOT / "examples" / "quickstart.py", "stray", check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    message = "Unexpected arguments: ['stray']. See --help."
    assert result.stderr.splitlines()[-1] == message
    assert "--output_dir" not in result.stderr
    for path in ROOT.glob("examples/*.py"):
        assert path.read_text().endswith("    script.run(main)\n"), path


@pytest.mark.long
def test_the_benchmark_prints_its_ratio():
    result = run_python(
        ROOT / "benchmarks" / "train_step.py",
        f"--backend={keras.backend.backend()}",
        "--width_multiplier=0.125",
        "--batch_size=4",
        "--taps=1",
        "--steps=1",
        "--rounds=7",
    )
    assert "median of 7" in result.stdout
    assert "multiply-adds 1." in result.stdout
    assert "peak memory" in result.stdout
