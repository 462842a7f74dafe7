"""Early exit against running everything and choosing afterwards."""

import concurrent.futures
import importlib.util
import re

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.early_exit.result import EarlyExitResult
from keras_selfdistill.early_exit.scheduler import (
    Chunk,
    SectionQueues,
    bucket_sizes,
    next_bucket,
    run_sections,
)
from keras_selfdistill.early_exit.thresholds.frontier import ExitShares
from keras_selfdistill.reporting import latency
from tests.conftest import long_on, miss, require_backend, small_base, to_numpy

TAPS = ["stem_relu", "out_1"]
NAMES = ["exit_1", "exit_2", "final"]


@keras.saving.register_keras_serializable(package="tests")
def squares(probabilities):
    """A criterion of one's own: the chance that two draws agree."""
    return (probabilities**2).sum(axis=-1)


def make_model(activation="softmax"):
    keras.utils.set_random_seed(5)
    model = ksd.SelfDistiller(small_base(activation), TAPS, "byot")
    random = np.random.default_rng(3)
    for layer in model.layers:  # Exits that are surer of some samples than of others.
        if layer.name in ("predictions", "exit_1_logits", "exit_2_logits"):
            kernel, bias = layer.get_weights()
            layer.set_weights([3 * random.normal(size=kernel.shape), bias])
    return model


@pytest.fixture(scope="module", params=["softmax", None], ids=["softmax", "logits"])
def model(request):
    return make_model(request.param)


@pytest.fixture(scope="module")
def probable():
    return make_model()


@pytest.fixture(scope="module")
def compiled(probable):
    """One early exit for many tests, so that its sections compile once."""
    return ksd.EarlyExit(probable)


@pytest.fixture
def fast(compiled):
    """An early exit without thresholds."""
    compiled._thresholds = compiled._outcomes = compiled.calibration = None
    return compiled


def data(samples, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(samples, 8, 8, 3)).astype("float32")
    return x, random.integers(0, 4, samples)


def labelled(model, samples):
    """Samples with labels of which the base knows nine of ten."""
    x, y = data(samples)
    known = model.final_model().predict(x, verbose=0).argmax(axis=-1)
    return x, np.where(np.arange(samples) % 10, known, y)


def softmax(rows):
    rows = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return rows / rows.sum(axis=-1, keepdims=True)


def score(criterion, rows, before):
    """The criteria, one sample after another."""
    found = []
    for i, row in enumerate(rows):
        ordered = sorted(row)
        if criterion == "confidence":
            found.append(ordered[-1])
        elif criterion == "margin":
            found.append(ordered[-1] - ordered[-2])
        elif criterion == "entropy":
            found.append(1 + sum(p * np.log(p) for p in row) / np.log(len(row)))
        elif criterion == "patience":
            agreed = 1
            for earlier in reversed(before):
                if earlier[i].argmax() != row.argmax():
                    break
                agreed += 1
            found.append(agreed)
        else:
            found.append(sum(p * p for p in row))
    return np.array(found)


def run_everything(model, x, criterion, scores_from, last_resort):
    """Answers (exits, samples, classes) and scores (exits, samples) of every exit."""
    network = model.exit_graph.training_network.predict(x, verbose=0)["exits"]
    logits = [network[name]["logits"].astype("float64") for name in model.exit_names]
    means = [np.mean(logits[: i + 1], axis=0) for i in range(len(logits))]
    answers = means if scores_from == "running_mean" else logits
    answers = answers[:-1] + (means if last_resort == "ensemble" else logits)[-1:]
    rows = [softmax(answer) for answer in answers]
    scores = [score(criterion, row, rows[:i]) for i, row in enumerate(rows)]
    is_softmax = (
        model.exit_graph.base.layers[-1].activation is keras.activations.softmax
    )
    return np.array(rows if is_softmax else answers), np.array(scores)


def choose_afterwards(answers, scores, thresholds):
    """Number of the exit, prediction and score of each sample."""
    limits = [*thresholds, -np.inf]
    found = []
    for i in range(answers.shape[1]):
        number = next(k for k in range(len(limits)) if scores[k, i] >= limits[k])
        found.append((number, answers[number, i], scores[number, i]))
    return map(np.array, zip(*found, strict=True))


def quantiles(scores, shares):
    """Thresholds halfway between two scores, so that rounding changes nothing."""
    found = []
    for row, share in zip(scores, shares, strict=False):
        values = np.unique(row.round(5))
        place = min(int(share * len(values)), len(values) - 2)
        found.append(values[place : place + 2].mean())
    return found


