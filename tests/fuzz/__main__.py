"""Run the fuzz test: `python -m tests.fuzz --mutations=50000 --jobs=2`."""

import argparse
import collections
import concurrent.futures
import json
import pathlib
import signal
import subprocess
import sys
import tempfile

from . import corpus

_EACH = 1000  # Mutations of one process, at most.


def _child(folder, seed, start, stop):
    """Return the reports of one process, and how it ended."""
    command = [sys.executable, "-m", "tests.fuzz.child", str(folder)]
    options = [f"--seed={seed}", f"--start={start}", f"--stop={stop}"]
    done = subprocess.run(command + options, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return [json.loads(line) for line in lines], done.returncode, done.stderr


def run_range(folder, seed, start, stop):
    """Yield the report of each mutation of a range, through as many processes."""
    while start < stop:
        reports, code, errors = _child(folder, seed, start, stop)
        if not reports:
            raise RuntimeError(f"The process did not begin: {errors[-2000:]}")
        yield from (each for each in reports if each["outcome"] != "started")
        last = reports[-1]
        if last["outcome"] == "started":
            name = signal.Signals(-code).name if code < 0 else f"status {code}"
            found = [f"the process ended by {name}: {errors[-300:]}"]
            yield {**last, "target": "?", "outcome": "ended", "found": found}
        start = last["number"] + 1


def fuzz(mutations, *, seed="0", jobs=1, show=print):
    """Read so many mutated files and return how many had each outcome.

    Args:
        mutations: How many.
        seed: Seed of the mutations.
        jobs: How many processes read at a time.
        show: Called with a line for each finding.

    Returns:
        Counts by outcome: `"loaded"`, `"refused"`, and `"finding"`.
    """
    outcomes = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="fuzz_") as name:
        folder = pathlib.Path(name)
        corpus.write(folder / "corpus")
        starts = range(0, mutations, _EACH)
        with concurrent.futures.ThreadPoolExecutor(jobs) as threads:
            parts = threads.map(
                lambda start: list(
                    run_range(folder, seed, start, min(mutations, start + _EACH))
                ),
                starts,
            )
            for report in (each for part in parts for each in part):
                outcomes["finding" if report["found"] else report["outcome"]] += 1
                for problem in report["found"]:
                    number, target = report["number"], report["target"]
                    show(f"{seed}:{number} {target}: {problem}")
                if outcomes.total() % (5 * _EACH) == 0:
                    show(f"{outcomes.total()} of {mutations}: {dict(outcomes)}")
    return outcomes


def main():
    """Print the findings and the counts; the exit status is 1 if there are findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--jobs", type=int, default=1)
    sys.stdout.reconfigure(line_buffering=True)
    outcomes = fuzz(**vars(parser.parse_args()))
    print(dict(outcomes))
    sys.exit(bool(outcomes["finding"]))


if __name__ == "__main__":
    main()
