"""train_images.py by several processes of PyTorch: to the end, killed, refused."""

import concurrent.futures
import csv
import functools
import itertools
import json
import signal

import numpy as np
import pytest

import keras_selfdistill as ksd
from distributed import local_workers
from images import batches, network, split, training
from tests.conftest import require_backend
from tests.examples.test_images_parts import make_folder, make_shards
from tests.examples.test_train_images import WITHOUT_TENSORFLOW, arrays_of, results, run
from tests.interruption import killed_replacing

pytestmark = [pytest.mark.long, pytest.mark.once, pytest.mark.process]
DDP = {"backend": "torch", "distribute": "ddp", "timeout": 60}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    require_backend("torch")
    return make_folder(tmp_path_factory.mktemp("photos") / "folder", (24, 16, 16, 16))


@pytest.fixture(scope="module")
def written(photos):
    """A folder of shards."""
    make_shards(photos, photos.parent / "shards")
    return photos.parent / "shards"


def test_a_broken_shard_is_told_before_processes_start(photos, tmp_path):
    data = tmp_path / "shards"
    make_shards(photos, data)
    index = json.loads((data / "shards.json").read_text())
    name = index["parts"]["test"][0]["file"]
    (data / name).unlink()
    ended = run(data, tmp_path / "run", **DDP)
    assert ended.returncode == 1
    assert f"{name}: missing" in ended.stdout + ended.stderr
    assert "worker" not in ended.stdout
    assert not (tmp_path / "run").exists()


def run_each(processes, output_dir, data_dir, before="", of_first=""):
    """Run processes, each by itself, as on machines of their own, after some code."""

    def run_one(place):
        code = WITHOUT_TENSORFLOW + before + (of_first if place["RANK"] == "0" else "")
        return run(data_dir, output_dir, code, **DDP, **place)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(run_one, local_workers.torch_cluster(processes)))


# As if the network's weights were downloaded, which takes a while.
_DOWNLOAD = """
import os, pathlib, time
from images import network
build, file = network.build, pathlib.Path({file!r})

def download(*arguments, **options):
    if os.environ["RANK"] == "0":
        time.sleep(1)
        file.touch()
    assert file.exists(), "read before it was there"
    return build(*arguments, **options)

network.build = download
"""


def build(*, exits):
    base = network.build(
        "resnet18", size=(16, 20), classes=4, weights=None, width_multiplier=0.125
    )
    return ksd.SelfDistiller(base, 1, "byot") if exits else base


def test_two_processes_log_what_one_finds_on_all_validation_images(photos, tmp_path):
    code = _DOWNLOAD.format(file=str(tmp_path / "weights"))
    first, second = run_each(2, tmp_path, photos, code)
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert "Wrote" in first.stdout
    assert np.isfinite([row["loss"] for row in results(tmp_path)["rows"]]).all()
    images = split.load_or_make(photos, tmp_path / "split.json", share=0.3, seed=0)
    assert len(images.validation.labels) % 2 == 0  # None is left out.
    validation = batches.Whole(images.validation, (16, 20), 8)
    for name, phase in itertools.product(("distilled", "plain"), ("heads", "all")):
        with (tmp_path / name / phase / "history.csv").open(newline="") as file:
            rows = [*csv.DictReader(file)]
        logged = min(rows, key=lambda row: float(row[training.monitor(row)]))
        model = build(exits=name == "distilled")
        model.load_weights(tmp_path / name / f"{phase}.weights.h5")
        training.compile_for(model, training.Phase(phase, 1, 0.001, None))
        found = model.evaluate(validation, verbose=0, return_dict=True)
        names = {key for key in logged if key.startswith("val_")}
        assert names == {f"val_{key}" for key in found}
        for key, value in found.items():
            assert float(logged[f"val_{key}"]) == pytest.approx(value, rel=1e-4)


def test_two_processes_that_are_killed_end_as_if_they_were_not(written, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_all = functools.partial(run_each, 2)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        # Up to the network without exits, of which nothing is asked.
        kill = killed_replacing(".checkpoint", 4)
        uninterrupted = pool.submit(run_all, whole, written, of_first=kill)
        # In the second phase before its second checkpoint, and then as the other one.
        runs = [
            run_all(killed, written, of_first=killed_replacing(".checkpoint", number))
            for number in (3, 2)
        ]
    for first, second in (*runs, uninterrupted.result()):
        assert first.returncode == -signal.SIGKILL, first.stderr
        assert second.returncode > 0  # An error, and not a hang.
    output = runs[1][0].stdout + runs[1][0].stderr
    assert "Resumed at epoch 1, batch 0" in output
    name = "distilled/all.weights.h5"
    ours, theirs = arrays_of(killed / name), arrays_of(whole / name)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key], err_msg=key)
