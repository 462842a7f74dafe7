"""Print the oldest versions that `setup.py` admits, for pip: `python -m tests.floors`.

Of what the core of the suite needs, and of the backends that it runs on. PyTorch is
not among them: the whole suite runs on its floor, which the extra `test` pins. Older
versions are not tested, as their builds for Linux come with several GB of CUDA.
"""

import pathlib
import re

CORE = (
    "absl-py",
    "h5py",
    "jax",
    "keras",
    "numpy",
    "pytest",
    "pytest-xdist",
    "tensorflow",
)


def pinned() -> list[str]:
    """Return `name==version` for each of them."""
    text = pathlib.Path(__file__).parent.parent.joinpath("setup.py").read_text()
    lowest = dict(re.findall(r'"([a-z0-9-]+)>=([0-9.]+)"', text))
    return [f"{name}=={lowest[name]}" for name in CORE]


if __name__ == "__main__":
    print(*pinned())