@long_on("jax", "tensorflow")
@pytest.mark.parametrize(
    ("criterion", "scores_from", "last_resort"),
    [
        ("confidence", "exit", "final"),
        ("confidence", "running_mean", "ensemble"),
        ("margin", "running_mean", "final"),
        ("entropy", "exit", "ensemble"),
        ("patience", "exit", "final"),
        ("patience", "running_mean", "ensemble"),
        (squares, "exit", "final"),
    ],
)
def test_equal_to_running_everything(model, criterion, scores_from, last_resort):
    x, _ = data(45)
    fast = ksd.EarlyExit(
        model, criterion, scores_from=scores_from, last_resort=last_resort
    )
    answers, scores = run_everything(model, x, criterion, scores_from, last_resort)
    if criterion == "patience":
        settings = [[1.5, 1.5], [2, 2], [0, 0], [3, 3]]
    else:
        settings = [quantiles(scores, shares) for shares in ([0.5, 0.4], [0.9, 0.1])]
    for thresholds in settings:
        fast.thresholds = thresholds
        numbers, predictions, chosen = choose_afterwards(answers, scores, thresholds)
        for batch_size in (1, 7, 16):
            result = fast.predict(x, batch_size=batch_size)
            names = np.array([*NAMES[:-1], last_resort])[numbers]
            np.testing.assert_array_equal(result.exits, names)
            np.testing.assert_allclose(result.predictions, predictions, atol=1e-4)
            np.testing.assert_allclose(result.scores, chosen, atol=1e-4)
            costs = [fast.macs_ratios[name] for name in names]
            assert result.macs_ratio == pytest.approx(np.mean(costs))


@pytest.mark.once
def test_the_cost_of_an_exit_counts_all_heads_before_it(probable):
    costs = ksd.EarlyExit(probable).macs_ratios
    profile = ksd.profile(probable)
    assert list(costs) == NAMES
    assert costs["exit_1"] == pytest.approx(profile["exit_1"].macs_ratio)
    assert costs["exit_2"] > profile["exit_2"].macs_ratio
    assert costs["final"] == pytest.approx(profile["ensemble"].macs_ratio)
    ensemble = ksd.EarlyExit(probable, last_resort="ensemble").macs_ratios
    assert list(ensemble.values()) == pytest.approx(list(costs.values()))


@pytest.mark.parametrize("samples", [0, 1, 2, 9, 33])
@pytest.mark.parametrize("threshold", [-np.inf, 0.6, np.inf])
def test_any_number_of_samples_and_of_exiting(probable, fast, samples, threshold):
    x, _ = data(samples)
    fast.thresholds = threshold
    result = fast.predict(x, batch_size=8)
    assert result.predictions.shape == (samples, 4)
    assert result.predictions.dtype == "float32"
    assert result.exits.shape == result.scores.shape == (samples,)
    if not samples:
        assert result.macs_ratio == 0.0
    elif threshold == -np.inf:
        assert set(result.exits) == {"exit_1"}
        assert result.macs_ratio == pytest.approx(
            ksd.profile(probable)["exit_1"].macs_ratio
        )
    elif threshold == np.inf:
        assert set(result.exits) == {"final"}
        expected = probable.final_model().predict(x, verbose=0)
        np.testing.assert_allclose(result.predictions, expected, atol=1e-5)


def counted(fast, monkeypatch):
    """Count the rows that every section computes."""
    rows = {name: [] for name in fast.exit_names}

    def count(section, found):
        def call(tensors):
            found.append(len(tensors[0]))
            return section(tensors)

        return call

    sections = fast._cascade._sections
    counting = [
        count(section, found)
        for section, found in zip(sections, rows.values(), strict=True)
    ]
    monkeypatch.setattr(fast._cascade, "_sections", counting)
    return rows


def test_samples_that_exited_are_not_computed(probable, fast, monkeypatch):
    x, _ = data(128)
    _, scores = run_everything(probable, x, "confidence", "exit", "final")
    fast.thresholds = quantiles(scores, [0.5, 0.5])
    rows = counted(fast, monkeypatch)
    left = fast.predict(x, batch_size=16).exits
    reached = [128, np.sum(left != "exit_1"), np.sum(left == "final")]
    for number, computed in zip(reached, rows.values(), strict=True):
        # Full batches, then a few smaller ones for the rest: little padding.
        assert number <= sum(computed) <= number + 4
        assert computed.count(16) == number // 16 or computed.count(16) == -(
            -number // 16
        )


@pytest.mark.once
def test_compaction_is_skipped_where_it_does_not_pay(probable, fast, monkeypatch):
    from keras_selfdistill.early_exit import scheduler

    gathered = []
    gather = scheduler.gather_rows
    monkeypatch.setattr(
        scheduler, "gather_rows", lambda *args: gathered.append(1) or gather(*args)
    )
    x, _ = data(16)
    _, scores = run_everything(probable, x, "confidence", "exit", "final")
    first, second = np.sort(scores[0])[-3:-1]  # Two of sixteen leave.
    fast.thresholds = [(first + second) / 2, np.inf]
    rows = counted(fast, monkeypatch)
    result = fast.predict(x, batch_size=16)
    assert np.sum(result.exits == "exit_1") == 2
    assert list(rows.values()) == [[16], [16], [16]]
    assert not gathered


def test_nothing_is_compiled_after_warm_up(probable):
    x, _ = data(150)
    fast = ksd.EarlyExit(probable, thresholds=0.6).warm_up(32)
    compiled = fast.compile_count
    if keras.backend.backend() == "torch":
        assert compiled == 0
    else:
        assert compiled == 3 * len(bucket_sizes(32)) == 18
    for samples in (1, 5, 31, 32, 33, 150):
        for threshold in (0.4, 0.6, 0.8):
            fast.thresholds = threshold
            fast.predict(x[:samples], batch_size=32)
    assert fast.compile_count == compiled


