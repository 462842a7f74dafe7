"""Several devices: the weights of one, an error where a worker dies, going on."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from distributed import local_workers
from tests.conftest import ROOT, require_backend, run_python
from tests.integration import distributed_probe, processes_probe

pytestmark = pytest.mark.process

TERMS = {
    "loss",
    "label_loss",
    "soft_target_loss",
    "hint_loss",
    "external_loss",
    "distillation_loss",
}
PROBE = "tests.integration.processes_probe"
BACKENDS = {"mirrored": "tensorflow", "multi_worker": "tensorflow", "ddp": "torch"}
CLUSTERS = {
    "multi_worker": local_workers.tensorflow_cluster,
    "ddp": local_workers.torch_cluster,
}


class Worker:
    """A process of its own, whose output is kept in a file."""

    def __init__(self, output, *arguments, **environment):
        self._output = output
        with output.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
            )

    @property
    def output(self):
        return self._output.read_text()

    def kill_after(self, path):
        """Kill the process as soon as there is a file."""
        while not path.exists():
            assert self.process.poll() is None, self.output
            time.sleep(0.01)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self):
        """Wait for the end and return the output of a process that succeeded."""
        assert self.process.wait() == 0, self.output
        return self.output


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The wrapper that every engine trains."""
    path = tmp_path_factory.mktemp("distribution") / "model.keras"
    distributed_probe.build().save(path)
    return path


def results_of_each(engine, processes, folder, *arguments):
    """Return what each process of a module prints."""
    workers = [
        Worker(
            folder / f"{index}.txt",
            *("-m", *arguments),
            KERAS_BACKEND=BACKENDS[engine],
            **environment,
        )
        for index, environment in enumerate(CLUSTERS[engine](processes))
    ]
    return [results_of(worker.end()) for worker in workers]


def results_of(output):
    return json.loads(output.splitlines()[-1])


def check(result, replicas):
    assert result["replicas"] == replicas
    assert result["weights"] < 1e-5
    assert result["logs"] < 1e-5
    assert set(result["names"]) >= TERMS
    assert result["way"] > 1e-3  # Every weight moved.


@pytest.mark.long
def test_mirrored_replicas_train_as_one_device(saved):
    require_backend("tensorflow")
    arguments = ("-m", "tests.integration.distributed_probe", "mirrored", saved)
    result = results_of(run_python(*arguments, backend="tensorflow").stdout)
    check(result["mirrored"], replicas=2)
    assert "within `with strategy.scope():`" in result["error"]


@pytest.mark.long
@pytest.mark.parametrize("engine", CLUSTERS)
def test_two_processes_train_as_one_device(engine, saved, tmp_path):
    require_backend(BACKENDS[engine])
    arguments = ("tests.integration.distributed_probe", engine, saved)
    for result in results_of_each(engine, 2, tmp_path, *arguments):
        check(result[engine], replicas=2)


@pytest.mark.long
def test_two_processes_skip_a_step_together(tmp_path):
    require_backend("torch")
    first, second = results_of_each("ddp", 2, tmp_path, PROBE, "skip")
    assert first == second
    for way, kind in itertools.product(processes_probe.WAYS, processes_probe.KINDS):
        found, undisturbed = first[f"{way} {kind}"], first[f"{way} nothing"]
        assert found["skipped"] == (kind != "nothing")
        assert found["loss_is_finite"]
        # As in one process, where bad data leave the scale, and overflows halve it.
        if way == "scaled":
            assert found["scale"] == (32.0 if kind == "gradient" else 64.0)
        if way != "half":  # Whose gradients are rounded at another scale.
            assert found["state"] == undisturbed["state"]


@pytest.mark.long
def test_four_processes_draw_apart_and_go_on_exactly(tmp_path):
    require_backend("torch")
    arguments = (PROBE, "resume", tmp_path / "checkpoints")
    found = results_of_each("ddp", 4, tmp_path, *arguments)
    masks = [mask for each in found for mask in each["whole"]["masks"]]
    assert len(set(masks)) == len(masks) == 12 * 4
    for each in found:
        assert each["whole"]["state"] == found[0]["whole"]["state"]
        for resumed in (each["epoch"], each["5"]):
            assert resumed["state"] == each["whole"]["state"]
            assert len(resumed["masks"]) == 8
            # Of the last epoch; before, some may be those of batches that are skipped.
            assert resumed["masks"][-4:] == each["whole"]["masks"][-4:]


