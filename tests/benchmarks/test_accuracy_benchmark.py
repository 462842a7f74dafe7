"""The accuracy benchmark: killed and resumed, its methods, its table."""

import dataclasses
import functools
import json
import math

import keras
import numpy as np
import pytest
from absl import app

import accuracy
import keras_selfdistill as ksd
from accuracy_grid import (
    cells,
    checkpoint,
    methods,
    presets,
    published,
    step_time,
    table,
    training,
)
from shared import augmentation, cifar100
from tests.conftest import ROOT, require_backend
from tests.examples.test_cifar100 import write_fake
from tests.interruption import killed_replacing, run_script, run_whole_and_killed

SCRIPT = ROOT / "benchmarks" / "accuracy.py"

pytestmark = pytest.mark.once
SMOKE = presets.PRESETS["smoke"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_fake(folder, train_per_class=3)
    return folder


def run(data_dir, folder, *flags, before="", **environment):
    """Runs the script in its own process, after some Python code."""
    return run_script(
        SCRIPT,
        "--preset=smoke",
        f"--data_dir={data_dir}",
        f"--results_dir={folder / 'results'}",
        f"--work_dir={folder / 'work'}",
        *flags,
        before=before,
        # Else JAX's cache would be among the files that the script writes.
        **{"JAX_COMPILATION_CACHE_DIR": str(data_dir / "compiled"), **environment},
    )


def files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def without_times(cell):
    """Returns a result's numbers but those that no two runs share."""
    times = [name for name in cell if name.endswith("seconds")]
    kept = {name: value for name, value in cell.items() if name not in times}
    assert all(cell[name] > 0 for name in times)
    for epochs in kept["epochs"].values():
        for epoch in epochs:
            assert epoch.pop("seconds") > 0
            assert epoch.pop("cpu_seconds") > 0
    return kept


@pytest.mark.long
@pytest.mark.process
def test_a_killed_cell_ends_like_one_that_was_not(data_dir, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def look():
        assert not (killed / "results").exists()

    second = run_whole_and_killed(
        lambda: run(data_dir, whole, "--methods=kd"),
        lambda before: run(data_dir, killed, "--methods=kd", before=before),
        # The last of four checkpoints: two are the teacher's, two the student's.
        kill=killed_replacing(".npz", 4),
        when_killed=look,
    )
    assert "epoch 1/2" not in second.stdout
    assert second.stdout.count("epoch 2/2") == 1  # the teacher was finished
    found, expected = (
        json.loads((folder / "results/smoke/kd-seed0.json").read_text())
        for folder in (killed, whole)
    )
    assert found["seconds"] == pytest.approx(
        sum(e["seconds"] for stage in found["epochs"].values() for e in stage)
    )
    assert without_times(found) == without_times(expected)
    assert [len(stage) for stage in found["epochs"].values()] == [2, 2]
    assert 0 <= found["teacher_accuracy"] <= 1
    assert files(killed / "results") == {"smoke/kd-seed0.json", "smoke.md"}


def cell(method, seed=0, variant="", **fields):
    constants = {**methods.METHODS[method].fields, **fields}
    return methods.Cell(
        preset=SMOKE, method=method, seed=seed, fields=constants, variant=variant
    )


@pytest.fixture
def grid(data_dir, tmp_path):
    return cells.Grid(
        preset_name="smoke",
        data=tuple(training.read_data(SMOKE, data_dir, select=False)),
        results=tmp_path / "smoke",
        work=tmp_path / "work",
        select=False,
        deadline=math.inf,
    )


@pytest.mark.long
def test_a_cell_names_every_exit_and_how_it_came_about(grid, capsys):
    wanted = cell("byot", variant="strong", alpha=0.5)
    cells.run_cell(grid, wanted)
    assert "byot.strong-seed0 epoch 2/2 loss" in capsys.readouterr().out
    found = json.loads((grid.results / "byot.strong-seed0.json").read_text())
    names = ["exit_1", "exit_2", "exit_3", "final", "ensemble"]
    assert list(found["test_accuracy"]) == names
    early = found["early_exit"]
    assert early["calibrated_on"] == SMOKE.validation_examples
    assert list(early["macs_ratios"]) == names[:-1]
    assert early["within"]["75%"]["macs_ratio"] < 0.9
    assert all(0 <= value <= 1 for value in found["test_accuracy"].values())
    assert found["settings"]["fields"] == {"alpha": 0.5}
    assert found["settings"]["recipe"]["alpha"] == 0.5
    assert found["settings"]["recipe"]["temperature"] == 3.0
    assert found["versions"]["keras"] == keras.version()
    assert found["machine"]["cores"] >= 1
    # Kept as it is by the same settings, refused by others.
    before = (grid.results / "byot.strong-seed0.json").stat().st_mtime_ns
    cells.run_cell(grid, wanted)
    assert (grid.results / "byot.strong-seed0.json").stat().st_mtime_ns == before
    with pytest.raises(app.UsageError, match=r"'alpha': 0.4.*\(was .*0.5"):
        cells.run_cell(grid, cell("byot", variant="strong", alpha=0.4))


@pytest.mark.long
def test_a_base_that_is_trained_first_goes_on_with_its_exits(grid, monkeypatch):
    begun = []

    def build(cell, optimizer, *, base):
        begun.append((cell.seed, [weight.copy() for weight in base.get_weights()]))
        return methods.build_wrapped(cell, optimizer, base=base)

    wanted = cell("separable_byot_mixed")
    method = dataclasses.replace(methods.METHODS[wanted.method], build=build)
    monkeypatch.setitem(methods.METHODS, wanted.method, method)
    monkeypatch.setattr(cells, "build_wrapped", build)
    late = dataclasses.replace(grid, deadline=-math.inf)
    with pytest.raises(training.OutOfTimeError):
        cells.run_cell(late, wanted)
    assert not begun
    cells.run_cell(grid, wanted)
    path = grid.results / "separable_byot_mixed-seed0.json"
    found = json.loads(path.read_text())
    assert {name: len(each) for name, each in found["epochs"].items()} == {
        "base": 1,
        "student": 1,
    }
    assert found["settings"]["base_epochs"] == 1
    assert found["seconds"] > found["epochs"]["student"][0]["seconds"]
    ((seed, weights),) = begun
    assert seed == cells.SECOND_HALF
    keras.utils.set_random_seed(0)
    untrained = methods.network(SMOKE).get_weights()
    assert any(np.any(a != b) for a, b in zip(weights, untrained, strict=True))
    assert files(grid.work) == set()


def test_halves_shorten_the_whole_schedule():
    first, second = presets.halves(presets.PRESETS["cpu"])
    assert (first.epochs, first.warmup_steps) == (20, 100)
    assert first == second
    paper = presets.as_in_paper(presets.PRESETS["paper"], "byot")
    first, second = presets.halves(dataclasses.replace(paper, epochs=200))
    assert (first.epochs, second.epochs) == (100, 100)
    assert second.paper_training.divided_after == (37, 65, 90)


def test_a_wrapper_of_a_trained_base_has_its_weights(grid):
    base = methods.network(SMOKE)
    wanted = cell("separable_byot_mixed")
    assert methods.build_wrapped(wanted, "sgd", base=base).base is base
    wanted = cell("separable_byot_equilibrium")
    config = methods.build_wrapped(wanted, "sgd").get_config()
    assert config["gradient_equilibrium"] is True
    assert grid.settings(wanted)["gradient_equilibrium"] is True


def test_a_field_that_a_recipe_gained_later_is_no_change():
    refuse = checkpoint.refuse_other_settings
    begun = {"recipe": {"alpha": 0.1}}
    refuse("file", begun, {"recipe": {"alpha": 0.1, "teacher": "final"}})
    with pytest.raises(app.UsageError, match=r"recipe=.*0\.2.*\(was .*0\.1"):
        refuse("file", begun, {"recipe": {"alpha": 0.2, "teacher": "final"}})


@pytest.mark.parametrize("augment_on", ["device", "host"])
def test_batches_go_through_the_epochs_in_order(grid, augment_on):
    drawn = list(
        training.batches(
            grid.data[0], cell("plain"), None, first_epoch=1, augment_on=augment_on
        )
    )
    expected = augmentation.Augmented(*grid.data[0], SMOKE.batch_size, seed=0)
    expected.set_epoch(1)
    assert len(drawn) == expected.num_batches == 2
    for index, (images, labels) in enumerate(drawn):
        assert isinstance(images, np.ndarray) == (augment_on == "host")
        images = keras.ops.convert_to_numpy(images)
        np.testing.assert_array_equal(images, expected[index][0])
        np.testing.assert_array_equal(labels, expected[index][1])


def test_cutmix_mixes_labels_as_images_and_repeats_itself():
    mix = methods.prepare_cutmix(cell("cutmix", probability=1.0))
    labels = np.arange(64)
    # Every image is of one colour, its label: how much of it is left can be counted.
    images = np.broadcast_to(labels[:, None, None, None], (64, 32, 32, 3))
    images = images.astype("float32")
    mixed, rows = mix(images, labels, np.random.default_rng(1))
    again = mix(images, labels, np.random.default_rng(1))
    np.testing.assert_array_equal(mixed, again[0])
    np.testing.assert_array_equal(rows, again[1])
    shares = (mixed[..., 0, None] == np.arange(100)).mean(axis=(1, 2))
    # Boxes end between pixels: half a pixel more or less on either side.
    np.testing.assert_allclose(rows, shares, atol=2 * 32 / 1024)
    assert np.count_nonzero(rows) > 100


def test_selection_holds_training_images_out(data_dir):
    preset = dataclasses.replace(SMOKE, train_examples=None)
    whole = cifar100.load(data_dir)
    train, held_out, none = training.read_data(preset, data_dir, select=True)
    assert none is None  # Early exit is calibrated on halves.
    assert (len(train.labels), len(held_out.labels)) == (200, 100)
    both = sorted(image.tobytes() for split in (train, held_out) for image in split[0])
    assert both == sorted(image.tobytes() for image in whole.train.images)


def result(method, seed, variant="", **accuracies):
    """Returns as much of a cell's file as the table reads."""
    settings = {
        **dataclasses.asdict(SMOKE),
        **{"preset": "smoke", "method": method, "variant": variant, "seed": seed},
        **{"fields": {"alpha": 0.5}, "backend": "jax"},
    }
    return {
        "test_accuracy": accuracies,
        "settings": settings,
        "versions": {"keras": "3.15.1"},
        "machine": {"cpu": "a processor", "cores": 2, "accelerators": []},
    }


def test_the_table_holds_mean_and_deviation(tmp_path):
    finals = [0.5, 0.54, 0.61]
    cells = [result("plain", seed, final=x) for seed, x in enumerate(finals)]
    cells += [
        result("byot", seed, exit_1=x - 0.1, final=x, ensemble=x + 0.1)
        for seed, x in enumerate(finals[:2])
    ]
    cells.append(result("byot", 0, variant="strong", final=0.7))
    cells.append(result("kd", 0, final=0.6))
    cells[-1]["settings"]["teacher"] = "resnet34"
    cells[-1]["teacher_accuracy"] = 0.625
    folder = tmp_path / "smoke"
    folder.mkdir()
    for i, content in enumerate(cells):
        (folder / f"{i}.json").write_text(json.dumps(content))
    timed = {
        "time_over_plain": {"plain": {"median": 1.0}, "byot": {"median": 1.498}},
        "settings": {"rounds": 7, "backend": "jax"},
        **{name: cells[0][name] for name in ("versions", "machine")},
    }
    (tmp_path / "smoke_time.json").write_text(json.dumps(timed))
    text = table.table(folder, select=False)
    rows = {
        line.split(" | ")[0][2:]: line[2:-2].split(" | ")
        for line in text.splitlines()
        if line.startswith("| ")
    }
    mean, deviation = 100 * np.mean(finals), 100 * np.std(finals, ddof=1)
    expected = ["plain", "–", "–", "–", f"{mean:.2f} ± {deviation:.2f}", "–", "3"]
    assert rows["plain"] == [*expected, "1.00", "77.09"]
    deviation = 100 * 0.04 / math.sqrt(2)
    expected = [f"{value} ± {deviation:.2f}" for value in ("42.00", "52.00", "62.00")]
    assert [rows["byot"][column] for column in (1, 4, 5)] == expected
    assert rows["byot"][6:8] == ["2", "1.50"]
    assert ", 2 epochs, float32. A network is evaluated once" in text
    assert "The teacher of kd, resnet34: 62.50." in text
    assert rows["byot.strong"][4:8] == ["70.00", "–", "1", "–"]
    assert "by the processor, median of 7 interleaved rounds" in text
    assert "python benchmarks/accuracy_time.py --preset=smoke`" in text
    assert "--preset=smoke --methods=plain --seeds=0,1,2`" in text
    assert "--preset=smoke --methods=byot --seeds=0,1`" in text
    constants = "--variant=strong --recipe_fields='{\"alpha\": 0.5}'"
    assert f"--preset=smoke --methods=byot --seeds=0 {constants}`" in text
    assert "cpu a processor, cores 2" in text


def test_times_are_ratios_of_what_ran_in_the_same_round(monkeypatch):
    """A machine that slows down by half in each round changes no ratio."""
    now, slowness = [0.0], [1.0]

    def fake_trainers(cell, train, steps):
        assert steps == 3

        def spend(seconds):
            now[0] += seconds * slowness[0]
            if cell.method == "byot":  # the round's last
                slowness[0] *= 1.5

        costs = {
            "plain": [(2.0, 1.0)],
            "kd": [(4.0, 1.0), (2.0, 1.0)],
            "separable_byot_mixed": [(2.0, 0.25), (3.0, 0.75)],
            "byot": [(2.5, 1.0)],
        }
        return [
            (functools.partial(spend, seconds), share)
            for seconds, share in costs[cell.method]
        ]

    monkeypatch.setattr(step_time, "trainers", fake_trainers)
    monkeypatch.setattr(step_time.time, "process_time", lambda: now[0])
    monkeypatch.setattr(step_time, "accelerators", list)
    ratios = {"plain": 1.0, "kd": 3.0, "separable_byot_mixed": 1.375, "byot": 1.25}
    found = step_time.ratios(list(map(cell, ratios)), None, rounds=4, steps=3)
    for method, expected in ratios.items():
        assert list(found[method].values()) == pytest.approx([expected] * 3)


@pytest.mark.long
@pytest.mark.process
def test_every_method_is_timed(data_dir, tmp_path):
    done = run_script(
        SCRIPT.with_name("accuracy_time.py"),
        *("--preset=smoke", "--rounds=3", "--steps=2"),
        f"--data_dir={data_dir}",
        f"--results_dir={tmp_path}",
        backend="torch",  # Compiles nothing.
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "smoke_time.json").read_text())["time_over_plain"]
    assert list(found) == list(methods.METHODS)
    assert found["plain"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    for each in found.values():
        assert 0 < each["min"] <= each["median"] <= each["max"]


def test_published_rows_stand_beside_their_networks():
    assert published.published("plain", "resnet50") == "77.68"
    row = "68.23 / 74.21 / 75.23 / 80.56, ensemble 81.04 (plain 77.68)"
    assert published.published("byot", "resnet50") == row
    assert published.published("teskd", "resnet18") == "79.15 (plain 74.41)"
    assert published.published("teskd", "resnet50") == "–"
    assert published.published("byot", "resnet34") == "–"
    row = "69.23 / 78.15 / 80.98 / 82.30, ensemble 83.51 (plain 81.12)"
    assert published.published("byot", "pyramidnet101_240") == row
    assert len(published.PUBLISHED["byot"]) == 10  # The rows of its table.
    for rows in published.PUBLISHED.values():
        assert rows.keys() <= ksd.networks.NETWORKS.keys()


def test_exits_stand_where_the_published_ones_do(grid):
    """In ResNets, of which the papers say it; a number of taps would place others."""
    for model, blocks in (("resnet18", (2, 2, 2)), ("resnet34", (3, 4, 6))):
        _, preset = presets.named_preset("smoke", model)
        made = dataclasses.replace(cell("byot"), preset=preset)
        names = [f"stage{i}_block{j}_out" for i, j in enumerate(blocks, start=1)]
        assert grid.settings(made)["tap_names"] == names
    built = methods.build_wrapped(made, "sgd")
    assert list(built.taps) == names
    assert built.head == ksd.heads.get("bottleneck")
    assert methods.named_taps("wide_resnet20_8", 3) is None
    # Files from before name no taps: ResNet-18's were these, others' were not.
    settings = grid.settings(made)
    before = {name: each for name, each in settings.items() if name != "tap_names"}
    with pytest.raises(app.UsageError, match="tap_names="):
        checkpoint.refuse_other_settings("file", before, settings)


def test_ordinary_distillation_needs_a_deeper_network():
    every = list(methods.METHODS)
    assert methods.methods_of(SMOKE) == every
    _, other = presets.named_preset("smoke", "vgg19_bn")
    assert methods.methods_of(other) == [name for name in every if name != "kd"]


@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods=plain,kd", "--model=vgg19_bn"], "Received --methods=kd; expected"),
        (["--variant=strong"], "expected both or none"),
    ],
    ids=["kd", "variant"],
)
def test_wrong_flags_are_refused_before_the_first_cell(
    data_dir, tmp_path, flags, message
):
    done = run(data_dir, tmp_path, *flags)
    assert done.returncode
    assert message in done.stdout + done.stderr
    assert files(tmp_path) == set()