def test_weights_that_change_are_seen():
    model = make_model()
    x, y = data(16)
    fast = ksd.EarlyExit(model, thresholds=np.inf)
    before = fast.predict(x).predictions
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    model.fit(x, y, verbose=0)
    after = fast.predict(x).predictions
    assert np.abs(after - before).max() > 1e-3
    expected = model.final_model().predict(x, verbose=0)
    np.testing.assert_allclose(after, expected, atol=1e-5)


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return -(-len(self.x) // 10)

    def __getitem__(self, i):
        return self.x[10 * i : 10 * i + 10], self.y[10 * i : 10 * i + 10]


def as_tf_data(x, y):
    require_backend("tensorflow")
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((x, y)).batch(10)


def as_loader(x, y):
    require_backend("torch")
    import torch

    pairs = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
    return torch.utils.data.DataLoader(pairs, batch_size=10)


SOURCES = {
    "arrays": lambda x, y: (x, y),
    "tensors": lambda x, y: (keras.ops.convert_to_tensor(x), y),
    "dict": lambda x, y: ({"image": x}, y),
    "float64": lambda x, y: (x.astype("float64"), y[:, None]),
    "one-hot": lambda x, y: (x, np.eye(4)[y]),
    "tf.data": as_tf_data,
    "loader": as_loader,
    "PyDataset": Batches,
    "generator": lambda x, y: ((x[i : i + 9], y[i : i + 9]) for i in range(0, 42, 9)),
    "unequal": lambda x, y: iter(
        [(x[:1], y[:1]), (x[1:40], y[1:40]), (x[40:], y[40:])]
    ),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_all_kinds_of_data(fast, kind):
    x, y = data(42)
    goal = {"macs_budget": 0.8}
    calibrated = fast.calibrate(x, y, **goal).calibration
    fast.thresholds = 0.6
    expected = fast.predict(x)
    source = SOURCES[kind](x, y)
    is_pair = isinstance(source, tuple)
    result = fast.predict(source[0] if is_pair else source, batch_size=8)
    np.testing.assert_array_equal(result.exits, expected.exits)
    np.testing.assert_allclose(result.predictions, expected.predictions, atol=1e-5)
    source = SOURCES[kind](x, y)
    fast.calibrate(*(source if is_pair else (source,)), batch_size=8, **goal)
    assert fast.calibration.thresholds == pytest.approx(calibrated.thresholds)
    assert fast.calibration.accuracy == calibrated.accuracy


@pytest.mark.once
@pytest.mark.parametrize("structure", ["list", "dict"])
def test_several_inputs(structure):
    image, table = keras.Input((8, 8, 3), name="image"), keras.Input((4,), name="table")
    x = layers.Conv2D(4, 3, name="tap")(image)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(x))
    x = layers.Concatenate()([x, layers.Dense(3)(table)])
    inputs = [table, image] if structure == "list" else {"table": table, "image": image}
    base = keras.Model(inputs, layers.Dense(3, "softmax")(x))
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
    images, _ = data(21)
    tables = np.random.default_rng(1).random((21, 4), "float32")
    fast = ksd.EarlyExit(model, thresholds=np.inf)
    given = {"table": tables, "image": images}
    expected = base.predict(
        [tables, images] if structure == "list" else given, verbose=0
    )
    forms = [given, {"image": images, "table": tables}]
    if structure == "list":
        forms += [(tables, images), [tables, images]]
    for form in forms:
        result = fast.predict(form, batch_size=8)
        np.testing.assert_allclose(result.predictions, expected, atol=1e-5)
    fast.thresholds = 0.5
    assert len(fast.predict(given, batch_size=8).exits) == 21
    with pytest.raises(ValueError, match=r"keys \['image', 'tabel'\]"):
        fast.predict({"image": images, "tabel": tables})
    with pytest.raises(ValueError, match=r"2[01] of '.*', 2[01] of '"):
        fast.predict({"image": images[1:], "table": tables})
    with pytest.raises(ValueError, match=r"2 inputs\. Received: 1"):
        fast.predict(images)
    picked = ksd.pick_exit(model, 1e6, given, repeats=1)
    assert picked.name == "final"


def test_threads_get_their_own_results(probable, fast):
    x, _ = data(40)
    fast.thresholds = 0.6
    expected = fast.predict(x)
    fresh = ksd.EarlyExit(probable, thresholds=0.6)  # Compiled by whoever is first.

    def request(i):
        i %= 40
        result = fresh.predict(x[i : i + 1], batch_size=1)
        return i, result.exits[0], result.predictions[0]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(request, range(200)))
    for i, name, prediction in answers:
        assert name == expected.exits[i]
        np.testing.assert_allclose(prediction, expected.predictions[i], atol=1e-5)
    if keras.backend.backend() != "torch":
        assert fresh.compile_count <= 3


