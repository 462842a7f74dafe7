"""Reports against NumPy, and their tables; comparisons against scipy."""

import csv
import dataclasses
import html.parser
import io
import json
import re

import keras
import numpy as np
import pytest
from keras import layers
from scipy import stats

import keras_selfdistill as ksd
from keras_selfdistill.evaluation.quality import BatchPredictions, Sums, flat_labels
from keras_selfdistill.evaluation.significance import sign_flip_p
from keras_selfdistill.graph.task import Task
from keras_selfdistill.reporting.report_result import Report, Row
from tests.conftest import require_backend, small_base, to_numpy

RANDOM = np.random.default_rng(5)
CLASSES = 7
IMAGES = RANDOM.normal(size=(26, 8, 8, 3)).astype("float32")
LABELS = RANDOM.integers(0, CLASSES, 26)
QUALITIES = ("accuracy", "top_5", "loss", "calibration_error", "agreement")


def spread(model):
    """Give every weight a size at which predictions differ."""
    random = np.random.default_rng(6)
    for weight in model.trainable_variables:
        weight.assign(random.normal(0, 0.4, weight.shape))
    return model


@pytest.fixture(scope="module")
def model():
    base = spread(small_base(classes=CLASSES))
    return spread(ksd.SelfDistiller(base, ["out_1"], "byot", head="linear"))


@pytest.fixture(scope="module")
def plain():
    keras.utils.set_random_seed(7)
    return small_base(classes=CLASSES)


@pytest.fixture(scope="module")
def found(model, plain):
    return ksd.report(
        model, (IMAGES, LABELS), base=plain, batch_size=8, repeats=3, verbose=0
    )


def expected_calibration_error(confidence, correct):
    """The definition of Guo et al., bin by bin, with 15 bins of equal width."""
    total = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            total += inside.mean() * gap
    return total


def by_numpy(probabilities, labels, final):
    best = np.argsort(-probabilities, axis=-1)
    correct = best[:, 0] == labels
    return {
        "accuracy": correct.mean(),
        "top_5": np.mean(
            [label in row[:5] for label, row in zip(labels, best, strict=True)]
        ),
        "loss": -np.log(probabilities[np.arange(len(labels)), labels]).mean(),
        "calibration_error": expected_calibration_error(
            probabilities.max(axis=-1), correct
        ),
        "agreement": (best[:, 0] == final.argmax(axis=-1)).mean(),
    }


def test_how_good_the_exits_are(model, plain, found):
    predictions = model.predict(IMAGES, verbose=0)
    predictions["ensemble"] = model.ensemble_model().predict(IMAGES, verbose=0)
    predictions["plain base"] = plain.predict(IMAGES, verbose=0)
    names = [row.name for row in found.rows]
    assert names == ["plain base", "exit_1", "final", "ensemble"]
    for name in names:
        expected = by_numpy(
            predictions[name].astype("float64"), LABELS, predictions["final"]
        )
        for key, value in expected.items():
            assert getattr(found[name], key) == pytest.approx(value, abs=1e-5), key
    assert len({row.loss for row in found.rows}) == len(names)
    assert 0 < found["exit_1"].agreement < found["final"].agreement == 1


def test_what_the_exits_cost(model, found, tmp_path):
    models = {"exit_1": model.exit_model("exit_1"), "final": model.final_model()}
    models["ensemble"] = model.ensemble_model()
    for name, part in models.items():
        part.save(tmp_path / "part.keras")
        row, cost = found[name], ksd.profile(model)[name]
        assert row.bytes == pytest.approx(
            (tmp_path / "part.keras").stat().st_size, 0.01
        )
        assert (row.macs, row.macs_ratio) == (cost.macs, cost.macs_ratio)
        assert row.parameters == part.count_params()
        assert row.milliseconds > 0
    assert found["plain base"].macs_ratio == 1
    assert (found.samples, found.batch_size, found.repeats) == (26, 1, 3)
    assert keras.backend.backend() in found.device