@pytest.mark.long
@pytest.mark.process
def test_a_seed_of_several_in_a_process_ends_like_one_of_its_own(data_dir, tmp_path):
    require_backend("jax")
    for seeds in ("0,1", "1"):
        done = run(
            data_dir,
            tmp_path / seeds,
            "--methods=byot",
            f"--seeds={seeds}",
            KERAS_BACKEND="jax",
            JAX_COMPILATION_CACHE_DIR=None,
        )
        assert done.returncode == 0, done.stderr
        kept = files(tmp_path / seeds / "work/jax_cache")
        assert sum(name.startswith("jit_train_step-") for name in kept) == 1
    found, expected = (
        json.loads((tmp_path / seeds / "results/smoke/byot-seed1.json").read_text())
        for seeds in ("0,1", "1")
    )
    assert without_times(found) == without_times(expected)


@pytest.mark.long
@pytest.mark.process
def test_out_of_time_it_saves_and_the_same_command_goes_on(data_dir, tmp_path):
    flags = "--methods=plain", "--checkpoint_every=99"
    none = run(data_dir, tmp_path, *flags, "--time_limit_s=0")
    assert none.returncode == accuracy.OUT_OF_TIME, none.stderr
    assert files(tmp_path) == set()
    # The time is over as soon as training begins, which ends with the epoch.
    hurried = """
import time
import keras

real, late = time.monotonic, []
time.monotonic = lambda: real() + 1e6 * len(late)
fit = keras.Model.fit
keras.Model.fit = lambda *args, **kwargs: (late.append(1), fit(*args, **kwargs))[1]
"""
    some = run(data_dir, tmp_path, *flags, "--time_limit_s=1000", before=hurried)
    assert some.returncode == accuracy.OUT_OF_TIME, some.stderr
    assert "epoch 1/2" in some.stdout
    assert "epoch 2/2" not in some.stdout
    assert files(tmp_path) == {"work/smoke/plain-seed0.npz"}
    done = run(data_dir, tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    assert "epoch 1/2" not in done.stdout
    assert "epoch 2/2" in done.stdout
    assert files(tmp_path) == {"results/smoke/plain-seed0.json", "results/smoke.md"}


def test_presets_are_those_of_the_experiments():
    """Sizes, optimizer and schedules, as they were laid down before the first cell."""
    sizes = presets.PRESETS
    shown = {
        name: (
            64 * preset.width_multiplier,
            preset.train_examples,
            preset.batch_size,
            preset.epochs,
            preset.schedule,
            preset.dtype,
        )
        for name, preset in sizes.items()
    }
    assert shown["cpu"] == (24, 5000, 64, 40, "cosine", "float32")
    assert shown["cpu_full"] == (16, None, 128, 12, "cosine", "float32")
    assert shown["paper"] == (64, None, 128, 200, "step", "mixed_bfloat16")
    steps = 79
    cosine = training.build_optimizer(sizes["cpu"], steps)
    assert (cosine.momentum, cosine.nesterov) == (0.9, True)
    assert cosine.weight_decay * (1 - 0.9) == pytest.approx(5e-4)
    rate = cosine._learning_rate
    assert float(rate(100)) == pytest.approx(0.05)
    assert float(rate(200)) == pytest.approx(0.1)
    middle = 200 + (40 * steps - 200) // 2
    assert float(rate(middle)) == pytest.approx(0.05, rel=1e-3)
    assert float(rate(40 * steps)) == pytest.approx(0.0, abs=1e-6)
    steps = 391
    rate = training.build_optimizer(sizes["paper"], steps)._learning_rate
    for epoch, before, after in ((75, 0.1, 0.01), (130, 0.01, 1e-3), (180, 1e-3, 1e-4)):
        found = [float(rate(epoch * steps + shift)) for shift in (-1, 0)]
        assert found == pytest.approx([before, after])


@pytest.mark.parametrize(
    ("method", "epochs", "drops", "nesterov"),
    [
        ("byot", 200, (75, 130, 180), False),
        ("plain", 200, (75, 130, 180), False),
        ("deep_supervision", 200, (75, 130, 180), False),
        ("attention_byot", 250, (83, 166, 240), False),
        ("teskd", 200, (100, 150), True),
    ],
)
def test_each_method_may_be_trained_as_its_paper_does(method, epochs, drops, nesterov):
    """Epochs, rates and momentum by hand, from the public codes."""
    name, preset = presets.named_preset("paper", schedule="paper")
    assert name == "paper-paper_schedule"
    preset = presets.as_in_paper(preset, method)
    assert (preset.epochs, preset.schedule) == (epochs, "paper")
    steps = 391
    optimizer = training.build_optimizer(preset, steps)
    assert (optimizer.momentum, optimizer.nesterov) == (0.9, nesterov)
    assert optimizer.weight_decay * (1 - 0.9) == pytest.approx(5e-4)
    for done, epoch in enumerate(drops):
        found = [
            float(optimizer._learning_rate(epoch * steps + shift)) for shift in (-1, 0)
        ]
        assert found == pytest.approx([0.1 / 10**done, 0.1 / 10 ** (done + 1)])


def test_a_smaller_preset_shortens_every_papers_training_alike():
    found = presets.as_in_paper(presets.PRESETS["cpu"], "attention_byot")
    assert (found.epochs, found.warmup_steps) == (50, 0)
    assert found.paper_training.divided_after == (16, 33, 48)  # 50 · (83, 166, 240)/250
    # The journal version changes its images, over grey, wherever it is asked to do it.
    assert found.augmentation == ("autoaugment", "cutout")
    made = dataclasses.replace(cell("attention_byot"), preset=found)
    white = cifar100.Split(np.full((64, 8, 8, 3), 255, "uint8"), np.arange(64))
    data = training.augmented(white, made, "device")
    assert isinstance(data, augmentation.Augmented)
    assert data._crop_fill == 128
    assert data._change is not None


@pytest.mark.parametrize("method", ["plain", "label_smoothing", "byot", "kd"])
def test_every_method_learns_from_mixed_images(data_dir, method):
    name, preset = presets.named_preset("smoke", augmentation=("mixup",))
    assert name == "smoke-mixup"
    assert "cutmix" not in methods.methods_of(preset)
    assert {*methods.methods_of(preset), "cutmix"} == {*methods.METHODS}
    made = dataclasses.replace(cell(method), preset=preset)
    labels = np.arange(8) % 100
    data = cifar100.Split(np.zeros((8, 32, 32, 3), "uint8"), labels)
    prepare = methods.METHODS[method].prepare
    prepare = prepare(made) if prepare else None
    _, shares = next(training.batches(data, made, prepare, 0, "host"))
    assert shares.shape == (8, 100)
    np.testing.assert_allclose(shares.sum(axis=-1), 1, rtol=1e-5)
    assert (shares[:, :8] > 0).sum() > 8
    loss = methods.label_loss(preset)
    expected = -(shares * np.log(np.full((8, 100), 0.01))).sum(axis=-1).mean()
    found = loss(shares, np.full((8, 100), 0.01, "float32"))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_wrapper_of_mixed_labels_is_judged_by_the_right_class():
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    x = keras.layers.Dense(4, name="tap")(x)
    x = keras.layers.Dense(4, activation="relu")(x)
    base = keras.Model(inputs, keras.layers.Dense(100, activation="softmax")(x))
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
    model.compile("sgd", keras.losses.CategoricalCrossentropy(), metrics=["accuracy"])
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), "uint8")
    outputs = model.predict(cifar100.normalize(images), verbose=0)
    right = np.argmax(outputs["final"], axis=-1)
    labels = np.where(np.arange(20) < 5, right, (right + 1) % 100)
    split = cifar100.Split(images, labels)
    found = training.accuracies(model, split, one_hot=True)
    assert found["final"] == pytest.approx(0.25)