@pytest.mark.once
def test_calibration_reaches_its_goal_on_its_data(model, monkeypatch):
    x, y = labelled(model, 120)
    fast = ksd.EarlyExit(model).calibrate(x, y, max_accuracy_drop=0.02)
    found = fast.calibration
    answers, _ = run_everything(model, x, "confidence", "exit", "final")
    assert found.base_accuracy == np.mean(answers[-1].argmax(axis=-1) == y)
    result = fast.predict(x, batch_size=16)
    accuracy = np.mean(result.predictions.argmax(axis=-1) == y)
    assert accuracy == found.accuracy >= found.base_accuracy - 0.02
    assert result.macs_ratio == pytest.approx(found.macs_ratio)
    # Another goal needs no second pass.
    rows = counted(fast, monkeypatch)
    fast.calibrate(macs_budget=0.7)
    assert fast.calibration.macs_ratio <= 0.7
    assert not any(rows.values())
    fast.calibrate(macs_budget=0.7, guarantee=0.9)
    assert fast.calibration.accuracy_drop_bound < 1
    assert fast.calibration.samples == 60


@pytest.mark.once
def test_the_drop_is_against_the_base_also_for_the_ensemble(probable):
    x, y = data(60)
    fast = ksd.EarlyExit(probable, last_resort="ensemble")
    fast.calibrate(x, y, macs_budget=2.0)
    final = probable.final_model().predict(x, verbose=0).argmax(axis=-1)
    assert fast.calibration.base_accuracy == np.mean(final == y)


@pytest.mark.once
def test_the_frontier_is_data_and_a_picture(probable, fast, tmp_path):
    x, y = labelled(probable, 80)
    fast.calibrate(x, y, macs_budget=0.7)
    front = fast.frontier()
    assert len(front) == len(front.thresholds) > 1
    used = fast.calibration
    assert front.chosen == pytest.approx((used.macs_ratio, used.accuracy))
    assert np.all(np.diff(front.macs_ratio) > 0)
    assert np.all(np.diff(front.accuracy) > 0)
    for row in (0, len(front) - 1):
        fast.thresholds = front.thresholds[row]
        result = fast.predict(x)
        assert result.macs_ratio == pytest.approx(front.macs_ratio[row])
        assert np.mean(result.predictions.argmax(-1) == y) == front.accuracy[row]
    own = fast.frontier(per_exit=True)
    assert own.accuracy.max() >= front.accuracy.max()
    if importlib.util.find_spec("matplotlib") is None:
        miss("matplotlib is not installed")
    figure = front.plot()
    figure.savefig(tmp_path / "front.svg")
    assert (tmp_path / "front.svg").stat().st_size > 1000
    assert "share of the base" in figure.axes[0].get_xlabel()
    assert fast.exit_shares(points=5).plot().axes[0].get_ylim() == (0, 1)


@pytest.mark.once
def test_exit_shares_are_where_predict_lets_samples_exit(probable, fast):
    x, y = labelled(probable, 80)
    fast.calibrate(x, y, macs_budget=0.7)
    shares = fast.exit_shares(points=5)
    assert shares.chosen == tuple(fast.thresholds.values())
    assert len(set(shares.chosen)) == 1
    assert shares.exit_names == tuple(NAMES)
    for threshold, expected in list(
        zip(shares.thresholds, shares.shares, strict=True)
    )[
        1:4  # Not where rounding decides.
    ]:
        fast.thresholds = threshold
        exits = fast.predict(x).exits
        found = [np.mean(exits == name) for name in NAMES]
        np.testing.assert_allclose(expected, found, atol=1e-12)
    assert len({tuple(row) for row in shares.shares.round(6)}) > 2
    fast.thresholds = [0.2, 0.9]
    assert fast.exit_shares().chosen == (0.2, 0.9)


@pytest.mark.once
def test_a_picture_without_matplotlib_says_what_to_install(fast, monkeypatch):
    x, y = data(20)
    front = fast.calibrate(x, y, macs_budget=0.7).frontier()
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        front.plot()


def test_mixed_precision(mixed_precision):
    mixed_precision("mixed_bfloat16")
    model = make_model()
    x, _ = data(20)
    for kwargs in ({}, {"last_resort": "ensemble"}):
        fast = ksd.EarlyExit(model, thresholds=np.inf, **kwargs)
        result = fast.predict(x, batch_size=8)
        cut = model.ensemble_model() if kwargs else model.final_model()
        expected = to_numpy(cut(x, training=False)).astype("float32")
        np.testing.assert_allclose(result.predictions, expected, atol=0.02)


@pytest.fixture(scope="module")
def saved(probable, tmp_path_factory):
    """An early exit and the file it was saved to."""
    x, y = data(60)
    fast = ksd.EarlyExit(probable, "margin", scores_from="running_mean")
    fast.calibrate(x, y, macs_budget=0.8, guarantee=0.9)
    path = tmp_path_factory.mktemp("files") / "model.earlyexit"
    fast.save(path)
    return fast, path


def test_thresholds_and_criterion_travel_with_the_model(saved):
    fast, path = saved
    loaded = ksd.EarlyExit.load(path)
    assert loaded.calibration == fast.calibration
    assert loaded.thresholds == fast.thresholds
    assert loaded._scorer == fast._scorer
    x, _ = data(30, seed=9)
    expected, result = fast.predict(x), loaded.predict(x)
    np.testing.assert_array_equal(result.exits, expected.exits)
    np.testing.assert_allclose(result.predictions, expected.predictions, atol=1e-6)
    with pytest.raises(ValueError, match="no calibration data"):
        loaded.frontier()


