"""Packages that only parts of the library need."""

import importlib
from typing import Any


def optional_module(module: str, needed_by: str, extra: str | None = None) -> Any:
    """Return a module of a package that need not be installed.

    Args:
        module: Name of the module.
        needed_by: What needs it; the error begins with it.
        extra: Extra of this library that installs it.

    Raises:
        ImportError: The package is not installed; the message says how to install it.
            Errors of a package that is installed are its own.

    Example:
        >>> optional_module("json", "Reading").loads("1")
        1
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (package, module):
            raise
        also = f", or install this library with its extra `{extra}`" if extra else ""
        raise ImportError(
            f"{needed_by} needs the package {package}, which is not installed. Run "
            f"`python -m pip install {package}`{also}."
        ) from error