def test_a_cell_of_the_papers_schedule_says_how_it_was_trained(grid):
    preset = presets.as_in_paper(SMOKE, "plain")
    made = methods.Cell(preset=preset, method="plain", seed=0, fields={})
    settings = grid.settings(made)
    assert settings["schedule"] == "paper"
    assert settings["paper_training"] == {
        "code": "BYOT, public reproduction",
        "epochs": 2,
        "divided_after": [0, 1, 1],
        "nesterov": False,
        "augmentation": ["standard"],
        "crop_fill": 0,
        "initial_weights": "He normal by fan-out",
    }
    with pytest.raises(app.UsageError, match=r"paper_training=None \(was "):
        checkpoint.refuse_other_settings("file", settings, grid.settings(cell("plain")))
    content = {**result("plain", 0, final=0.5), "settings": settings}
    grid.results.mkdir()
    (grid.results / "plain-seed0.json").write_text(json.dumps(content))
    text = table.table(grid.results, select=False)
    said = "plain (BYOT, public reproduction): 2 epochs, rate ÷10 after 0, 1, 1, plain"
    assert said in text
    assert "--preset=smoke --schedule=paper --methods=plain --seeds=0`" in text


def test_initial_weights_are_those_of_the_papers_code():
    """Their deviations by hand, of ResNet-18's exits with 128 features in the end."""

    def built(method):
        wide = dataclasses.replace(SMOKE, width_multiplier=0.25)
        preset = presets.as_in_paper(wide, method)
        made = dataclasses.replace(cell(method), preset=preset)
        model = methods.build_wrapped(made, "sgd")
        layers = [*model.base.layers, *model.exit_graph.training_network.layers]
        return {layer.name: layer.get_weights() for layer in layers}

    byot = built("byot")
    deviations = {
        "stage2_block1_first_conv": (2 / (9 * 32)) ** 0.5,  # From 16 channels.
        "exit_2_reduce": (2 / 32) ** 0.5,
        "exit_2_downsample": (2 / (16 * 32)) ** 0.5,  # 4x4 patches.
        "exit_2_expand": (2 / 128) ** 0.5,
    }
    for name, deviation in deviations.items():
        kernel = byot[name][0]
        assert kernel.std() == pytest.approx(deviation, rel=0.1), name
        assert abs(kernel).max() > 2.3 * deviation  # Not truncated.
    uniform = {("byot", "exit_2_logits"): 128, ("byot", "predictions"): 128}
    uniform |= {
        ("teskd", "stage2_block1_first_conv"): 9 * 16,
        ("teskd", "exit_2_lateral"): 32,
        ("teskd", "exit_2_logits"): 128,
    }
    found = {"byot": byot, "teskd": built("teskd")}
    for (method, name), fan in uniform.items():
        weights = found[method][name]
        for each in weights:
            limit = fan**-0.5
            assert 0.9 * limit < abs(each).max() <= limit, name
        assert weights[0].std() == pytest.approx(limit / 3**0.5, rel=0.1)


