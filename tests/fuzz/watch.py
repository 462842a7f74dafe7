"""What reading a file does to the machine: files, imports, processes and memory."""

import ctypes
import os
import struct
import sys

# Packages that load their own parts late.
_LATE = ("keras", "keras_selfdistill", "tensorflow", "numpy", "h5py", "ml_dtypes")
# Modules of Python itself that reading or reporting an error may need first.
_PLAIN = ("encodings", "traceback", "linecache", "tokenize", "token", "difflib", "json")
_NEVER = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "pickle.find_class",
    "ctypes.dlopen",
    "webbrowser.open",
)
_KINDS = ("os.", "shutil.", "tempfile.", "glob.", "pathlib.")


class Watch:
    """Collects what should not have happened, by Python's audit events.

    What native code opens is seen by the kernel instead, in one folder.

    Args:
        inside: The only folder that may be written.
        outside: A folder that nobody may touch.
    """

    def __init__(self, inside, outside):
        self.violations: list[str] = []
        self.active = False
        self._inside = (os.path.realpath(inside), os.path.realpath(os.devnull))
        package = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
        readable = {sys.prefix, sys.base_prefix, package, *sys.path[1:]}
        self._readable = tuple(map(os.path.realpath, filter(None, readable)))
        self._outside = _NativeWatch(outside)
        sys.addaudithook(self._hear)
        # Audit events miss what is imported by name, as Keras does.
        sys.meta_path.insert(0, self)

    def __enter__(self):
        self.violations.clear()
        self.active = True
        return self

    def __exit__(self, *error):
        self.active = False
        self.violations += [f"opened {name!r} outside" for name in self._outside.read()]

    def find_spec(self, name, path=None, target=None):
        """Note the name of a module that is looked for, as a finder of modules."""
        if self.active and name.split(".")[0] not in (*_LATE, *_PLAIN):
            self.violations.append(f"import: {name}")

    def _hear(self, event, arguments):
        if not self.active:
            return
        self.active = False  # Not what is done here.
        try:
            problem = self._problem(event, arguments)
        finally:
            self.active = True
        if problem:
            self.violations.append(f"{event}: {problem}")

    def _problem(self, event, arguments):
        if event in _NEVER or event.startswith(("socket.", "urllib.", "http.")):
            return repr(arguments)[:200]
        if event == "open":
            path, mode, flags = arguments
            writes = bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            return self._problem_of_path(path, writes or "w" in (mode or ""))
        if event.startswith(_KINDS):
            reads = event in ("os.listdir", "os.scandir", "os.walk", "os.fwalk")
            found = [
                self._problem_of_path(_absolute(each, folder), not reads)
                for each, folder in _paths(event, arguments)
            ]
            return next(filter(None, found), None)
        return None

    def _problem_of_path(self, path, writes):
        if isinstance(path, int) or path is None:
            return None
        real = os.path.realpath(os.fsdecode(path))
        places = self._inside if writes else (*self._inside, *self._readable, "/proc")
        inside = any(real == each or real.startswith(each + "/") for each in places)
        return None if inside else real


def _paths(event, arguments):
    """Return the paths of an event, each with the folder that it may be relative to."""
    if event in ("os.rename", "os.link"):  # From, to, and the folders of both.
        return zip(arguments[:2], arguments[2:], strict=True)
    paths = [each for each in arguments if isinstance(each, (str, bytes))]
    return [(each, arguments[-1]) for each in paths]


def _absolute(path, opened_folder):
    """Return a path that may be relative to a folder given by its number."""
    if isinstance(opened_folder, int) and opened_folder > 2:
        folder = os.readlink(f"/proc/self/fd/{opened_folder}")
        return os.path.join(os.fsencode(folder), os.fsencode(path))
    return path


class _NativeWatch:
    """Names of the files of a folder that anything has opened, by Linux' inotify."""

    _OPENED = 0x20

    def __init__(self, folder):
        library = ctypes.CDLL(None, use_errno=True)
        self._file = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        where = os.fsencode(folder)
        if library.inotify_add_watch(self._file, where, self._OPENED) < 0:
            raise OSError(ctypes.get_errno(), "inotify")

    def read(self):
        found = []
        try:
            events = os.read(self._file, 1 << 16)
        except BlockingIOError:
            return found
        while events:
            *_, length = struct.unpack("iIII", events[:16])
            found.append(os.fsdecode(events[16 : 16 + length].rstrip(b"\0")))
            events = events[16 + length :]
        return found


def memory(field):
    """Return a field of this process' memory, such as `VmRSS`, in bytes."""
    with open("/proc/self/status") as file:
        line = next(each for each in file if each.startswith(field))
    return int(line.split()[1]) * 1024


def forget_peak():
    """Let `VmHWM` start from the memory in use now."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
