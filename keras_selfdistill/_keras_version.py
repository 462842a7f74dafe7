"""Refuse an unsupported version of Keras; imported before the other modules."""

import re

import keras

OLDEST = (3, 15, 1)


def check_version(version: str) -> None:
    """Refuse a version of Keras older than the oldest supported one.

    Raises:
        ImportError: The version is older.

    Example:
        >>> check_version("3.16.0.dev2027")
    """
    found = tuple(map(int, re.findall(r"\d+", version)[:3]))
    if found < OLDEST:
        raise ImportError(
            f"keras_selfdistill needs Keras {'.'.join(map(str, OLDEST))} or newer: "
            "older ones have known vulnerabilities in loading files. Received: Keras "
            f"{version} at {keras.__path__[0]}. Run: python -m pip install --upgrade "
            "keras"
        )


check_version(keras.__version__)