def test_ordinary_distillation_is_its_formula():
    """(1 − alpha) · crossentropy + alpha · T² · KL(teacher ‖ student)."""
    keras.utils.set_random_seed(0)
    wanted = cell("kd", alpha=0.7, temperature=3.0)
    build = functools.partial(methods.build_plain, wanted, "sgd", logits=True)
    teacher = build(model="resnet34")
    model = methods.build_taught(wanted, "sgd", teacher)
    random = np.random.default_rng(0)
    images = random.normal(size=(6, 32, 32, 3)).astype("float32")
    labels = np.arange(6)

    def log_softmax(logits):
        logits = logits.astype("float64")
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    z, t = (m.predict(images, verbose=0) for m in (model.student, teacher))
    p, q = log_softmax(t / 3), log_softmax(z / 3)
    kl = 9 * (np.exp(p) * (p - q)).sum(axis=-1).mean()
    label = -log_softmax(z)[labels, labels].mean()
    found = model.evaluate(images, labels, return_dict=True, verbose=0)["loss"]
    assert found == pytest.approx(0.3 * label + 0.7 * kl, rel=1e-4)


@pytest.mark.long
def test_the_time_of_ordinary_distillation_holds_its_teachers_training(
    grid, monkeypatch
):
    deep = []

    def build(*args, **options):
        deep.append(methods.build_plain(*args, **options))
        return deep[-1]

    monkeypatch.setattr(step_time, "build_plain", build)
    trainers = step_time.trainers(cell("kd"), grid.data[0], steps=1)
    assert {model.name for model in deep} == {"resnet34"}
    before = [model.get_weights() for model in deep]
    for train, share in trainers:
        assert share == 1.0
        train()
    moved = [
        any(
            not np.array_equal(*pair)
            for pair in zip(old, model.get_weights(), strict=True)
        )
        for old, model in zip(before, deep, strict=True)
    ]
    assert sorted(moved) == [False, True]  # One teaches, the other shows what it cost.


