"""What comes to the host in `predict`: a number a sample and section, then the end."""

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from keras_selfdistill.backend import tensors
from keras_selfdistill.early_exit import exited, scoring
from tests.conftest import small_base, to_numpy

CLASSES = 4


@pytest.fixture(scope="module")
def fast():
    keras.utils.set_random_seed(5)
    model = ksd.SelfDistiller(small_base(), ["stem_relu", "out_1"], "byot")
    found = ksd.EarlyExit(model)
    images = np.random.default_rng(0).normal(size=(20, 8, 8, 3)).astype("float32")
    scores = found._cascade.observe(images, np.zeros(20, int), 8).scores
    found.thresholds = [float(np.quantile(each, 0.6)) for each in scores.T]
    return found, images


@pytest.fixture
def transfers(monkeypatch):
    """The shapes of all tensors of which predict makes arrays, in order."""
    shapes, fetch = [], tensors.to_numpy

    def count(tensor):
        if not isinstance(tensor, np.ndarray):
            shapes.append(tuple(tensor.shape))
        return fetch(tensor)

    for module in (tensors, scoring):
        monkeypatch.setattr(module, "to_numpy", count)
    if keras.backend.backend() == "torch":  # Nothing comes another way.
        import torch

        moved, move = [], torch.Tensor.cpu
        monkeypatch.setattr(
            torch.Tensor, "cpu", lambda self: moved.append(self.shape) or move(self)
        )
        yield shapes
        assert list(map(tuple, moved)) == shapes
    else:
        yield shapes


@pytest.fixture
def runs(fast, monkeypatch):
    """The batch sizes of all runs of sections, in order."""
    sizes = []

    def counted(section):
        def run(batch):
            sizes.append(batch[0].shape[0])
            return section(batch)

        return run

    sections = [counted(each) for each in fast[0]._cascade._sections]
    monkeypatch.setattr(fast[0]._cascade, "_sections", sections)
    return sizes


def test_a_section_sends_one_number_for_each_sample(fast, runs, transfers):
    early, images = fast
    result = early.predict(images, batch_size=8)
    assert len(set(result.exits)) == 3
    # The confidence of every batch, and only then predictions.
    assert transfers[: len(runs)] == [(size,) for size in runs]
    rest = transfers[len(runs) :]
    assert 0 < len(rest) <= len(runs)
    assert {shape[1:] for shape in rest} == {(CLASSES,)}