@pytest.mark.long
def test_jax_devices_train_as_one(saved):
    require_backend("jax")
    result = run_python(
        *("-m", "tests.integration.distributed_probe", "jax", saved),
        backend="jax",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
    )
    found = results_of(result.stdout)
    for name, devices, replicas in (
        ("two", 2, 2),
        ("four", 4, 4),
        ("model_parallel", 4, 2),
    ):
        check(found[name], replicas)
        assert found[name]["devices"] == devices
        # The base's three kernels.
        assert found[name]["split"] == (3 if name == "model_parallel" else 0)


def example(engine, folder, *, epochs=40):
    """Return the command line of a training of many short epochs."""
    return (
        ROOT / "examples" / "train_distributed.py",
        f"--engine={engine}",
        f"--output_dir={folder}",
        f"--epochs={epochs}",
        "--train_examples=64",
        "--batch_size=32",
        "--taps=1",
    )


def weights_in(folder):
    """Return weights, counters and optimizer of a run's only checkpoint."""
    (path,) = folder.glob("epoch_*.weights.h5")
    found = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(keep)
    return found


def check_same_end(whole, resumed):
    expected, found = weights_in(whole), weights_in(resumed)
    assert expected.keys() == found.keys()
    assert any("optimizer" in name for name in found)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)
    rows = (resumed / "history.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [str(i) for i in range(40)]


@pytest.mark.long
@pytest.mark.parametrize("engine", CLUSTERS)
def test_a_worker_that_dies_is_missed_and_the_run_goes_on(engine, tmp_path):
    require_backend(BACKENDS[engine])
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    # Each by itself, as on machines of their own: nobody watches over both.
    workers = [
        Worker(tmp_path / f"{index}.txt", *example(engine, torn), **environment)
        for index, environment in enumerate(CLUSTERS[engine](2))
    ]
    workers[1].kill_after(torn / "epoch_2.weights.h5")
    assert workers[0].process.wait(timeout=60)  # An error, and not a hang.
    assert "Error" in workers[0].output
    assert not (torn / "model.keras").exists()
    resumed = Worker(tmp_path / "resumed.txt", *example(engine, torn)).end()
    assert "\n2 replicas, 0 epochs done" not in resumed
    assert "accuracy of the final exit" in resumed
    Worker(tmp_path / "whole.txt", *example(engine, whole)).end()
    check_same_end(whole, torn)


@pytest.mark.long
@pytest.mark.parametrize(
    ("engine", "backend"), [("mirrored", "tensorflow"), ("data_parallel", "jax")]
)
def test_a_killed_run_goes_on(engine, backend, tmp_path):
    require_backend(backend)
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    killed = Worker(tmp_path / "killed.txt", *example(engine, torn))
    killed.kill_after(torn / "epoch_2.weights.h5")
    resumed = Worker(tmp_path / "resumed.txt", *example(engine, torn)).end()
    assert "\n2 replicas, 0 epochs done" not in resumed
    Worker(tmp_path / "whole.txt", *example(engine, whole)).end()
    check_same_end(whole, torn)


@pytest.mark.long
def test_the_example_splits_a_model(tmp_path):
    require_backend("jax")
    folder = tmp_path / "run"
    worker = Worker(
        tmp_path / "output.txt", *example("model_parallel", folder, epochs=1)
    )
    assert "accuracy of the final exit" in worker.end()


WAIT = "import os, time; time.sleep(600 * int(os.environ['RANK'])); raise SystemExit(3)"


@pytest.mark.once
def test_workers_fall_together(capfd):
    ranks = [{"RANK": "0"}, {"RANK": "1"}]
    assert local_workers.run([sys.executable, "-c", WAIT], ranks) == 3
    printed = capfd.readouterr()
    assert "worker 0 ended with exit status 3" in printed.err
    pids = [int(line.split()[-1]) for line in printed.out.splitlines()]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.once
def test_workers_that_all_succeed():
    command = [sys.executable, "-c", "pass"]
    assert local_workers.run(command, local_workers.torch_cluster(2)) == 0