@pytest.mark.once
def test_infinite_thresholds_and_own_functions_are_saved(probable, tmp_path):
    fast = ksd.EarlyExit(probable, squares, thresholds=[-np.inf, np.inf])
    fast.save(tmp_path / "a")
    fast.save(str(tmp_path / "a"))  # Replaces the file.
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    loaded = ksd.EarlyExit.load(tmp_path / "a")
    assert loaded.thresholds == {"exit_1": -np.inf, "exit_2": np.inf}
    assert loaded._scorer.criterion.function is squares
    with pytest.raises(ValueError, match=r"must be registered(.|\n)*lambda"):
        ksd.EarlyExit(probable, lambda rows: rows[:, 0]).save(tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert ksd.EarlyExit.load(tmp_path / "a").calibration is None


@pytest.mark.once
def test_changed_and_truncated_files_are_refused(saved, tmp_path):
    whole = saved[1].read_bytes()
    places = np.linspace(0, len(whole) - 1, 60).astype(int)
    broken = [whole[:place] for place in places]
    broken += [whole + b"more", b""]
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1
        broken.append(bytes(changed))
    path = tmp_path / "broken"
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(ksd.RefusedFileError, match=r"damaged.*broken"):
            ksd.EarlyExit.load(path)
    with pytest.raises(FileNotFoundError):
        ksd.EarlyExit.load(tmp_path / "missing")


@pytest.mark.once
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("thresholds", ["sometimes"], "in early_exit.json, 'thresholds' is"),
        ("version", 2, "in early_exit.json, 'version' is"),
        ("criterion", {"registered_name": "os>system", "config": None}, "not regist"),
        ("criterion", "margin", "in early_exit.json, 'criterion' is"),
        ("calibration", {"accuracy": 1.0}, "in early_exit.json, 'calibration' is"),
        ("scores_from", "somewhere", "scores_from='somewhere'"),
        ("extra", 1, "the fields are not"),
    ],
)
def test_data_in_a_file_is_checked(saved, tmp_path, monkeypatch, key, value, message):
    from keras_selfdistill.early_exit import file as early_exit_file

    fast, _ = saved
    path = tmp_path / "file"
    check = early_exit_file._check
    monkeypatch.setattr(early_exit_file, "_check", lambda *args: None)
    monkeypatch.setattr(
        early_exit_file,
        "_encoded",
        lambda settings: {
            **settings,
            "thresholds": [0.5, 0.5],
            "calibration": None,
            key: value,
        },
    )
    fast.save(path)
    monkeypatch.setattr(early_exit_file, "_check", check)
    with pytest.raises(ksd.RefusedFileError, match=message):
        ksd.EarlyExit.load(path)