def test_half_of_the_time_of_the_mixed_regime_is_that_of_the_bare_base(
    grid, monkeypatch
):
    """However many steps are timed."""
    built = []
    monkeypatch.setattr(step_time, "build_plain", lambda *_: built.append(1))
    monkeypatch.setattr(step_time, "batches", lambda *_, **__: iter(()))
    wanted = cell("separable_byot_mixed")
    method = dataclasses.replace(
        methods.METHODS[wanted.method], build=lambda *_, **__: built.append(2)
    )
    monkeypatch.setitem(methods.METHODS, wanted.method, method)
    shares = [share for _, share in step_time.trainers(wanted, grid.data[0], steps=3)]
    assert shares == [0.5, 0.5]
    assert built == [1, 2]


RESULTS = SCRIPT.parent / "results"


@pytest.mark.parametrize(
    "path", sorted(RESULTS.rglob("*-seed*.json")), ids=lambda path: path.stem
)
def test_the_command_keeps_the_committed_results(path):
    """Each is what the benchmark would train now, under the name it would give."""
    settings = json.loads(path.read_text())["settings"]
    constants = methods.METHODS[settings["method"]].fields
    schedule = "paper" if settings["schedule"] == "paper" else "common"
    name, preset = presets.named_preset(settings["preset"], settings["model"], schedule)
    assert path.parent.name == name
    if schedule == "paper":
        preset = presets.as_in_paper(preset, settings["method"])
    made = methods.Cell(
        preset=preset,
        method=settings["method"],
        seed=settings["seed"],
        fields={**constants, **settings["fields"]},
        variant=settings["variant"],
    )
    select = settings["evaluated_on"] == "hold-out"
    assert ("selection" in path.parts) == select
    grid = cells.Grid(
        preset_name=settings["preset"],
        data=None,
        results=path.parent,
        work=path.parent,
        select=select,
        deadline=math.inf,
    )
    assert grid.result_path(made) == path
    now = {**grid.settings(made), "backend": settings["backend"]}
    checkpoint.refuse_other_settings(path, settings, now)


