"""Processes of one program on this machine that stand or fall together."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence


def tensorflow_cluster(count: int) -> list[dict[str, str]]:
    """Returns what tells each of several processes on this machine its place.

    On several machines, `TF_CONFIG` names their addresses, and each one's own index.
    """
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(count)]
    return [
        {
            "TF_CONFIG": json.dumps(
                {
                    "cluster": {"worker": addresses},
                    "task": {"type": "worker", "index": index},
                }
            )
        }
        for index in range(count)
    ]


def torch_cluster(count: int) -> list[dict[str, str]]:
    """Returns what tells each of several processes on this machine its place.

    On several machines, `torchrun` sets these variables.
    """
    (port,) = _free_ports(1)
    return [
        {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(count),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            # More threads than cores would make each step take seconds.
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count)),
        }
        for rank in range(count)
    ]


def run(command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> int:
    """Runs a command once for each environment, and ends all when one fails.

    Returns:
        0 if all succeed, else the exit status of the first that does not; that of a
        signal is negative.
    """
    workers: list[subprocess.Popen] = []
    try:
        for environment in environments:
            worker = subprocess.Popen(command, env={**os.environ, **environment})
            print(f"worker {len(workers)} is process {worker.pid}", flush=True)
            workers.append(worker)
        return _wait(workers)
    finally:
        _stop(workers)


def _wait(workers):
    running = dict(enumerate(workers))
    while running:
        time.sleep(0.1)
        for index, worker in list(running.items()):
            status = worker.poll()
            if status:
                print(
                    f"worker {index} ended with exit status {status}; the others are "
                    "stopped. Run the same command again to go on.",
                    file=sys.stderr,
                )
                return status
            if status == 0:
                del running[index]
    return 0


def _stop(workers):
    for worker in workers:
        worker.terminate()
    for worker in workers:
        try:
            worker.wait(timeout=5)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