@pytest.mark.once
def test_a_failed_save_leaves_the_old_file(saved, tmp_path, monkeypatch):
    fast, _ = saved
    path = tmp_path / "file"
    fast.save(path)
    old = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(fast.model, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        fast.save(path)
    assert path.read_bytes() == old
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.once
def test_errors_say_what_to_do(probable, fast):
    x, y = data(8)
    with pytest.raises(TypeError, match="Expected: a SelfDistiller"):
        ksd.EarlyExit(probable.final_model())
    with pytest.raises(ValueError, match=r"no thresholds yet(.|\n)*calibrate\(x, y"):
        fast.predict(x)
    with pytest.raises(ValueError, match="no calibration data"):
        fast.calibrate(macs_budget=0.5)
    with pytest.raises(ValueError, match="Received: no labels"):
        fast.calibrate(x, macs_budget=0.5)
    with pytest.raises(ValueError, match="values from 0 to 9"):
        fast.calibrate(x, np.array([0, 1, 2, 3, 0, 1, 2, 9]), macs_budget=0.5)
    with pytest.raises(ValueError, match=r"indices of shape \(samples,\)"):
        fast.calibrate(x, np.zeros((8, 3)), macs_budget=0.5)
    with pytest.raises(ValueError, match="at least one"):
        fast.calibrate(x[:0], y[:0], macs_budget=0.5)
    with pytest.raises(ValueError, match="8 of 'image', 7 of 'labels'"):
        fast.calibrate(x, y[1:], macs_budget=0.5)
    with pytest.raises(ValueError, match="only allowed with arrays"):
        fast.calibrate(iter([(x, y)]), y, macs_budget=0.5)
    with pytest.raises(ValueError, match=r"Unknown criterion(.|\n)*'margin'"):
        ksd.EarlyExit(probable, "margins")
    with pytest.raises(ValueError, match="scores_from='mean'"):
        ksd.EarlyExit(probable, scores_from="mean")
    with pytest.raises(ValueError, match=r"one for each of \['exit_1', 'exit_2'\]"):
        ksd.EarlyExit(probable, thresholds=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"\['exit_1', 'final'\](.|\n)*'exit_2'"):
        ksd.EarlyExit(probable, thresholds={"exit_1": 0.1, "final": 0.3})
    fast.thresholds = {"exit_2": 0.5, "exit_1": 0.7}
    assert fast.thresholds == {"exit_1": 0.7, "exit_2": 0.5}
    with pytest.raises(ValueError, match=r"Add the batch axis"):
        fast.predict(x[0])
    with pytest.raises(ValueError, match=r"\(8, 4, 4, 3\)(.|\n)*\(samples, 8, 8, 3\)"):
        fast.predict(x[:, :4, :4])
    with pytest.raises(TypeError, match=r"Cannot read samples(.|\n)*of type int"):
        fast.predict(3)
    for batch_size in (0, 1.5, True):
        with pytest.raises(ValueError, match="integer of at least 1"):
            fast.predict(x, batch_size=batch_size)
    bad = ksd.EarlyExit(probable, lambda rows: rows, thresholds=0.5)
    with pytest.raises(ValueError, match="one score for each sample"):
        bad.predict(x)


def test_scores_that_are_no_numbers_are_not_sure(probable):
    x, _ = data(4)
    fast = ksd.EarlyExit(
        probable, lambda rows: np.full(len(rows), np.nan), thresholds=-1e9
    )
    assert set(fast.predict(x).exits) == {"final"}


@pytest.mark.once
def test_batches_are_chosen_with_little_padding():
    for batch_size in (1, 2, 12, 32, 48, 256):
        buckets = bucket_sizes(batch_size)
        assert buckets[-1] == batch_size
        for samples in range(1, 2 * batch_size):
            left, calls = samples, 0
            while left > 0:
                bucket = next_bucket(left, buckets)
                assert bucket in buckets
                assert bucket - left <= bucket / 4
                left -= bucket
                calls += 1
            assert calls <= len(buckets) + 1


@pytest.mark.once
def test_the_deepest_exit_that_fits_is_picked(probable, monkeypatch):
    x, _ = data(2)
    picked = ksd.pick_exit(probable, 1e6, x[:1], repeats=2)
    assert [row.name for row in picked.table] == NAMES
    assert all(row.milliseconds > 0 for row in picked.table)
    assert picked.name == "final"
    expected = probable.final_model().predict(x, verbose=0)
    np.testing.assert_allclose(picked.model.predict(x, verbose=0), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"fast enough(.|\n)*exit_1 .* too slow"):
        ksd.pick_exit(probable, 1e-6, x[:1], repeats=1)
    times = {"exit_1": 1.0, "exit_2": 2.0, "final": 4.0}
    monkeypatch.setattr(latency, "_measured", lambda *args: times)
    picked = ksd.pick_exit(probable, 3, x[:1])
    assert picked.name == "exit_2"
    assert picked.model.layers[-1].name == "exit_2"
    assert [row.fits for row in picked.table] == [True, True, False]
    assert "exit_2 of\n  exit_1         1.000 ms\n" in str(picked)
    with pytest.raises(ValueError, match="max_latency_ms=0"):
        ksd.pick_exit(probable, 0, x[:1])


@pytest.mark.once
def test_few_samples_wait_between_sections():
    """However many come at once: what waits takes memory."""
    entered, most = [0, 0], [0]

    def section(number):
        def run(tensors):
            entered[number] += len(tensors[0])
            most[0] = max(most[0], entered[0] - entered[1])
            return {"output": tensors[0], "alive": tensors}

        return run

    everything = np.arange(1000.0).reshape(-1, 1)
    chunk = Chunk([everything], np.arange(1000), {"id": np.arange(1000)})
    left = []

    def decide(number, output, memory):
        left.extend(memory["id"] if number else [])
        return np.full(len(output.rows), number == 0)

    sections = [section(0), section(1)]
    queues = SectionQueues(sections, decide, output="output", batch_size=8)
    run_sections(queues, [chunk], 8)
    assert sorted(left) == list(range(1000))
    assert most[0] <= 64


@pytest.mark.once
@pytest.mark.parametrize(
    "criterion", ["confidence", "margin", "entropy", "patience", squares]
)
def test_what_is_no_number_is_not_sure_and_not_right(probable, criterion):
    rows = np.array([[np.nan] * 4, [0.7, 0.1, 0.1, 0.1]], "float32")
    fast = ksd.EarlyExit(probable, criterion, thresholds=0.0)
    memory = {}
    for number in range(3):
        _, scores = fast._scorer(number, rows, memory)
        assert scores[0] < -1e37
        assert scores[1] > 0
    x, _ = data(20)
    x[10:] = np.nan
    y = fast.predict(x).predictions.argmax(axis=-1)  # 0 where there are but NaN.
    found = fast.calibrate(x, y, target_accuracy=0.0).calibration
    assert found.base_accuracy <= 0.5
    assert found.accuracy <= 0.5
    fast.thresholds = 0.0
    # TensorFlow's fused operations may make numbers of NaN on their way.
    outputs = probable.predict(x, verbose=0)
    shallow = [np.isnan(outputs[name]).any(axis=-1) for name in ("exit_1", "exit_2")]
    expected = np.where(~shallow[0], "exit_1", np.where(~shallow[1], "exit_2", "final"))
    assert fast.predict(x).exits.tolist() == expected.tolist()
    assert expected[10] != "exit_1"


def test_a_base_of_a_fixed_batch_size():
    keras.utils.set_random_seed(0)
    inputs = keras.Input(batch_shape=(5, 4))
    x = layers.Dense(6, "tanh", name="tap")(inputs)
    x = keras.ops.reshape(x, (5, 3, 2))  # So it takes no other.
    x = layers.Dense(8, "tanh")(layers.Flatten()(x))
    base = keras.Model(inputs, layers.Dense(3, "softmax")(x))
    fast = ksd.EarlyExit(ksd.SelfDistiller(base, ["tap"], "byot", head="linear"))
    x = np.random.default_rng(0).normal(size=(25, 4)).astype("float32")
    expected = base.predict(x, batch_size=5, verbose=0)
    first = fast.model.exit_model("exit_1").predict(x, batch_size=5, verbose=0)
    threshold = float(np.median(first.max(axis=-1))) + 1e-4
    leaves = first.max(axis=-1) >= threshold
    fast.thresholds = threshold
    for samples in (25, 13, 5, 1, 0):
        for batch_size in (1, 32):
            found = fast.predict(x[:samples], batch_size=batch_size)
            wanted = np.where(leaves[:, None], first, expected)[:samples]
            np.testing.assert_allclose(found.predictions, wanted, atol=1e-5)
            assert ((found.exits == "exit_1") == leaves[:samples]).all()
    fast.warm_up()
    assert fast.compile_count in (0, 2)
    if keras.backend.backend() == "tensorflow":
        with pytest.raises(ValueError, match="fixed batch size"):
            fast.export("nothing")


@pytest.mark.parametrize("one_hot", [False, True])
def test_evaluate_is_predict_counted(probable, fast, one_hot):
    x = np.random.default_rng(5).normal(size=(37, 8, 8, 3)).astype("float32")
    y = np.arange(37) % 4
    fast.thresholds = 0.7
    result = fast.predict(x)
    expected = {
        "accuracy": np.mean(result.predictions.argmax(-1) == y),
        "macs_ratio": result.macs_ratio,
        **{f"{name}_samples": np.sum(result.exits == name) for name in NAMES},
    }
    labels = np.eye(4)[y] if one_hot else y
    found = fast.evaluate(x, labels, verbose=0, return_dict=True)
    assert found == pytest.approx(expected)
    assert list(found) == list(expected)
    assert sum(list(found.values())[2:]) == 37
    batches = [(x[:20], labels[:20]), (x[20:], labels[20:])]
    found = fast.evaluate(iter(batches), batch_size=8, verbose=0)
    assert found == pytest.approx(list(expected.values()))


@pytest.mark.parametrize("weighted", [True, False])
def test_evaluate_weighs_samples_as_keras(probable, fast, weighted):
    random = np.random.default_rng(6)
    x = random.normal(size=(12, 8, 8, 3)).astype("float32")
    y = np.arange(12) % 4
    weights = random.integers(0, 5, 12) * weighted
    plain = probable.exit_model(1)
    plain.compile(
        loss="sparse_categorical_crossentropy",
        weighted_metrics=["sparse_categorical_accuracy"],
    )
    _, expected = plain.evaluate(x, y, 5, 0, weights)
    fast.thresholds = 0.0
    found = fast.evaluate(x, y, 5, 0, weights)
    assert found[0] == pytest.approx(expected)
    assert found[2:] == [12, 0, 0]
    by_name = fast.evaluate(x, y, sample_weight=weights[:, None], verbose=0)
    assert by_name == pytest.approx(found)
    batches = [(x[:8], y[:8], weights[:8]), (x[8:], y[8:], weights[8:])]
    assert fast.evaluate(iter(batches), verbose=0) == pytest.approx(found)
    if weighted:
        assert found[0] != pytest.approx(fast.evaluate(x, y, verbose=0)[0])
        batches[1] = batches[1][:2]  # Without weights: as if they were 1.
        weights[8:] = 1
        found = fast.evaluate(iter(batches), verbose=0)
        assert found == pytest.approx(fast.evaluate(x, y, 32, 0, weights))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(3), "do not match.*(3,).*shape \\(4,\\)"),
        (np.ones((4, 4)), "do not match"),
        ({0: 1.0}, "do not match"),
        ([1.0, -1.0, 1.0, 1.0], "from -1.0 to 1.0"),
        ([1.0, np.nan, 1.0, 1.0], "out of range"),
    ],
)
def test_wrong_sample_weights_are_refused(fast, weights, message):
    fast.thresholds = 0.5
    x, y = np.ones((4, 8, 8, 3)), np.zeros(4)
    with pytest.raises(ValueError, match=message):
        fast.evaluate(x, y, sample_weight=weights, verbose=0)
    with pytest.raises(ValueError, match=r"only allowed with arrays.*no sample_weight"):
        fast.evaluate(iter([(x, y)]), sample_weight=np.ones(4), verbose=0)


