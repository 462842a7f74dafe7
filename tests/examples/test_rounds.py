"""Born-again rounds: the effective rank's closed forms, the teacher, going on."""

import json
import math

import keras
import numpy as np
import pytest

import rounds
from shared import image_sets
from tests.conftest import ROOT, run_python

SCRIPT = ROOT / "examples" / "rounds.py"

TINY = ("--rounds=2", "--epochs=1", "--train_examples=64", "--taps=1")


def features_with(singular_values, samples=40, width=12, seed=0):
    """Returns a centred matrix of these singular values, in random directions."""
    rng = np.random.default_rng(seed)
    left = rng.normal(size=(samples, len(singular_values)))
    left, _ = np.linalg.qr(left - left.mean(axis=0))
    right, _ = np.linalg.qr(rng.normal(size=(width, len(singular_values))))
    return left * np.array(singular_values) @ right.T


@pytest.mark.once
@pytest.mark.parametrize("rank", [1, 2, 5, 12])
def test_isotropic_features_have_their_rank(rank):
    features = features_with([3.0] * rank)
    assert rounds.effective_rank(features) == pytest.approx(rank)


@pytest.mark.once
def test_two_directions_have_the_exponential_of_their_entropy():
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert rounds.effective_rank(features_with([3, 1])) == pytest.approx(expected)


@pytest.mark.once
def test_effective_rank_knows_neither_place_nor_scale():
    features = features_with([5, 2, 1])
    moved = 1e3 * features + np.linspace(-7, 7, 12)
    assert rounds.effective_rank(moved) == pytest.approx(
        rounds.effective_rank(features)
    )


@pytest.mark.once
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_collapsed_features_have_rank_zero(value):
    assert rounds.effective_rank(np.full((7, 3), value, "float32")) == 0.0


def test_features_are_the_last_dense_layers_input(base, batch):
    features = rounds.feature_model(base).predict(batch[0], verbose=0)
    kernel, bias = base.get_layer("predictions").get_weights()
    logits = features @ kernel + bias
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    np.testing.assert_allclose(
        base.predict(batch[0], verbose=0),
        exponentials / exponentials.sum(axis=-1, keepdims=True),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.once
def test_a_network_without_dense_layers_is_refused():
    inputs = keras.Input((8, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    with pytest.raises(ValueError, match=r"without a keras\.layers\.Dense"):
        rounds.feature_model(keras.Model(inputs, pooled))


@pytest.mark.once
def test_standard_error_is_the_binomials():
    correct = np.arange(100) < 80
    expected = np.std(correct) / math.sqrt(100)
    assert rounds.standard_error(0.8, 100) == pytest.approx(expected)


@pytest.mark.once
def test_accuracy_is_the_share_of_right_answers(base, batch):
    images = image_sets.Images("digits", batch, batch)
    predicted = np.argmax(base.predict(batch[0], verbose=0), axis=-1)
    expected = np.mean(predicted == batch[1])
    assert image_sets.accuracy(base, images) == pytest.approx(expected)


def run(folder, *flags, check=True):
    """Run the script in its own process, with few images."""
    return run_python(
        SCRIPT,
        f"--output_dir={folder}",
        *TINY,
        *flags,
        check=check,
        backend="torch",  # Compiles nothing.
        OMP_NUM_THREADS="1",
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds")
    return folder, run(folder).stdout


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.long
@pytest.mark.process
def test_digits_from_nothing(finished):
    folder, output = finished
    found = results(folder)
    assert [row["round"] for row in found["rounds"]] == [1, 2]
    images = image_sets.load("digits", "unused", seed=0)
    for row in found["rounds"]:
        model = keras.saving.load_model(folder / f"round_{row['round']}.keras")
        assert image_sets.accuracy(model, images) == pytest.approx(row["accuracy"])
        assert 1 <= row["effective_rank"] <= row["feature_width"] == 64
        assert f"{row['accuracy']:8.2%}" in output
    assert found["flags"]["external_weight"] == 1.0
    assert found["flags"]["backend"] == "torch"
    assert (folder / "rounds.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(folder.glob(".keras_selfdistill_*"))


@pytest.mark.long
@pytest.mark.process
def test_finished_rounds_are_kept_and_others_follow(finished):
    folder, _ = finished
    before = results(folder)["rounds"]
    kept = (folder / "round_1.keras").read_bytes()
    # As a run that was killed in its second round leaves it.
    (folder / "round_2.keras").unlink()
    result = run(folder)
    assert "Round 1 of 2 is done." in result.stdout + result.stderr
    assert (folder / "round_1.keras").read_bytes() == kept
    assert (folder / "round_2.keras").exists()
    assert results(folder)["rounds"][0] == before[0]
    if keras.backend.backend() != "torch":  # whose threads add in any order
        assert results(folder)["rounds"][1] == before[1]


@pytest.mark.long
@pytest.mark.process
def test_rounds_of_other_flags_are_refused(finished):
    folder, _ = finished
    result = run(folder, "--external_weight=0.5", check=False)
    assert result.returncode
    assert "external_weight=0.5 (was 1.0)" in result.stdout + result.stderr


@pytest.mark.long
@pytest.mark.process
def test_the_second_round_learns_from_the_first(finished, tmp_path):
    """Without weight the teacher changes nothing: round 2 would come out otherwise."""
    folder, _ = finished
    run(tmp_path, "--external_weight=0")
    first, second = (
        [
            keras.saving.load_model(each / f"round_{number}.keras").get_weights()[0]
            for each in (folder, tmp_path)
        ]
        for number in (1, 2)
    )
    np.testing.assert_allclose(*first, atol=1e-6)
    assert np.abs(second[0] - second[1]).max() > 1e-3


@pytest.mark.long
@pytest.mark.real_data
@pytest.mark.process
def test_cifar100_in_one_round(tfds_folder, tmp_path):
    result = run(
        tmp_path,
        "--data=cifar100",
        f"--data_dir={tfds_folder}",
        "--width_multiplier=0.125",
        "--train_examples=200",
        "--recipe=teskd",  # whose exits cannot be cut off
        "--rounds=1",
    )
    (row,) = results(tmp_path)["rounds"]
    assert row["feature_width"] == 64
    assert "round  accuracy" in result.stdout
