"""Early exit in the accuracy benchmark, against NumPy, and as a table."""

import dataclasses
import json

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from accuracy_grid import presets, table, training
from accuracy_grid.frontier import BUDGETS, frontier
from shared import cifar100
from tests.benchmarks.test_accuracy_benchmark import result
from tests.examples.test_cifar100 import write_fake

pytestmark = pytest.mark.once
SMOKE = presets.PRESETS["smoke"]
# Multiply-adds of the layers below, and of heads: 4 features, 100 classes.
A, B, REST = 48 * 16, 16 * 128 + 128 * 128, 128 * 128 + 128 * 4 + 4 * 100
COSTS = np.array([A + 16 * 4 + 400, A + 16 * 4 + 400 + B + 128 * 4 + 400, 0]) / (
    A + B + REST
)
COSTS[2] = COSTS[1] + REST / (A + B + REST)


def build(taps):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.AveragePooling2D(8)(inputs)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(16, "tanh", name="a")(x)
    x = keras.layers.Dense(128, "tanh")(x)
    x = keras.layers.Dense(128, "tanh", name="b")(x)
    x = keras.layers.Dense(128, "tanh")(x)
    x = keras.layers.Dense(4, "tanh")(x)
    base = keras.Model(inputs, keras.layers.Dense(100, "softmax")(x))
    model = ksd.SelfDistiller(base, taps, "byot", head="linear")
    for weight in model.trainable_weights:  # Classes that differ from image to image.
        weight.assign(3.0 * weight.value)
    return model


@pytest.fixture(scope="module")
def model():
    return build(["a", "b"])


def draw(model, seed, count=200):
    """Return images with the label that an exit predicts, more often a deep one."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (count, 4, 4, 3))
    images = blocks.repeat(8, axis=1).repeat(8, axis=2).astype("uint8")
    classes = probabilities(model, images).argmax(axis=-1)
    often = np.arange(1, 1 + len(classes)) ** 2
    chosen = random.choice(len(classes), count, p=often / often.sum())
    return cifar100.Split(images, classes[chosen, np.arange(count)])


def probabilities(model, images):
    found = model.predict(cifar100.normalize(images), verbose=0)
    return np.stack([found[name] for name in model.exit_names])


def by_hand(found, labels, threshold):
    """Return accuracy and mean multiply-adds of early exit."""
    leaves = found.max(axis=-1) >= threshold - 1e-6
    leaves[-1] = True
    exits = leaves.argmax(axis=0)
    classes = found.argmax(axis=-1)[exits, np.arange(len(exits))]
    return np.mean(classes == labels), COSTS[exits].mean()


def test_within_a_budget_it_is_that_of_numpy(model):
    held_out, test = draw(model, 1), draw(model, 2)
    found = frontier(model, held_out, test)
    assert found["calibrated_on"] == 200
    assert list(found["macs_ratios"].values()) == pytest.approx(COSTS)
    known, new = ((probabilities(model, each[0]), each[1]) for each in (held_out, test))
    scores = np.unique(known[0].max(axis=-1))
    tried = np.array([by_hand(*known, each) for each in [0, *scores, 2]])
    for budget in BUDGETS:
        got = found["within"][f"{budget:.0%}"]
        best = tried[tried[:, 1] <= budget, 0].max()
        accuracy, ratio = by_hand(*known, got["thresholds"][0])
        assert accuracy == pytest.approx(best)
        assert ratio <= budget + 1e-9
        accuracy, ratio = by_hand(*new, got["thresholds"][0])
        assert got["accuracy"] == pytest.approx(accuracy)
        assert got["macs_ratio"] == pytest.approx(ratio)
    accuracies = [each["accuracy"] for each in found["within"].values()]
    assert len({*accuracies}) == 3  # Or the budgets would not matter here.


def test_without_other_images_each_half_is_calibrated_on_the_other(model):
    split = draw(model, 3)
    halves = [cifar100.Split(*(each[i::2] for each in split)) for i in (0, 1)]
    one, other = frontier(model, *halves), frontier(model, *halves[::-1])
    found = frontier(model, None, split)
    assert found["calibrated_on"] == 100
    for budget, got in found["within"].items():
        parts = [each["within"][budget] for each in (one, other)]
        assert got["thresholds"] == [each["thresholds"][0] for each in parts]
        for name in ("accuracy", "macs_ratio"):
            assert got[name] == pytest.approx(np.mean([each[name] for each in parts]))


def test_less_than_the_first_exit_takes_is_out_of_reach():
    model = build(["b"])
    within = frontier(model, draw(model, 1), draw(model, 2))["within"]
    assert within["25%"] is within["50%"] is None
    assert within["75%"]["macs_ratio"] < 0.8


def test_what_has_no_exits_to_stop_at_has_no_frontier(model):
    split = draw(model, 1)
    assert frontier(model.base, split, split) is None
    small = ksd.networks.resnet18(classes=100, width_multiplier=0.125)
    assert frontier(ksd.SelfDistiller(small, 3, "teskd"), split, split) is None


def test_thresholds_are_chosen_on_images_that_nothing_else_uses(tmp_path):
    write_fake(tmp_path, train_per_class=3)
    train, test, held_out = training.read_data(SMOKE, tmp_path, select=False)
    assert len(held_out.labels) == 100
    seen = {image.tobytes() for split in (train, test) for image in split.images}
    assert not seen & {image.tobytes() for image in held_out.images}
    everything = dataclasses.replace(SMOKE, train_examples=None)
    assert list(training.read_data(everything, tmp_path, select=False))[2] is None


def test_the_table_shows_what_is_reached_and_what_is_not(tmp_path):
    def early(low, high):
        within = {"25%": None, "50%": {"accuracy": low}, "75%": {"accuracy": high}}
        ratios = {"exit_1": 0.31, "final": 1.2}
        return {"calibrated_on": 100, "macs_ratios": ratios, "within": within}

    cells = [
        {**result("byot", 0, final=0.5, exit_1=0.4), "early_exit": early(0.4, 0.45)},
        {**result("byot", 1, final=0.6, exit_1=0.4), "early_exit": early(0.42, 0.47)},
        result("byot", 2, final=0.9, exit_1=0.4),  # A file of before.
        {**result("plain", 0, final=0.3), "early_exit": None},
    ]
    folder = tmp_path / "smoke"
    folder.mkdir()
    for i, content in enumerate(cells):
        (folder / f"{i}.json").write_text(json.dumps(content))
    text = table.table(folder, select=False)
    first, second = (part for part in text.split("\n\n") if part.startswith("| meth"))
    assert "| 66.67 ± 20.82 |" in first
    assert second.splitlines()[0] == "| method | 25% | 50% | 75% | final | seeds |"
    assert second.splitlines()[2:] == [
        "| plain | – | – | – | 30.00 | 1 |",
        "| byot | – (exit 1: 31%) | 41.00 ± 1.41 | 46.00 ± 1.41 | 55.00 ± 7.07 | 2 |",
    ]
    assert "chosen on 100 training images that no method saw" in text
    for path in folder.iterdir():  # As all of them were before.
        content = json.loads(path.read_text())
        content.pop("early_exit", None)
        path.write_text(json.dumps(content))
    text = table.table(folder, select=False)
    assert text.count("| method |") == 1
    assert "early exit" not in text