def test_evaluate_logs_where_keras_logs(fast, capsys, caplog):
    fast.thresholds = 0.0
    keras.utils.disable_interactive_logging()
    try:
        with caplog.at_level("INFO", logger="absl"):
            fast.evaluate(np.ones((2, 8, 8, 3)), [0, 1])
    finally:
        keras.utils.enable_interactive_logging()
    assert capsys.readouterr().out == ""
    assert "exit_1_samples: 2" in caplog.text


def test_evaluate_prints_one_line(fast, capsys):
    fast.thresholds = 0.0
    fast.evaluate(np.ones((4, 8, 8, 3)), [0, 1, 2, 0], verbose=0)
    assert capsys.readouterr().out == ""
    found = fast.evaluate(np.ones((4, 8, 8, 3)), [0, 1, 2, 0], None, 1)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"accuracy: {found[0]:.4f} - macs_ratio: {found[1]:.4f} - ")
    assert line.endswith("exit_1_samples: 4 - exit_2_samples: 0 - final_samples: 0")
    many = np.zeros((12_345, 8, 8, 3), "float32")
    fast.evaluate(many, np.zeros(len(many)), 4096)
    assert "exit_1_samples: 12345 - " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((4, 8, 8, 3)), None, "labels"),
        (np.ones((4, 8, 8, 3)), [0, 1, 2, 9], "Received"),
        (iter([]), None, "without samples"),
    ],
)
def test_evaluate_needs_samples_and_labels(fast, x, y, message):
    fast.thresholds = 0.5
    with pytest.raises(ValueError, match=message):
        fast.evaluate(x, y)


