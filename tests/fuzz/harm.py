"""Do, one after another, what the fuzz test looks for, and print what it found."""

import contextlib
import ctypes
import importlib
import os
import pathlib
import pickle
import subprocess
import tempfile

from .watch import Watch, forget_peak, memory


def _read_natively(path):
    library = ctypes.CDLL(None)
    library.close(library.open(os.fsencode(path), os.O_RDONLY))


HARMS = {
    "a file read": lambda outside: (outside / "secret").read_text(),
    "a file read by native code": lambda outside: _read_natively(outside / "secret"),
    "a file written": lambda outside: (outside / "new").write_text("x"),
    "a folder made": lambda outside: (outside / "folder").mkdir(),
    "a file removed": lambda outside: (outside / "new").unlink(),
    "a process": lambda outside: subprocess.run(["true"], check=True),
    "an import": lambda outside: importlib.import_module("antigravity_of_nobody"),
    "a pickle": lambda outside: pickle.loads(pickle.dumps(Watch)),
}


def main():
    """Print a line for each harm."""
    with tempfile.TemporaryDirectory() as name:
        inside, outside = pathlib.Path(name) / "inside", pathlib.Path(name) / "outside"
        for each in (inside, outside):
            each.mkdir()
        (outside / "secret").write_text("secret")
        _read_natively("/dev/null")
        watch = Watch(inside, outside)
        for label, harm in HARMS.items():
            with watch, contextlib.suppress(ModuleNotFoundError):
                harm(outside)
            print(f"{label}: {'found' if watch.violations else 'missed'}")
        with watch:
            (inside / "fine").write_text("x")
            (inside / "fine").unlink()
        print(f"nothing: {'found' if watch.violations else 'nothing'}")
        forget_peak()
        before = memory("VmRSS")
        del (lambda: bytearray(b"x") * (1 << 28))()[:]
        grown = memory("VmHWM") - before
        print(f"256 MiB: {'found' if grown > 200 << 20 else 'missed'}")


if __name__ == "__main__":
    main()