@pytest.mark.parametrize(
    "folder",
    sorted({path.parent for path in RESULTS.rglob("*-seed*.json")}),
    ids=lambda folder: folder.relative_to(RESULTS).as_posix(),
)
def test_the_committed_table_shows_the_committed_results(folder):
    text = table.table(folder, select="selection" in folder.parts)
    assert folder.with_name(f"{folder.name}.md").read_text() == text


@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_precision_and_schedule_of_paper_train_on_every_backend(
    backend, data_dir, tmp_path
):
    """bfloat16 rounds the losses of float32, and hardly moves them."""
    require_backend(backend)
    losses = {}
    for dtype in ("float32", "mixed_bfloat16"):
        before = (
            "import dataclasses\n"
            "from accuracy_grid.presets import PRESETS\n"
            "PRESETS['smoke'] = dataclasses.replace(PRESETS['smoke'], warmup_steps=0, "
            f"schedule='step', dtype={dtype!r})\n"
        )
        done = run_script(
            SCRIPT,
            "--preset=smoke",
            "--methods=byot",
            f"--data_dir={data_dir}",
            f"--results_dir={tmp_path / dtype}",
            f"--work_dir={tmp_path / 'work' / dtype}",
            before=before,
            KERAS_BACKEND=backend,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / dtype / "smoke/byot-seed0.json").read_text())
        assert found["settings"]["dtype"] == dtype
        assert found["settings"]["backend"] == backend
        losses[dtype] = found["epochs"]["student"][0]["loss"]
    assert losses["mixed_bfloat16"] != losses["float32"]
    assert losses["mixed_bfloat16"] == pytest.approx(losses["float32"], rel=0.05)


@pytest.mark.long
@pytest.mark.real_data
@pytest.mark.process
def test_real_images_select_nothing_by_test_images(tfds_folder, tmp_path):
    done = run(tfds_folder, tmp_path, "--methods=plain", "--select")
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "results") == {
        "selection/smoke/plain-seed0.json",
        "selection/smoke.md",
    }
    path = tmp_path / "results" / "selection" / "smoke" / "plain-seed0.json"
    found = json.loads(path.read_text())
    assert "test_accuracy" not in found
    assert found["validation_accuracy"].keys() == {"final"}
    # Untrained, the loss is near log(100); a broken input would be far off.
    loss = found["epochs"]["student"][0]["loss"]
    assert 0.9 * math.log(100) < loss < 1.3 * math.log(100)
