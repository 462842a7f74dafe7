"""Scripts in processes of their own, one of which is killed and begun again."""

import concurrent.futures
import signal

from tests.conftest import run_python

_KILL = """
import os, signal
replace, saved = os.replace, []

def deadly_replace(source, target):
    saved.extend([target] if str(target).endswith({suffix!r}) else [])
    if len(saved) == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = deadly_replace
"""

# As Python itself begins a script.
_BEGIN = """
import os, sys
del sys.argv[0]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
"""
_RUN = """
import runpy, sys
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_script(script, *flags, before="", **environment):
    """Runs a script in its own process, after some Python code."""
    return run_python(
        "-c",
        _BEGIN + before + _RUN,
        script,
        *flags,
        check=False,
        # Two trainings at a time, whose threads would wait for each other.
        **{"OMP_NUM_THREADS": "1", **environment},
    )


def killed_replacing(suffix, number):
    """Returns code that kills a script without warning, in the middle of saving.

    Args:
        suffix: Suffix of the saved files that count.
        number: Which of them, complete on disk, does not get to its place.
    """
    return _KILL.format(suffix=suffix, number=number)


def run_whole_and_killed(whole, killed, *, kill, when_killed):
    """Runs a script at a stretch and, elsewhere, killed and begun again.

    Args:
        whole: Function that runs it at a stretch.
        killed: Function of some Python code that runs it after that code.
        kill: The code that kills it.
        when_killed: Called between the two parts, to look at what is left.

    Returns:
        The second part's process, ended well like the one that was not killed.
    """
    with concurrent.futures.ThreadPoolExecutor() as pool:
        uninterrupted = pool.submit(whole)
        first = killed(kill)
        assert first.returncode == -signal.SIGKILL, first.stderr
        when_killed()
        second = killed("")
    for finished in (second, uninterrupted.result()):
        assert finished.returncode == 0, finished.stderr
    return second
