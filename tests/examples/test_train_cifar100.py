"""The CIFAR-100 training script: killed and resumed, refused, schedules, optimizer."""

import csv
import functools
import io
import json
import math
import zipfile

import h5py
import keras
import numpy as np
import pytest
from absl import app
from absl.testing import flagsaver

import keras_selfdistill as ksd
import train_cifar100
from shared import augmentation, cifar100
from tests.conftest import ROOT, small_base
from tests.examples.test_cifar100 import write_fake
from tests.interruption import killed_replacing, run_script, run_whole_and_killed

SCRIPT = ROOT / "examples" / "train_cifar100.py"

pytestmark = pytest.mark.once
TINY = {
    "width_multiplier": 0.125,
    "taps": "stage2_block2_out",
    "epochs": 3,
    "learning_rate": 0.01,
    "batch_size": 50,
    "train_examples": 200,
    "validation_examples": 100,
}

WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_fake(folder, train_per_class=3)
    return folder


def run(data_dir, output_dir, before=""):
    """Runs the script in its own process, after some Python code."""
    flags = {**TINY, "data_dir": data_dir, "output_dir": output_dir}
    return run_script(
        SCRIPT,
        *(f"--{name}={value}" for name, value in flags.items()),
        before=before,
        # The resumed run need not compile again what the killed one did.
        JAX_COMPILATION_CACHE_DIR=str(data_dir / "compiled"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )


def history(folder):
    with (folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert float(row.pop("seconds")) > 0
    return rows


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def runs(data_dir, tmp_path_factory):
    """Two equal trainings: one at a stretch, one killed and begun again."""
    whole, killed = (tmp_path_factory.mktemp(name) for name in ("whole", "killed"))
    needs_tensorflow = keras.backend.backend() == "tensorflow"
    alone = "" if needs_tensorflow else WITHOUT_TENSORFLOW

    def look():
        # More than the checkpoint holds, which the second part has to set right.
        assert [row["epoch"] for row in history(killed)] == ["0", "1"]
        assert not (killed / "results.json").exists()

    second = run_whole_and_killed(
        functools.partial(run, data_dir, whole, alone),
        functools.partial(run, data_dir, killed),
        kill=killed_replacing(".keras", 2),
        when_killed=look,
    )
    return whole, killed, second.stdout + second.stderr


def saved_variables(folder):
    with zipfile.ZipFile(folder / "checkpoint.keras") as archive:
        weights = h5py.File(io.BytesIO(archive.read("model.weights.h5")))
    variables = {}

    def collect(name, item):
        if isinstance(item, h5py.Dataset):
            variables[name] = item[()]

    weights.visititems(collect)
    return variables


@pytest.mark.long
def test_a_killed_training_ends_like_one_that_was_not(runs):
    whole, killed, output = runs
    assert "Restored epoch 1 of 3." in output
    assert [row["epoch"] for row in history(whole)] == ["0", "1", "2"]
    assert history(killed) == history(whole)
    assert results(killed)["test_accuracy"] == results(whole)["test_accuracy"]
    ours, theirs = saved_variables(killed), saved_variables(whole)
    assert ours.keys() == theirs.keys()
    assert {"optimizer", "layers"} <= {name.split("/")[0] for name in ours}
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


@pytest.mark.long
def test_results_name_every_exit_and_how_they_came_about(runs):
    _, folder, output = runs
    found = results(folder)
    assert list(found["test_accuracy"]) == ["exit_1", "final", "ensemble"]
    for name, accuracy in found["test_accuracy"].items():
        assert 0 <= accuracy <= 1
        assert f"{name:8}  {accuracy:13.4f}" in output
    assert found["seed"] == 0
    assert found["flags"]["taps"] == TINY["taps"]
    assert found["flags"]["backend"] == keras.backend.backend()
    assert found["versions"]["keras"] == keras.version()
    assert set(found["versions"]) == {"python", "keras", keras.backend.backend()}
    with (folder / "history.csv").open() as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    assert found["seconds"] == pytest.approx(sum(seconds))


@pytest.mark.long
def test_accuracies_equal_a_count_over_predictions(runs, data_dir):
    folder = runs[0]
    model = keras.saving.load_model(folder / "checkpoint.keras")
    test = cifar100.load(data_dir).test
    outputs = model.predict(cifar100.normalize(test.images), verbose=0)
    for name in ("exit_1", "final"):
        correct = np.mean(np.argmax(outputs[name], axis=-1) == test.labels)
        assert results(folder)["test_accuracy"][name] == pytest.approx(correct)


@pytest.fixture
def flags(data_dir, tmp_path):
    """The script's flags in this process, as after parsing a command line."""
    parsed = train_cifar100.FLAGS
    with flagsaver.flagsaver():
        parsed(["train", f"--data_dir={data_dir}", f"--output_dir={tmp_path}"])
        yield parsed


def set_flags(flags, **values):
    for name, value in values.items():
        flags[name].value = value


@pytest.mark.long
def test_a_finished_training_is_only_evaluated_again(runs, flags, capsys):
    folder = runs[0]
    kept = [
        (folder / name).read_bytes() for name in ("checkpoint.keras", "history.csv")
    ]
    before = results(folder)
    (folder / "results.json").unlink()
    set_flags(flags, **TINY, output_dir=str(folder))
    train_cifar100.main(["train"])
    assert results(folder) == before
    assert "Epoch" not in capsys.readouterr().out
    assert kept == [
        (folder / name).read_bytes() for name in ("checkpoint.keras", "history.csv")
    ]


@pytest.mark.long
def test_a_checkpoint_of_other_flags_is_refused(runs, flags):
    set_flags(flags, **{**TINY, "epochs": 5}, output_dir=str(runs[0]), seed=1)
    with pytest.raises(
        app.UsageError, match=r"epochs=5 \(was 3\), seed=1 \(was 0\); e"
    ):
        train_cifar100.main(["train"])
    assert json.loads((runs[0] / "flags.json").read_text())["epochs"] == 3


def test_a_resumed_fit_begins_with_its_epochs_batches(flags, tmp_path, monkeypatch):
    drawn = []

    class Model:
        def fit(self, batches, *, initial_epoch, **arguments):
            assert initial_epoch == 2
            drawn.append(next(batches))

    set_flags(flags, **TINY)
    (tmp_path / "checkpoint.keras").touch()
    (tmp_path / "history.csv").touch()
    monkeypatch.setattr(train_cifar100.Checkpoint, "restore", lambda _: (Model(), 2))
    data = cifar100.load(flags.data_dir, train_examples=200)
    train_cifar100.train(data, tmp_path)
    expected = augmentation.Augmented(*data.train, 50, seed=0)
    expected.set_epoch(2)
    np.testing.assert_array_equal(drawn[0][0], expected[0][0])


def test_a_checkpoint_counts_epochs_not_updates(tmp_path):
    """Steps that loss scaling skips are no updates, yet part of their epoch."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", loss="mean_squared_error")
    checkpoint = train_cifar100.Checkpoint(tmp_path / "checkpoint.keras")
    checkpoint.set_model(model)
    checkpoint.on_epoch_end(4)
    restored, finished_epochs = checkpoint.restore()
    assert int(restored.optimizer.iterations) == 0
    assert finished_epochs == 5
    ksd.load_model(tmp_path / "checkpoint.keras")  # As compress.py reads it.


def rates(schedule, steps):
    return [float(keras.ops.convert_to_numpy(schedule(step))) for step in steps]


def test_step_schedule_drops_at_byots_epochs(flags):
    schedule = train_cifar100.learning_rate(steps_per_epoch=391)
    steps = [0, 75 * 391 - 1, 75 * 391, 130 * 391 - 1, 130 * 391, 180 * 391 - 1]
    steps += [180 * 391, 200 * 391]
    expected = [0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001]
    np.testing.assert_allclose(rates(schedule, steps), expected, rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 40])
def test_cosine_schedule_rises_and_falls(flags, warmup):
    set_flags(flags, schedule="cosine", warmup_steps=warmup, epochs=10)
    schedule = train_cifar100.learning_rate(steps_per_epoch=20)

    def expected(step):
        if step < warmup:
            return 0.1 * step / warmup
        share = (step - warmup) / (200 - warmup)
        return 0.05 * (1 + math.cos(math.pi * share))

    steps = [0, 1, 20, 39, 40, 41, 100, 199, 200]
    np.testing.assert_allclose(
        rates(schedule, steps), [expected(step) for step in steps], atol=1e-7
    )


def test_a_warmup_longer_than_the_training_is_refused(flags):
    set_flags(flags, schedule="cosine", warmup_steps=200, epochs=10)
    with pytest.raises(app.UsageError, match="warmup_steps=200; expected less than"):
        train_cifar100.learning_rate(steps_per_epoch=20)


def test_a_warmup_without_cosine_is_refused():
    arguments = ["train", "--output_dir=unused", "--schedule=step", "--warmup_steps=9"]
    with (
        flagsaver.flagsaver(),
        pytest.raises(train_cifar100.flags.Error, match="needs --schedule=cosine"),
    ):
        train_cifar100.FLAGS(arguments)


def test_weight_decay_acts_like_pytorchs_in_the_steady_state(flags):
    set_flags(flags, weight_decay=0.05, learning_rate=0.01, schedule="cosine")
    set_flags(flags, epochs=10**6)  # a learning rate that stays where it is
    optimizer = train_cifar100.build_optimizer(steps_per_epoch=1000)
    weight = keras.Variable([1.0, -2.0])
    optimizer.build([weight])
    gradient = np.array([0.0, 0.003], "float32")

    coupled, buffer = np.array([1.0, -2.0]), np.zeros(2)
    for _ in range(400):
        optimizer.apply([keras.ops.convert_to_tensor(gradient)])
        # torch.optim.SGD(momentum=0.9, nesterov=True, weight_decay=0.05)
        total = gradient + 0.05 * coupled
        buffer = 0.9 * buffer + total
        coupled = coupled - 0.01 * (total + 0.9 * buffer)
    ours = keras.ops.convert_to_numpy(weight)
    assert coupled[0] < 0.2  # undivided by 1 - momentum, the decay would leave 0.82
    # The buffer, empty at first, delays PyTorch's decay by a few steps.
    np.testing.assert_allclose(ours, coupled, rtol=0.06)


def test_applications_take_the_width_and_no_preprocessing(flags):
    set_flags(flags, model="MobileNetV3Small", width_multiplier=0.5)
    base = train_cifar100.build_base()
    assert (base.input_shape, base.output_shape) == ((None, 32, 32, 3), (None, 100))
    assert base.get_layer("expanded_conv_project").filters == 8  # of 16
    assert keras.layers.Rescaling not in {type(layer) for layer in base.layers}


def test_every_recipe_is_offered_and_one_without_early_exits_evaluated(
    flags, tmp_path, monkeypatch
):
    for recipe in ["plain", *ksd.recipes.RECIPES]:
        flags(["train", f"--output_dir={tmp_path}", f"--recipe={recipe}"])
    set_flags(flags, recipe="teskd", taps="out_1")
    monkeypatch.setattr(
        train_cifar100, "build_base", lambda: small_base(classes=100, size=32)
    )
    model = train_cifar100.build_model(steps_per_epoch=1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 32, 32, 3), "uint8")
    found = train_cifar100.evaluate(model, cifar100.Split(images, np.arange(4)))
    assert list(found) == ["exit_1", "final", "ensemble"]
    assert all(0 <= accuracy <= 1 for accuracy in found.values())


def test_exits_may_be_the_papers(flags):
    set_flags(flags, taps="paper", model="resnet34", width_multiplier=0.125)
    model = train_cifar100.build_model(steps_per_epoch=1)
    ends = ["stage1_block3_out", "stage2_block4_out", "stage3_block6_out"]
    assert list(model.taps) == ends
    assert model.head == ksd.heads.get("bottleneck")  # Not narrowed to a budget.
    set_flags(flags, model="MobileNetV2")
    with pytest.raises(app.UsageError, match="--taps=paper --model=MobileNetV2; expec"):
        train_cifar100.taps(model.base)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("Resnet18", "model=Resnet18; expected one of resnet18, "),
        ("resnet", "model=resnet; expected one of resnet18, "),  # a module of Keras
        ("VGG16", "VGG16 has a fixed width; expected 1"),
    ],
)
def test_impossible_models_are_refused(flags, model, message):
    set_flags(flags, model=model, width_multiplier=0.5)
    with pytest.raises(app.UsageError, match=message):
        train_cifar100.build_base()


@pytest.mark.long
@pytest.mark.real_data
def test_real_images_train(flags, tfds_folder, tmp_path):
    set_flags(flags, **{**TINY, "epochs": 1, "recipe": "plain", "batch_size": 200})
    set_flags(flags, data_dir=str(tfds_folder), output_dir=str(tmp_path))
    train_cifar100.main(["train"])
    assert results(tmp_path)["test_accuracy"].keys() == {"final"}
    (row,) = history(tmp_path)
    # Untrained, the loss is near log(100); a broken input would be far off.
    assert 0.9 * math.log(100) < float(row["loss"]) < 1.3 * math.log(100)