class Counted(keras.utils.PyDataset):
    """Batches that remember how often they are read."""

    def __init__(self):
        super().__init__()
        self.reads = []

    def __len__(self):
        return 4

    def __getitem__(self, i):
        self.reads.append(i)
        return IMAGES[7 * i : 7 * i + 7], LABELS[7 * i : 7 * i + 7]


def sources():
    yield "one-hot", (IMAGES, np.eye(CLASSES)[LABELS])
    yield "column", (IMAGES, LABELS[:, None], np.ones(26))
    yield "generator", (batch for batch in [(IMAGES[:20], LABELS[:20]), last()])
    yield "dataset", Counted()


def last():
    return IMAGES[20:], LABELS[20:]


@pytest.mark.parametrize("kind", ["one-hot", "column", "generator", "dataset"])
def test_data_of_every_kind(model, found, kind):
    data = dict(sources())[kind]
    again = ksd.report(model, data, repeats=0, verbose=0)
    for row in again.rows:
        for key in QUALITIES:
            value = getattr(found[row.name], key)
            assert getattr(row, key) == pytest.approx(value, abs=1e-6), (row.name, key)
    assert again["final"].milliseconds is None


def test_data_sets_and_loaders(model, found):
    require_backend("tensorflow")
    require_backend("torch")
    import tensorflow as tf
    import torch

    x, y = torch.tensor(IMAGES), torch.tensor(LABELS)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=13
    )
    data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(9)
    for each in (loader, data):
        again = ksd.report(model, each, repeats=0, verbose=0)
        assert again["exit_1"].loss == pytest.approx(found["exit_1"].loss, abs=1e-6)
        assert again.samples == 26


def test_the_data_is_read_once(model, plain):
    data = Counted()
    ksd.report(model, data, base=plain, repeats=1, verbose=0)
    assert sorted(data.reads) == [0, 1, 2, 3]


def test_a_progress_bar_or_silence(model, capsys):
    ksd.report(model, (IMAGES, LABELS), repeats=0, verbose=0)
    assert capsys.readouterr().out == ""
    ksd.report(model, (IMAGES, LABELS), repeats=1)
    shown = capsys.readouterr().out
    assert "/batch" in shown
    assert "/latency round" in shown