def test_what_is_printed_is_short(probable):
    fast = ksd.EarlyExit(probable)
    assert repr(probable) == (
        f"<SelfDistiller of {probable.base.name}: exit_1 at stem_relu, "
        "exit_2 at out_1, final; BYOT>"
    )
    assert '<td style="text-align:left">stem_relu</td>' in probable._repr_html_()
    assert "exit_2 not calibrated, final>" in repr(fast)
    fast.thresholds = [0.25, np.inf]
    assert repr(fast) == (
        f"<EarlyExit of {probable.base.name}: Confidence(): exit_1 ≥ 0.25, "
        "exit_2 never, final>"
    )
    assert "≥ 0.25" in fast._repr_html_()
    result = fast.predict(np.random.default_rng(0).normal(size=(5, 8, 8, 3)))
    assert repr(result).startswith("<EarlyExitResult of 5 samples, exit_1 ")
    assert "multiply-adds" in result._repr_html_()
    assert max(len(repr(each)) for each in (probable, fast, result)) < 120
    fast.calibrate(*labelled(probable, 20), target_accuracy=0.0)
    assert re.fullmatch(
        r"<ExitShares of exit_1, exit_2, final at 9 thresholds from 0\.\d+ to [01]\S*>",
        repr(fast.exit_shares(points=9)),
    )
    costs = ksd.profile(probable)
    assert costs._repr_html_().count("<table>") == 2
    assert ">100.0%<" in costs._repr_html_()


def test_twelve_exits_are_printed_in_short():
    base = keras.Sequential([keras.Input((4,))])
    for number in range(13):
        base.add(layers.Dense(4, name=f"tap_{number}"))
    base.add(layers.Dense(3, "softmax", name="probabilities"))
    taps = [f"tap_{number}" for number in range(12)]
    model = ksd.SelfDistiller(base, taps, "byot", head="linear")
    fast = ksd.EarlyExit(model)
    assert repr(model).endswith(
        ": exit_01 at tap_0, exit_02 at tap_1, … (9 more), exit_12 at tap_11, "
        "final; BYOT>"
    )
    assert "(9 more), exit_12 not calibrated, final>" in repr(fast)
    fast.thresholds = 0.5
    assert "exit_01 ≥ 0.5, exit_02 ≥ 0.5, … (9 more)" in repr(fast)
    names = [f"exit_{number:02}" for number in range(1, 13)]
    result = EarlyExitResult(np.eye(12), np.array(names), np.ones(12), 0.5)
    assert repr(result).startswith(
        "<EarlyExitResult of 12 samples, exit_01 8.3%, exit_02 8.3%, … (8 more), "
    )
    shares = ExitShares((*names, "final"), np.arange(200.0), np.ones((200, 13)))
    x, y = np.ones((4, 4)), np.zeros(4)
    report = ksd.report(model, (x, y), repeats=0, verbose=0)
    everything = (model, fast, result, shares, report, ksd.profile(model))
    assert max(len(repr(each)) for each in everything) < 160
    for name in ("exit_1", "exit_01", 1):
        assert model.exit_model(name).name == f"{base.name}_exit_01"
    with pytest.raises(ValueError, match="Received: 'exit_13'"):
        model.exit_model("exit_13")


def test_an_exit_is_found_by_its_number(probable):
    for number, name in enumerate(NAMES, start=1):
        expected = probable.exit_model(name).name
        for kind in (int, np.int64, np.uint8):
            assert probable.exit_model(kind(number)).name == expected
    for wrong in (0, 4, -1, True, np.True_, 1.0, np.float32(1), np.int64(4)):
        with pytest.raises(ValueError, match="No exit has this name"):
            probable.exit_model(wrong)
