"""Parser of the keys of `History` and of the logs of callbacks."""

import re
from collections.abc import Iterable
from typing import NamedTuple

_PREFIX = re.compile(r"(exit_\d+|ensemble|section_\d+)_(.+)")


class LogName(NamedTuple):
    """One parsed key of the logs.

    Args:
        validation: Whether the key starts with `val_`.
        source: Exit (`"exit_1"`, …, `"final"`, `"ensemble"`) or section
            (`"section_1"`) of the quantity; `""` for quantities of the whole training.
        quantity: Name of the quantity, such as `"accuracy"` or `"loss"`.
    """

    validation: bool
    source: str
    quantity: str


def parse_log_names(keys: Iterable[str]) -> dict[str, LogName]:
    """Parse the keys of logs.

    Metrics of the final exit have no prefix: a key without prefix belongs to the final
    exit if another exit logs the same quantity.

    Args:
        keys: All keys of the logs.

    Returns:
        Mapping of keys to parsed names.

    Example:
        >>> found = parse_log_names(["loss", "val_accuracy", "val_exit_1_accuracy"])
        >>> [tuple(name) for name in found.values()]
        [(False, '', 'loss'), (True, 'final', 'accuracy'), (True, 'exit_1', 'accuracy')]
    """
    names = {key: _parse(key) for key in keys}
    metrics = {name.quantity for name in names.values() if _of_exit(name.source)}
    return {
        key: name._replace(source="final")
        if not name.source and name.quantity in metrics
        else name
        for key, name in names.items()
    }


def grouped_names(keys: Iterable[str]) -> dict[str, str]:
    """Return names by which trackers group the logs: quantity, slash, exit.

    Args:
        keys: All keys of the logs.

    Returns:
        Mapping of keys to names. Quantities of the whole training keep theirs.

    Example:
        >>> keys = ["loss", "val_accuracy", "val_exit_1_accuracy", "section_1_gradient"]
        >>> list(grouped_names(keys).values())
        ['loss', 'val_accuracy/final', 'val_accuracy/exit_1', 'gradient/section_1']
    """
    return {key: _grouped(name) for key, name in parse_log_names(keys).items()}


def exits_in_order(names: Iterable[LogName]) -> list[str]:
    """Return the exits among the sources, shallow to deep, then the ensemble.

    Args:
        names: Parsed names of logs.

    Example:
        >>> names = parse_log_names(["top_5", "ensemble_top_5", "exit_1_top_5"])
        >>> exits_in_order(names.values())
        ['exit_1', 'final', 'ensemble']
    """
    found = {name.source for name in names if _of_exit(name.source)}
    return sorted(found, key=lambda source: (source == "ensemble", source))


def _parse(key: str) -> LogName:
    rest = key.removeprefix("val_")
    match = _PREFIX.fullmatch(rest)
    source, quantity = match.groups() if match else ("", rest)
    return LogName(rest != key, source, quantity)


def _grouped(name: LogName) -> str:
    quantity = f"val_{name.quantity}" if name.validation else name.quantity
    return f"{quantity}/{name.source}" if name.source else quantity


def _of_exit(source: str) -> bool:
    return source in ("final", "ensemble") or source.startswith("exit_")
