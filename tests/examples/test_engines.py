"""What engines of several processes do together."""

import concurrent.futures
import threading

import keras
import numpy as np
import pytest

from distributed import engines
from tests.conftest import small_base


class Thread(engines.Engine):
    """One of several processes, two on each machine, as a thread."""

    processes = 4

    def __init__(self, process, barrier):
        self.process, self.local_process = process, process % 2
        self._barrier = barrier

    def wait(self):
        self._barrier.wait(timeout=60)


@pytest.mark.once
def test_one_process_of_each_machine_goes_before_the_others():
    barrier, events = threading.Barrier(4), []

    def go(process):
        with Thread(process, barrier).in_turns():
            events.append((process, "begins"))
            events.append((process, "is done"))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(go, reversed(range(4))))
    first = [(0, "begins"), (0, "is done"), (2, "begins"), (2, "is done")]
    assert events[:4] == first
    assert sorted(events[4:]) == [(i, e) for i in (1, 3) for e in ("begins", "is done")]


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch.distributed")
def test_counts_of_metrics_are_summed(batch):
    import torch

    from distributed.engines.torch import AverageGradients

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        logs = []
        for callbacks in ([], [AverageGradients()]):
            keras.utils.set_random_seed(0)
            model = small_base()
            # It counts in integers.
            metric = keras.metrics.MeanIoU(4, sparse_y_pred=False, name="iou")
            model.compile("sgd", "sparse_categorical_crossentropy", metrics=[metric])
            found = model.fit(*batch, batch_size=8, callbacks=callbacks, verbose=0)
            logs.append(found.history)
        np.testing.assert_allclose(logs[1]["iou"], logs[0]["iou"], atol=1e-6)
        np.testing.assert_allclose(logs[1]["loss"], logs[0]["loss"], atol=1e-6)
    finally:
        torch.distributed.destroy_process_group()
