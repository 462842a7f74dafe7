"""Read mutated files, one after another, and report each: run by `tests.fuzz`.

Limits are real ones: a mutation that takes ten seconds ends the process by a signal,
as one that crashes the interpreter does, and whoever started it sees which it was.
"""

import argparse
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import tempfile
import warnings

import keras

import keras_selfdistill as ksd
from keras_selfdistill.callbacks import checkpoints, training_state
from keras_selfdistill.early_exit.export.section_runner import read_manifest

from . import mutations
from .watch import Watch, forget_peak, memory

SECONDS = 10  # Of computing; a busy machine makes nothing hang.
_WAITING = 300  # Seconds by the clock.
MOST_GROWTH = 2 << 30  # Bytes, while one file is read.
_ADDRESSES = 8 << 30  # Bytes of address space beyond those in use, for the machine.
_LEAKED = 1 << 30  # Bytes kept by Keras after which a new process goes on.


def _read_wrapper(path):
    ksd.load_model(path)


def _read_early_exit(path):
    ksd.EarlyExit.load(path)


def _read_checkpoint(path):
    training_state.check_content(checkpoints.read(path))


def _read_run(path):
    """Go on with a training, as `Resume` does, and leave the next checkpoint."""
    run = checkpoints.Checkpoints(path, keep=1)
    found = run.newest(training_state.check_content)
    if found is not None:
        run.write(found._replace(epoch=found.epoch + 1))


TARGETS = {
    "plain.keras": (mutations.mutate_wrapper, _read_wrapper, ksd.RefusedFileError),
    "full.keras": (mutations.mutate_wrapper, _read_wrapper, ksd.RefusedFileError),
    "plain.earlyexit": (
        mutations.mutate_early_exit,
        _read_early_exit,
        ksd.RefusedFileError,
    ),
    "exported": (mutations.mutate_folder, read_manifest, ValueError),
    "last.checkpoint": (mutations.mutate_checkpoint, _read_checkpoint, ValueError),
    "run": (mutations.mutate_run, _read_run, (ValueError, FileExistsError)),
}
_SHARES = (4, 3, 4, 2, 2, 2)


def content_of(path):
    """Return the bytes of a file, or those of a folder's files by name."""
    if path.is_dir():
        return {each.name: each.read_bytes() for each in path.iterdir()}
    return path.read_bytes()


def put(path, content):
    """Write what `content_of` returned.

    In a folder, a string is a link's target, `None` a pipe, and a mapping a folder.
    """
    if isinstance(content, bytes):
        path.write_bytes(content)
        return
    path.mkdir()
    for name, each in content.items():
        if isinstance(each, str):
            (path / name).symlink_to(each)
        elif each is None:
            os.mkfifo(path / name)
        else:
            put(path / name, each)


def try_one(number, seed, corpus, folder, watch):
    """Read one mutated file and return what happened."""
    chance = random.Random(f"{seed}:{number}")
    (target,) = chance.choices(list(TARGETS), _SHARES)
    mutate, read, refusal = TARGETS[target]
    content = mutate(corpus[target], chance, folder.parent / "outside")
    path = folder / target
    put(path, content)
    forget_peak()
    before, error = memory("VmRSS"), None
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(_WAITING)
    with watch:
        try:
            read(path)
        except BaseException as found:
            error = found
    signal.alarm(0)
    signal.setitimer(signal.ITIMER_PROF, 0)
    problems = list(watch.violations)
    grown = memory("VmHWM") - before
    if grown > MOST_GROWTH:
        problems.append(f"memory grew by {grown >> 20} MiB")
    if error is not None and not isinstance(error, refusal):
        problems.append(f"{type(error).__name__}: {error}")
    outcome = "loaded" if error is None else "refused"
    return {"number": number, "target": target, "outcome": outcome, "found": problems}


def main():
    """Read mutations of a range of numbers, as far as memory lasts."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--stop", type=int, default=1)
    options = parser.parse_args()
    inside = options.folder / f"inside_{os.getpid()}"
    warnings.simplefilter("ignore")
    corpus = {name: content_of(options.folder / "corpus" / name) for name in TARGETS}
    for name, (_, read, _) in TARGETS.items():
        with tempfile.TemporaryDirectory() as copy:  # Some are written to, too.
            put(pathlib.Path(copy) / name, corpus[name])
            read(pathlib.Path(copy) / name)  # What is first used is imported now.
    tempfile.tempdir = str(inside)
    watch = Watch(inside, options.folder / "outside")
    addresses = memory("VmSize") + _ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
    floor = memory("VmRSS")
    for number in range(options.start, options.stop):
        inside.mkdir()
        print(json.dumps({"number": number, "outcome": "started"}), flush=True)
        print(
            json.dumps(try_one(number, options.seed, corpus, inside, watch)), flush=True
        )
        shutil.rmtree(inside)
        keras.backend.clear_session(free_memory=number % 20 == 0)
        if memory("VmRSS") > floor + _LEAKED:
            return


if __name__ == "__main__":
    main()
