"""Compressing an exit: what is pruned, what stays zero, what int8 covers."""

import gzip
import json
import math

import keras
import numpy as np
import pytest

import compress
import keras_selfdistill as ksd
from shared import image_sets
from tests.conftest import ROOT, make_batch, run_python, small_base, to_numpy

SCRIPT = ROOT / "examples" / "compress.py"


@pytest.fixture
def images(batch):
    """The batch of sixteen images under the name that is not augmented."""
    return image_sets.Images("digits", batch, batch)


@pytest.fixture
def wrapper(base):
    return ksd.SelfDistiller(base, ["out_1"], "byot")


@pytest.mark.once
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.7, 1.0])
def test_the_smallest_of_all_arrays_together_go(sparsity):
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(3, 4)), 5 * rng.normal(size=(2, 2, 5))]
    masks = compress.magnitude_masks(weights, sparsity)
    assert [mask.shape for mask in masks] == [(3, 4), (2, 2, 5)]
    kept, dropped = (
        np.concatenate(
            [np.abs(w[m == stays]) for w, m in zip(weights, masks, strict=True)]
        )
        for stays in (True, False)
    )
    assert len(dropped) == round(32 * sparsity)
    if 0 < sparsity < 1:
        assert dropped.max() < kept.min()


@pytest.mark.once
def test_equal_weights_are_dropped_in_number():
    (mask,) = compress.magnitude_masks([np.full((10, 10), -0.5)], 0.7)
    assert np.sum(~mask) == 70


@pytest.mark.once
def test_kernels_are_no_biases_and_no_batch_normalisation():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.DepthwiseConv2D(3),
            keras.layers.SeparableConv2D(4, 3),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    found = {id(weight) for weight in compress.kernels(model)}
    for weight in model.weights:
        assert (id(weight) in found) == (len(weight.shape) > 1), weight.path


def weight_arrays(model):
    # Copies: an array may be a view of the weight, which training then changes.
    return [np.array(to_numpy(weight)) for weight in model.weights]


@pytest.mark.parametrize("activation", ["softmax", None])
def test_zeros_stay_and_nothing_else_becomes_zero(activation, images):
    keras.utils.set_random_seed(1)
    wrapper = ksd.SelfDistiller(small_base(activation), ["out_1"], "byot")
    before = weight_arrays(wrapper)
    cut = compress.copy_of(wrapper.exit_model("exit_1"))
    pruned = compress.copy_of(cut)
    compress.prune(pruned, 0.7)
    masks = [to_numpy(weight) != 0 for weight in compress.kernels(pruned)]
    compress.fine_tune(
        pruned, images, epochs=3, learning_rate=0.01, batch_size=8, seed=0
    )
    plain = compress.copy_of(pruned)

    zeros, count = compress.zeros(plain)
    assert count == sum(math.prod(w.shape) for w in compress.kernels(cut))
    assert abs(zeros - 0.7 * count) <= 1
    for weight, mask in zip(compress.kernels(plain), masks, strict=True):
        np.testing.assert_array_equal(to_numpy(weight) != 0, mask)
        assert weight.constraint is None
    # Training moved what was left, and the wrapper knows nothing of it.
    assert not np.array_equal(cut.get_weights()[0], plain.get_weights()[0])
    for ours, theirs in zip(weight_arrays(wrapper), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_frozen_exit_is_fine_tuned_too(base, images):
    wrapper = ksd.SelfDistiller(base, ["out_1"], "byot", freeze="base")
    tuned = compress.copy_of(wrapper.exit_model("exit_1"))
    before = [np.array(to_numpy(kernel)) for kernel in compress.kernels(tuned)]
    compress.fine_tune(
        tuned, images, epochs=1, learning_rate=0.01, batch_size=8, seed=0
    )
    after = [to_numpy(kernel) for kernel in compress.kernels(tuned)]
    assert len(after) == len(before)
    for ours, theirs in zip(after, before, strict=True):
        assert not np.array_equal(ours, theirs)
    assert not wrapper.base.trainable


def test_int8_covers_the_dense_layers(wrapper, images):
    cut = compress.copy_of(wrapper.exit_model("exit_1"))
    before = weight_arrays(cut)
    quantised = compress.quantised(cut)
    dense = [each for each in cut.layers if isinstance(each, keras.layers.Dense)]
    expected = sum(math.prod(layer.kernel.shape) for layer in dense)
    assert 0 < expected < cut.count_params()
    share = compress.int8_share(quantised, cut)
    assert share == pytest.approx(expected / cut.count_params())
    assert compress.int8_share(cut, cut) == 0
    np.testing.assert_allclose(
        quantised.predict(images.test[0], verbose=0),
        cut.predict(images.test[0], verbose=0),
        atol=0.05,
    )
    for ours, theirs in zip(weight_arrays(cut), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.once
@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ([[0.2, 0.8], [1.0, 0.0]], True),
        ([[-0.2, 1.2]], False),
        ([[2.0, 3.0]], False),
    ],
)
def test_probabilities_are_told_from_logits(outputs, expected):
    assert compress.gives_probabilities(np.array(outputs)) is expected