def head_of(task, units):
    """A network whose task is another, and labels for it."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, activation="relu", padding="same", name="tap")(inputs)
    x = layers.Conv2D(8, 3, activation="relu", padding="same")(x)
    task, *pixels = task.split()
    if not pixels:
        x = layers.GlobalAveragePooling2D()(x)
    ends = {"regression": None, "multiclass": "softmax"}
    x = layers.Dense(units, activation=ends.get(task, "sigmoid"))(x)
    base = keras.Model(inputs, x)
    return spread(ksd.SelfDistiller(base, ["tap"], "deep_supervision", task=task))


def yes_or_no(p, labels, final):
    correct = (p > 0.5) == labels
    return {
        "accuracy": correct.mean(),
        "loss": -np.where(labels, np.log(p), np.log1p(-p)).mean(),
        "calibration_error": expected_calibration_error(
            np.maximum(p, 1 - p).ravel(), correct.ravel()
        ),
        "agreement": ((p > 0.5) == (final > 0.5)).mean(),
        "top_5": None,
    }


def numbers(predictions, labels, final):
    error = predictions - labels
    found = {"loss": (error**2).mean(), "absolute_error": np.abs(error).mean()}
    return found | dict.fromkeys(("accuracy", "calibration_error", "agreement"))


def pixels(predictions, labels, final):
    flat = [each.reshape(-1, 3) for each in (predictions, final)]
    return by_numpy(flat[0], labels.ravel(), flat[1]) | {"top_5": None}


TASKS = {
    # task: (units, labels, what NumPy says)
    "multilabel": (4, RANDOM.integers(0, 2, (12, 4)), yes_or_no),
    "binary": (1, RANDOM.integers(0, 2, (12, 1)), yes_or_no),
    "regression": (2, RANDOM.normal(size=(12, 2)), numbers),
    "multiclass pixels": (3, RANDOM.integers(0, 3, (12, 8, 8)), pixels),
    "multilabel pixels": (2, RANDOM.integers(0, 2, (12, 8, 8, 2)), yes_or_no),
    "binary pixels": (1, RANDOM.integers(0, 2, (12, 8, 8, 1)), yes_or_no),
    "regression pixels": (2, RANDOM.normal(size=(12, 8, 8, 2)), numbers),
}


@pytest.mark.parametrize("task", TASKS)
def test_other_tasks(task):
    units, labels, by_hand = TASKS[task]
    model = head_of(task, units)
    x = IMAGES[:12]
    predictions = model.predict(x, verbose=0)
    predictions["ensemble"] = model.ensemble_model().predict(x, verbose=0)
    found = ksd.report(model, (x, labels), repeats=0, batch_size=5, verbose=0)
    for name, prediction in predictions.items():
        expected = by_hand(prediction.astype("float64"), labels, predictions["final"])
        for key, value in expected.items():
            shown = getattr(found[name], key)
            assert shown == (value if value is None else pytest.approx(value, 1e-4)), (
                key
            )
    classes = not task.startswith("regression")
    assert ("crossentropy" in found.render()) == classes
    assert ("ECE" in found.render()) == classes
    label = "accuracy" if classes else "mean absolute error"
    assert found.plot().axes[0].get_ylabel() == label


@pytest.mark.once
@pytest.mark.parametrize("task", TASKS)
def test_other_tasks_are_compared(task):
    """Each difference is that of what NumPy says of both."""
    units, labels, by_hand = TASKS[task]
    x = IMAGES[:12]
    models = {name: head_of(task, units) for name in ("one", "other")}
    for weight in models["other"].trainable_variables:
        weight.assign(-0.7 * to_numpy(weight))
    found = ksd.compare(models, (x, labels), repeats=0, batch_size=12, verbose=0)
    expected = {}
    for name, model in models.items():
        predictions = model.predict(x, verbose=0)
        for exit_name, prediction in predictions.items():
            expected[name, exit_name] = by_hand(
                prediction.astype("float64"), labels, predictions["final"]
            )
    lines = {(line.run, line.exit): line for line in found.lines}
    assert lines.keys() == expected.keys() | {(name, "ensemble") for name in models}
    main = "absolute_error" if task.startswith("regression") else "accuracy"
    for exit_name in ("exit_1", "final"):
        one, other = (expected[name, exit_name] for name in models)
        line = lines["other", exit_name]
        assert line.against == ("one", exit_name)
        known = {key for key in (main, "loss", "calibration_error") if key in other}
        known = {key for key in known if other[key] is not None}
        assert {main} <= known <= line.numbers.keys()
        for key in known:
            summary = line.numbers[key]
            assert summary.mean == pytest.approx(other[key], rel=1e-4)
            difference = other[key] - one[key]
            assert summary.difference == pytest.approx(difference, rel=1e-3, abs=1e-6)
    assert "other" in found.render()


def test_padding_is_no_part_of_an_answer():
    """A masked text classifier: the report is that of what it predicts."""
    is_word = np.arange(6) < RANDOM.integers(2, 7, (26, 1))
    words = np.where(is_word, LABELS[:, None] + 1, 0)
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(CLASSES + 1, 8, mask_zero=True)(inputs)
    x = layers.LSTM(8, return_sequences=True, name="tap")(x)
    x = layers.LSTM(8)(x)
    base = keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(x))
    model = spread(ksd.SelfDistiller(base, ["tap"], "deep_supervision", head="linear"))
    found = ksd.report(model, (words, LABELS), repeats=0, batch_size=5, verbose=0)
    predictions = {
        name: prediction.astype("float64")
        for name, prediction in model.predict(words, verbose=0).items()
    }
    assert not np.array_equal(predictions["exit_1"], predictions["final"])
    for name, prediction in predictions.items():
        expected = by_numpy(prediction, LABELS, predictions["final"])
        for key, value in expected.items():
            assert getattr(found[name], key) == pytest.approx(value, abs=1e-5), key


@pytest.mark.once
def test_logits_far_from_zero_stay_finite():
    task = Task("binary", 1, "sigmoid")
    sums = Sums()
    labels = flat_labels(np.array([0, 1]), task)
    sums.add(BatchPredictions(np.array([[2000.0], [2000.0]]), task), labels)
    assert sums.quality().loss == 1000
    assert sums.quality().calibration_error == 0.5


@pytest.mark.once
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["multiclass", "binary"])
def test_what_is_no_number_is_never_right(kind, bad):
    """Half of the samples have predictions; of the others no accuracy may be given."""
    units = 7 if kind == "multiclass" else 1
    task = Task(kind, units, "softmax" if units > 1 else "sigmoid")
    logits = RANDOM.normal(size=(40, units))
    predicted = logits.argmax(axis=-1) if units > 1 else (logits[:, 0] > 0) * 1
    labels = np.where(np.arange(40) < 20, predicted, 0)  # What argmax makes of NaN.
    logits[20:] = bad
    sums = Sums()
    predictions = BatchPredictions(logits, task)
    sums.add(predictions, flat_labels(labels, task), predictions)
    found = sums.quality()
    if kind == "binary" and np.isinf(bad):  # An infinite logit is a certain prediction.
        assert found.accuracy == (0.5 if bad > 0 else 1.0)
        assert found.loss == np.inf if bad > 0 else np.isfinite(found.loss)
        assert found.agreement == 1.0
        return
    assert found.accuracy == found.agreement == 0.5
    assert found.top_5 == (0.5 if units > 1 else None)
    assert np.isnan(found.loss)
    assert np.isnan(found.calibration_error)


@pytest.mark.once
def test_a_class_that_is_ruled_out_is_no_missing_answer():
    task, sums = Task("multiclass", 6, "softmax"), Sums()
    logits = np.array([[1.0, 2.0, 3.0, -np.inf, -np.inf, -np.inf]])
    sums.add(BatchPredictions(logits, task), flat_labels(np.array([2]), task))
    found = sums.quality()
    assert (found.accuracy, found.top_5) == (1.0, 1.0)
    assert found.loss == pytest.approx(-np.log(np.exp(3) / np.exp([1, 2, 3]).sum()))


def test_a_report_of_a_network_of_nan():
    base = small_base(classes=CLASSES)
    base.get_layer("predictions").bias.assign(np.full(CLASSES, np.nan))
    found = ksd.report(base, (IMAGES, 0 * LABELS), repeats=0, verbose=0)
    assert found["final"].accuracy == found["final"].top_5 == 0
    assert np.isnan(found["final"].loss)
    both = ksd.compare({"a": [found, found], "b": [found, found]})
    summary = both.lines[1].numbers["loss"]
    assert np.isnan([summary.mean, summary.difference, summary.p]).all()


@pytest.mark.once
def test_a_head_that_reads_the_whole_base_has_no_model_of_its_exits():
    model = ksd.SelfDistiller(small_base(), ["out_1"], "teskd")
    found = ksd.report(model, (IMAGES, LABELS % 4), repeats=1, verbose=0)
    row = found["exit_1"]
    assert row.accuracy is not None
    assert row.parameters is row.macs_ratio is row.milliseconds is row.bytes is None
    assert "–" in found.render()
    assert {text.get_text() for text in found.plot().axes[0].texts} == {"final"}


@pytest.mark.once
@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ((IMAGES, None), {}, "needs labels"),
        ((IMAGES, LABELS + 3), {}, "values from"),
        ((IMAGES[:0], LABELS[:0]), {}, "needs samples"),
        (IMAGES, {}, "tuple"),
        ([IMAGES, LABELS], {}, "tuple"),
        (
            (IMAGES, LABELS),
            {"base": small_base(size=9, classes=CLASSES)},
            "same network",
        ),
        ((IMAGES, LABELS), {"repeats": -1}, "repeats=-1"),
        ((IMAGES, LABELS), {"task": "binary"}, "that of the wrapper"),
    ],
)
def test_what_is_refused(model, data, options, message):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        ksd.report(model, data, verbose=0, **options)
    assert "Received" in str(caught.value)
    assert "Expected" in str(caught.value) or "must" in str(caught.value)


@pytest.mark.once
def test_masked_positions_are_refused():
    inputs = keras.Input((6, 3))
    x = layers.Masking()(inputs)
    x = layers.LSTM(4, return_sequences=True)(x)
    tagger = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    data = np.zeros((4, 6, 3)), np.zeros((4, 6), int)
    with pytest.raises(ValueError, match="masked outputs"):
        ksd.report(tagger, data, verbose=0)


def row(name, accuracy=0.9, **changes):
    values = dict.fromkeys([field.name for field in dataclasses.fields(Row)])
    values |= {"name": name, "accuracy": accuracy, "unknown": ()} | changes
    return Row(**values)


def report_of(*rows, samples=100):
    return Report("net", "multiclass", samples, rows, 0, 1, "cpu")


@pytest.mark.once
def test_the_widest_table_fits_and_is_aligned():
    wide = {
        "top_5": 1.0,
        "loss": 12.3456,
        "calibration_error": 1.0,
        "agreement": 1.0,
        "parameters": 143_667_240,
        "macs": 15_470_264_320,
        "macs_ratio": 1.0,
        "milliseconds": 1234.56,
        "bytes": 574_710_816,
        "unknown": ("backbone/fourier",),
    }
    rows = [row(f"exit_{i:02}", 1.0, **wide) for i in range(1, 12)]
    found = report_of(row("plain base", 1.0, **wide), *rows, row("final"))
    lines = found.render().splitlines()
    assert max(map(len, lines)) <= 100
    assert "≥ 15.5 G" in lines[3]
    assert "backbone/fourier" in lines[-1]
    table = lines[2 : 2 + 1 + 13]
    assert {len(line) for line in table} == {len(table[0])}


class Cells(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_data(self, data):
        self.found.append(data)


def test_other_forms(found):
    row_of = found["exit_1"]
    assert json.loads(json.dumps(found.to_dict()))["rows"][1]["loss"] == row_of.loss
    lines = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [line["name"] for line in lines] == [each.name for each in found.rows]
    assert float(lines[1]["loss"]) == row_of.loss
    table = [line for line in found.to_markdown().splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(found.rows)
    assert len({line.count("|") for line in table}) == 1
    cells = Cells(found._repr_html_()).found
    assert f"{row_of.accuracy:.2%}" in cells
    assert "<b>" not in report_of(row("<b>x</b>"))._repr_html_().split("<tbody>")[1]
    figure = found.plot()
    (line, *points) = figure.axes[0].lines
    expected = [
        (found[name].macs_ratio, found[name].accuracy) for name in ("exit_1", "final")
    ]
    np.testing.assert_allclose(line.get_xydata(), expected)
    names = ["plain base", "exit_1", "final", "ensemble"]
    assert [each.get_label() for each in points] == names
    assert repr(found).startswith("Report('small', 26 samples")
    with pytest.raises(KeyError, match="exit_1"):
        found["exit_9"]


@pytest.mark.once
@pytest.mark.parametrize("count", [2, 3, 5, 6, 10])
def test_the_paired_test_is_scipys_permutation_test(count):
    differences = np.random.default_rng(count).normal(0.3, 1, count)
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert sign_flip_p(differences) == pytest.approx(expected)


@pytest.mark.once
def test_the_paired_test_of_many_pairs():
    random = np.random.default_rng(1)
    assert sign_flip_p(random.normal(2, 1, 30)) < 1e-4
    assert sign_flip_p(np.tile([1.0, -1.0], 15)) == 1
    assert sign_flip_p([0.0, 0.0]) == 1


@pytest.mark.once
def test_runs_of_several_seeds():
    plain = [report_of(row("final", each)) for each in (0.90, 0.92, 0.94)]
    byot = [
        report_of(
            row("exit_1", each - 0.1, macs_ratio=0.5),
            row("final", each, macs_ratio=1.0),
        )
        for each in (0.91, 0.95, 0.95)
    ]
    found = ksd.compare({"plain": plain, "byot": byot})
    lines = {(line.run, line.exit): line for line in found.lines}
    assert list(lines) == [("byot", "exit_1"), ("plain", "final"), ("byot", "final")]
    summary = lines["byot", "final"].numbers["accuracy"]
    assert summary.mean == pytest.approx(np.mean([0.91, 0.95, 0.95]))
    assert summary.deviation == pytest.approx(np.std([0.91, 0.95, 0.95], ddof=1))
    assert summary.difference == pytest.approx(0.05 / 3)
    assert summary.p == 0.25  # All three pairs are above 0: two of eight signs.
    assert lines["byot", "exit_1"].against == ("plain", "final")
    assert lines["plain", "final"].against is None
    text = found.render()
    assert "+1.67" in text
    assert "too few pairs" in text
    assert max(map(len, text.splitlines())) <= 100
    assert json.loads(json.dumps(found.to_dict()))["reports"]["byot"][2]["rows"]
    lines = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert {line["number"] for line in lines} == {"accuracy", "macs_ratio"}
    assert "+1.67" in found.to_markdown()
    assert "+1.67" in found._repr_html_()


@pytest.mark.once
def test_exits_are_compared_by_number_also_where_their_names_have_zeros():
    three = report_of(*[row(f"exit_{i}", i / 10) for i in (1, 2)], row("final", 0.9))
    ten = report_of(
        *[row(f"exit_{i:02}", i / 20) for i in range(1, 11)], row("final", 0.8)
    )
    found = ksd.compare({"three": three, "ten": ten})
    lines = {(line.run, line.exit): line for line in found.lines}
    assert lines["ten", "exit_01"].against == ("three", "exit_1")
    difference = lines["ten", "exit_02"].numbers["accuracy"].difference
    assert difference == pytest.approx(0.1 - 0.2)
    assert lines["ten", "exit_03"].against == ("three", "final")
    order = [(line.run, line.exit) for line in found.lines]
    assert order[:3] == [("three", "exit_1"), ("ten", "exit_01"), ("three", "exit_2")]
    assert order[-3:] == [("ten", "exit_10"), ("three", "final"), ("ten", "final")]
    back = ksd.compare({"ten": ten, "three": three})
    lines = {(line.run, line.exit): line for line in back.lines}
    assert lines["three", "exit_2"].against == ("ten", "exit_02")


@pytest.mark.once
def test_runs_of_one_seed_or_unequal_numbers_have_no_test():
    one = report_of(row("final", 0.9))
    found = ksd.compare({"plain": one, "byot": [one, one]})
    assert all(line.numbers["accuracy"].p is None for line in found.lines)
    assert "sign-flip" not in found.render()


def test_models_are_compared(model, plain, found, capsys):
    runs = {"plain": plain, "byot": [model, found]}
    both = ksd.compare(runs, (IMAGES, LABELS), repeats=0)
    shown = capsys.readouterr().out
    assert re.findall(r"\w+, \d of \d", shown) == ["plain, 1 of 1", "byot, 1 of 2"]
    assert both.reports["plain"][0]["final"].loss == pytest.approx(
        found["plain base"].loss
    )
    assert [line.run for line in both.lines if line.exit == "final"] == [
        "plain",
        "byot",
    ]


@pytest.mark.once
@pytest.mark.parametrize(
    ("runs", "data", "message"),
    [
        ([1], None, "must be a mapping"),
        ({}, None, "Every run"),
        ({"a": []}, None, "Every run"),
        ({"a": small_base()}, None, "data=None"),
        ({"a": small_base(), "b": small_base()}, iter([]), "can be read only once"),
        (
            {"a": report_of(row("final")), "b": report_of(row("final"), samples=1)},
            None,
            "same task and number of samples",
        ),
        (
            {"a": [report_of(row("final")), report_of(row("exit_1"), row("final"))]},
            None,
            "same exits",
        ),
    ],
)
def test_comparisons_that_are_refused(runs, data, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ksd.compare(runs, data, verbose=0)


@pytest.mark.once
def test_runs_keep_their_names_and_what_all_their_seeds_know():
    slow, fast = row("final", milliseconds=2.0), row("final")
    names = [f"resnet50_self_distilled_{kind}_alpha" for kind in ("byot", "teskd", "x")]
    runs = {name: [report_of(slow), report_of(fast)] for name in [*names, "fourth_run"]}
    found = ksd.compare(runs)
    assert "milliseconds" not in found.lines[0].numbers
    text = found.render()
    assert max(map(len, text.splitlines())) <= 100
    assert "resnet50_self_distilled…" in text


def test_a_plain_base_that_ends_in_a_model_within():
    backbone = keras.Sequential([keras.Input((3,)), layers.Dense(4)], name="backbone")
    end = keras.Sequential([keras.Input((4,)), layers.Dense(3, "softmax")], name="end")
    plain = keras.Sequential([keras.Input((3,)), backbone, end])
    every = [*plain._flatten_layers()]
    x, y = RANDOM.normal(size=(8, 3)).astype("float32"), np.arange(8) % 3
    counts = set()
    for _ in range(3):
        found = ksd.report(plain, (x, y), repeats=0, verbose=0)
        counts.add(tuple(len(layer._outbound_nodes) for layer in every))
    right = plain.predict(x, verbose=0).argmax(axis=-1) == y
    assert found["final"].accuracy == right.mean()
    assert len(counts) == 1  # Nothing is left in the user's layers.


@pytest.mark.once
def test_a_model_that_keras_cannot_save_has_no_size():
    class Swish:
        def __call__(self, x):
            return x * keras.ops.sigmoid(x)

    hidden = layers.Dense(4, activation=Swish())
    plain = keras.Sequential([keras.Input((3,)), hidden, layers.Dense(3, "softmax")])
    x, y = RANDOM.normal(size=(8, 3)).astype("float32"), np.arange(8) % 3
    assert ksd.report(plain, (x, y), repeats=0, verbose=0)["final"].bytes is None


@pytest.mark.parametrize(
    "labels", [np.full((6, 4), 0.25), np.eye(6, 4) + np.eye(6, 4, 1)]
)
def test_rows_that_are_not_one_hot_are_refused(labels):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(4, activation="softmax")(inputs))
    x = RANDOM.normal(size=(6, 3)).astype("float32")
    with pytest.raises(ValueError, match=r"not one-hot(.|\n)*argmax"):
        ksd.report(model, (x, labels), repeats=0, verbose=0)


@pytest.mark.parametrize(("units", "task"), [(1, "binary"), (4, "multilabel")])
def test_a_plain_model_is_reported_on_as_it_was_compiled(units, task):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(units)(inputs))
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    x = RANDOM.normal(size=(12, 3)).astype("float32")
    y = RANDOM.integers(0, 2, (12, units))
    with pytest.raises(ValueError, match=f"Expected: task='{task}' where"):
        ksd.report(model, (x, y), repeats=0, verbose=0)
    found = ksd.report(model, (x, y), task=task, repeats=0, verbose=0)
    assert found["final"].loss == pytest.approx(model.evaluate(x, y, verbose=0), 1e-5)
