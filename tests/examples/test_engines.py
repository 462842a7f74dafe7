"""What engines of several processes do together."""

import concurrent.futures
import threading

import pytest

from distributed import engines

pytestmark = pytest.mark.once


class Thread(engines.Engine):
    """One of several processes, two on each machine, as a thread."""

    processes = 4

    def __init__(self, process, barrier):
        self.process, self.local_process = process, process % 2
        self._barrier = barrier

    def wait(self):
        self._barrier.wait(timeout=60)


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