@pytest.mark.once
def test_sizes_are_those_of_the_file_and_of_its_gzip(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(10_000))
    size, gzipped = compress.sizes(path)
    assert size == 10_000
    assert gzipped == len(gzip.compress(bytes(10_000), 9)) < 100


def test_latencies_are_medians_without_warm_up(base, monkeypatch):
    ticks = iter(np.cumsum([0, 9, 0, 0.002, 0, 0.001, 0, 0.007]))
    monkeypatch.setattr(compress.time, "perf_counter", lambda: next(ticks))
    found = compress.latencies({"a": base}, make_batch()[0][:1], repeats=3, warm_up=1)
    assert found == {"a": pytest.approx(2.0)}


def test_an_unknown_exit_is_refused(wrapper):
    with pytest.raises(compress.app.UsageError, match=r"--exit=exit_7.*exit_1"):
        compress.early_exit(wrapper, "exit_7")


def test_wrappers_that_do_not_fit_are_refused(base, wrapper, tmp_path):
    images = image_sets.load("digits", "unused")
    base.save(tmp_path / "base.keras")
    with pytest.raises(compress.app.UsageError, match="expected a saved SelfDist"):
        compress.load_wrapper(tmp_path / "base.keras", images)
    wrapper.save(tmp_path / "wrapper.keras")
    with pytest.raises(compress.app.UsageError, match=r"shape \(8, 8, 1\)"):
        compress.load_wrapper(tmp_path / "wrapper.keras", images)


def run(folder, *flags, check=True):
    return run_python(
        SCRIPT,
        f"--output_dir={folder}",
        "--repeats=2",
        *flags,
        check=check,
        backend="torch",  # Compiles nothing.
        OMP_NUM_THREADS="1",
    )


def check_results(folder, output, *, cut="exit_2"):
    found = json.loads((folder / "compress.json").read_text())
    names = ["final", cut, *(f"{cut} {n}" for n in ("int8", "fine-tuned", "pruned"))]
    assert [row["model"] for row in found["rows"]] == names
    size = {row["model"]: row["gzip_bytes"] for row in found["rows"]}
    assert max(size[f"{cut} pruned"], size[f"{cut} int8"]) < size[cut] < size["final"]
    assert size[f"{cut} fine-tuned"] < 1.05 * size[cut]  # no optimizer's state
    for row in found["rows"]:
        assert f"{row['accuracy']:.2%}" in output
        assert min(row["milliseconds"].values()) > 0
    assert abs(found["zeros"] - 0.7 * found["kernel_weights"]) <= 1
    assert f"int8: {found['int8_share']:.1%}" in output
    assert not list(folder.glob(".keras_selfdistill_*"))
    return found


@pytest.mark.long
@pytest.mark.process
def test_digits_from_nothing_and_from_the_wrapper(tmp_path):
    first = run(tmp_path / "first", "--epochs=2", "--fine_tune_epochs=1")
    found = check_results(tmp_path / "first", first.stdout)
    assert "does not have a `quantize`" not in first.stderr
    # The saved file is the model of the row.
    pruned = keras.saving.load_model(tmp_path / "first" / "exit_2_pruned.keras")
    assert compress.zeros(pruned) == (found["zeros"], found["kernel_weights"])
    images = image_sets.load("digits", "unused", seed=0)
    assert image_sets.accuracy(pruned, images) == pytest.approx(
        found["rows"][-1]["accuracy"], abs=2e-3
    )

    wrapper = tmp_path / "first" / "selfdistilled.keras"
    kept = wrapper.read_bytes()
    options = (f"--wrapper={wrapper}", "--exit=exit_1", "--fine_tune_epochs=0")
    second = run(tmp_path / "second", *options)
    assert "Training a wrapper" not in second.stdout + second.stderr
    again = check_results(tmp_path / "second", second.stdout, cut="exit_1")
    assert again["rows"][0]["accuracy"] == found["rows"][0]["accuracy"]
    assert wrapper.read_bytes() == kept


@pytest.mark.long
@pytest.mark.process
def test_cifar100_needs_a_wrapper(tmp_path):
    result = run(tmp_path, "--data=cifar100", check=False)
    assert result.returncode
    assert "without --wrapper" in result.stdout + result.stderr


@pytest.mark.long
@pytest.mark.real_data
def test_an_exit_on_cifar100(tfds_folder, tmp_path):
    images = image_sets.load("cifar100", tfds_folder, train_examples=200)
    assert [len(labels) for _, labels in (images.train, images.test)] == [200, 10_000]
    images = images._replace(test=tuple(each[:100] for each in images.test))
    base = ksd.networks.resnet18(width_multiplier=0.125)
    ksd.SelfDistiller(base, 2, "byot").save(tmp_path / "wrapper.keras")
    wrapper = compress.load_wrapper(tmp_path / "wrapper.keras", images)
    cut = compress.early_exit(wrapper, "exit_1")
    pruned = compress.copy_of(cut)
    compress.prune(pruned, 0.9)
    compress.fine_tune(
        pruned, images, epochs=1, learning_rate=1e-3, batch_size=50, seed=0
    )
    zeros, count = compress.zeros(pruned)
    assert abs(zeros - 0.9 * count) <= 1
    assert 0 < compress.int8_share(compress.quantised(cut), cut) < 1
    assert 0 <= image_sets.accuracy(pruned, images) <= 1