def test_predictions_leave_an_accelerator_together(fast, runs, transfers, monkeypatch):
    early, images = fast
    expected = early.predict(images, batch_size=8)
    before = len(transfers)
    runs.clear()
    monkeypatch.setattr(
        tensors, "is_on_accelerator", lambda each: not isinstance(each, np.ndarray)
    )
    found = early.predict(images, batch_size=8)
    for name in ("predictions", "exits", "scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    if keras.backend.backend() != "jax":  # JAX starts all copies, then waits.
        assert transfers[before + len(runs) :] == [(len(images), CLASSES)]


def test_feature_maps_stay_on_an_accelerator(fast, monkeypatch):
    """Samples that go on are gathered where they are; nothing compiles for that."""
    early, images = fast
    expected = early.predict(images, batch_size=6)
    assert len(set(expected.exits)) == 3
    monkeypatch.setattr(
        tensors, "is_on_accelerator", lambda each: not isinstance(each, np.ndarray)
    )
    on_host, as_array = [], np.asarray

    def count(tensor, *args, **kwargs):
        if not isinstance(tensor, np.ndarray):
            on_host.append(np.shape(tensor))
        return as_array(tensor, *args, **kwargs)

    early.warm_up(6)
    compiled = gathers_compiled()
    monkeypatch.setattr(tensors.np, "asarray", count)
    found = early.predict(images, batch_size=6)
    monkeypatch.undo()
    for name in ("predictions", "exits", "scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert all(len(shape) <= 2 for shape in on_host)
    if keras.backend.backend() == "jax":
        assert on_host  # Confidence and predictions do come.
        assert gathers_compiled() == compiled > 0


def gathers_compiled():
    """Return how many functions JAX compiled to gather rows on a device."""
    if keras.backend.backend() != "jax":
        return 0
    return sum(each._cache_size() for each in tensors._jax_gathers())


@pytest.mark.parametrize("sizes", [(4,), (4, 2), (1, 4, 3)])
@pytest.mark.parametrize("padded", [0, 3])
def test_rows_of_several_tensors_are_gathered(monkeypatch, sizes, padded):
    random = np.random.default_rng(0)
    arrays = [random.normal(size=(size, 3, 2)).astype("float32") for size in sizes]
    rows = [np.flatnonzero(np.arange(size) != 1) for size in sizes]
    chosen = np.concatenate([a[r] for a, r in zip(arrays, rows, strict=True)])
    expected = np.concatenate([chosen, np.repeat(chosen[-1:], padded, axis=0)])
    for on_accelerator in (False, True):
        monkeypatch.setattr(
            tensors,
            "is_on_accelerator",
            lambda each, there=on_accelerator: there,
        )
        found = tensors.gather_rows(
            [keras.ops.convert_to_tensor(each) for each in arrays], rows, len(expected)
        )
        np.testing.assert_array_equal(to_numpy(found), expected)


def test_the_last_exit_may_be_of_half_precision(monkeypatch):
    monkeypatch.setattr(
        tensors, "is_on_accelerator", lambda each: not isinstance(each, np.ndarray)
    )
    half = keras.ops.cast([[0.5, 0.25], [1.0, 2.0]], "bfloat16")
    full = keras.ops.cast([[3.0, 4.0]], "float32")
    found = tensors.fetch_rows([full, half], [np.array([0]), np.array([1, 0])])
    np.testing.assert_array_equal(found, [[3.0, 4.0], [1.0, 2.0], [0.5, 0.25]])


def test_few_predictions_wait_on_the_device(fast, runs, transfers, monkeypatch):
    early, images = fast
    expected = early.predict(images, batch_size=8).predictions
    before = len(transfers)
    runs.clear()
    monkeypatch.setattr(exited, "_MOST_WAITING", 0)
    np.testing.assert_array_equal(
        early.predict(images, batch_size=8).predictions, expected
    )
    # After every section from which samples exit, not at the end.
    assert transfers[before + 1][1:] == (CLASSES,)


def test_confidence_of_a_section_is_that_of_the_host(fast):
    """Also of numbers that are none, to the last bit."""
    early, _ = fast
    scorer = early._cascade.scorer
    rows = np.random.default_rng(1).dirichlet(np.ones(CLASSES), 30).astype("float32")
    rows[3] = np.nan
    rows[7, 1] = np.nan  # The others of this row are numbers.
    tensor = keras.ops.convert_to_tensor(rows)
    chosen = np.array([2, 3, 7, 7, 29])
    output = scoring.SectionOutput(tensor, keras.ops.max(tensor, axis=-1), chosen)
    predictions, places, scores = scorer.at_exit(0, output, {})
    expected = scorer(0, rows[chosen], {})
    np.testing.assert_array_equal(to_numpy(predictions)[places], expected[0])
    np.testing.assert_array_equal(scores, expected[1])
    assert scores.dtype == expected[1].dtype == "float64"
    assert (scores == -scoring.LARGEST_SCORE).tolist() == [
        False,
        True,
        True,
        True,
        False,
    ]


@pytest.mark.once
@pytest.mark.parametrize(
    ("options", "inside"),
    [
        ({}, True),
        ({"criterion": "margin"}, False),
        ({"criterion": lambda rows: rows.max(axis=-1)}, False),
        ({"scores_from": "running_mean"}, False),
        ({"last_resort": "ensemble"}, False),
    ],
)
def test_only_confidence_is_computed_by_sections(fast, options, inside):
    early, _ = fast
    scorer = ksd.EarlyExit(early.model, **options)._cascade.scorer
    assert scorer.is_confidence == inside
