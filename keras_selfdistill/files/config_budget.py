"""Limits on what a config may request, checked before any object is created from it.

A few bytes of a config can demand much: a number may be the length of a list, a pattern
may take exponential time. What a file's size does not bound is bounded here.
"""

import re
import reprlib
from typing import Any, NamedTuple

import keras

from keras_selfdistill.files.config_check import resolve, where
from keras_selfdistill.utils.config import is_of_keras
from keras_selfdistill.utils.type_aliases import ConfigDict

_MOST = {
    "layers and operations": 10_000,  # NASNetLarge has 1,041.
    "losses and metrics": 1000,  # Those of each exit count, as every exit has its own.
    "other objects": 100_000,
    # Thresholds, classes, parts of a split, iterations: lengths of lists and loops.
    "items of lists": 2**17,
}
_OF_AN_EXIT = 20  # Layers and operations of the largest head.
# Fields whose values become losses or metrics, names and functions, too.
_LOSSES = frozenset(("loss", "losses", "metrics", "weighted_metrics"))
_LOSS_CLASSES = (
    keras.distillation.DistillationLoss,
    keras.losses.Loss,
    keras.metrics.Metric,
)
_LONGEST_TEXT = 10_000  # Letters of a layer's field, such as an equation.
# Fields of layers, operations and optimizers that are lengths of lists or loops.
_REPEATED = frozenset(
    (
        "bins",
        "chain_depth",
        "indices_or_sections",
        "ngrams",
        "ns_steps",
        "num",
        "num_chains",
        "num_oov_indices",
        "num_ops",
        "pool_dimensions",
        "power_iterations",
        "rank",
    )
)
# Fields whose strings Keras searches for in the names of all variables, as patterns.
_SEARCHED = ("exclude_layers",)
_MATCHED = ("optimizer_map", "policy_map")
# Patterns that take at most as many steps as the name has letters, per wildcard.
_NAME = r"[\w/ .\-]*"
_PLAIN = re.compile(rf"\^?{_NAME}\$?")
_WILDCARDS = re.compile(rf"\^?(\(\?!{_NAME}\))?({_NAME}\.\*)*{_NAME}\$?")
_LONGEST_PATTERN = 200
_LONGEST_WEIGHT_NAME = 100  # Letters that layers add to names, as in "/query/kernel".
_MOST_STEPS = 10**9  # Steps of all searches in all names together: seconds.


def check_budget(config: object) -> None:
    """Refuse a config that requests more than any model needs.

    Args:
        config: Config that has passed `check_config`.

    Raises:
        ValueError: The config has too many objects, numbers that make lists or loops
            too long, or a pattern that may take exponential time. The message names
            the field.

    Example:
        >>> auc = keras.metrics.AUC(num_thresholds=10**6)
        >>> check_budget(keras.saving.serialize_keras_object(auc))
        Traceback (most recent call last):
            ...
        ValueError: The config requests too many items of lists. Received: more than \
131072, at config.num_thresholds. Expected: ...
    """
    budget = _Budget()
    budget.spend(config, _Place((), None, 0))
    budget.check_patterns()


class _Place(NamedTuple):
    """The position of a value in a config."""

    path: tuple[str | int, ...]
    kind: Any  # Class of the object around it.
    name_length: int  # Letters of the names of all objects around it, together.
    copies: int = 1  # How often everything here is created.
    exits: int = 1  # Outputs of the model around it; each has copies of its metrics.
    is_loss: bool = False  # Whether whatever stands here becomes a loss or a metric.

    def inside(self, key: str | int) -> "_Place":
        """Return the place of a value in the one here."""
        return self._replace(
            path=(*self.path, key),
            copies=self.copies * (self.exits if key == "compile_config" else 1),
            is_loss=self.is_loss or key in _LOSSES,
        )


class _Budget:
    """Counts the objects of a config, and the steps of its patterns."""

    def __init__(self) -> None:
        self._spent = dict.fromkeys(_MOST, 0)
        self._longest_name = 0
        self._wildcards: list[int] = []  # Their number in each pattern.

    def spend(self, value: object, place: _Place) -> None:
        if isinstance(value, dict):
            if "class_name" in value:
                place = self._spend_object(value, place)
            for key, each in value.items():
                self.spend(each, place.inside(key))
        elif isinstance(value, (list, tuple)):
            for i, each in enumerate(value):
                self.spend(each, place.inside(i))
        elif place.is_loss:
            self._add("losses and metrics", 1, place)
        elif isinstance(value, str):
            self._check_text(value, place)
        elif isinstance(value, int) and not isinstance(value, bool):
            field = place.path[-1] if place.path else None
            is_metrics = isinstance(field, str) and _is_a(
                place.kind, keras.metrics.Metric
            )
            if is_metrics or field in _REPEATED:
                self._add("items of lists", abs(value), place)

    def check_patterns(self) -> None:
        length = self._longest_name + _LONGEST_WEIGHT_NAME
        steps = sum(length ** max(1, number) for number in self._wildcards)
        if steps * (1 + self._spent["layers and operations"]) > _MOST_STEPS:
            raise ValueError(
                "Searching for the config's patterns could take too long. Received: "
                f"{len(self._wildcards)} patterns for names of up to {length} letters. "
                "Expected: fewer patterns, with one '.*' each, or shorter names."
            )

    def _spend_object(self, config: ConfigDict, place: _Place) -> _Place:
        kind = resolve(config)
        fields = config.get("config")
        is_loss, place = place.is_loss, place._replace(kind=kind, is_loss=False)
        if is_loss or _is_a(kind, _LOSS_CLASSES):
            self._add("losses and metrics", 1, place)
        elif _is_a(kind, keras.Operation):
            self._add("layers and operations", 1, place)
        else:
            self._add("other objects", 1, place)
        if not isinstance(fields, dict):
            return place
        taps = fields.get("taps") if _is_a(kind, keras.Model) else None
        if isinstance(taps, (list, tuple, dict)):
            self._add("layers and operations", _OF_AN_EXIT * len(taps), place)
            place = place._replace(exits=len(taps) + 2)  # Also final and the ensemble.
        padded = fields.get("max_tokens") if fields.get("pad_to_max_tokens") else None
        if isinstance(padded, int):  # Also the length of the weights of "tf_idf".
            self._add("items of lists", abs(padded), place.inside("max_tokens"))
        for field in _SEARCHED:
            self._add_patterns(fields.get(field), _PLAIN, place.inside(field))
        for field in _MATCHED:
            self._add_patterns(fields.get(field), _WILDCARDS, place.inside(field))
        name = fields.get("name")
        length = place.name_length + (len(name) if isinstance(name, str) else 0)
        self._longest_name = max(self._longest_name, length)
        return place._replace(name_length=length)

    def _add_patterns(
        self, patterns: object, allowed: re.Pattern[str], place: _Place
    ) -> None:
        for pattern in _texts(patterns):
            parts = pattern.split("|") if allowed is _WILDCARDS else [pattern]
            if len(pattern) > _LONGEST_PATTERN or not all(
                allowed.fullmatch(part) for part in parts
            ):
                raise ValueError(
                    "The config has a pattern that may take exponential time. "
                    f"Received: {reprlib.repr(pattern)} at "
                    f"{where(place.path)}. Expected: names of layers, in an "
                    "OptimizerMap or DTypePolicyMap also with '.*', '|' and "
                    "'(?!name)' at the beginning. For a file that you trust, use "
                    "keras.saving.load_model."
                )
            self._wildcards += [part.count(".*") for part in parts]

    def _check_text(self, text: str, place: _Place) -> None:
        is_own = _is_a(place.kind, keras.Operation) and is_of_keras(place.kind)
        if is_own and len(text) > _LONGEST_TEXT:
            raise ValueError(
                "A string of the config is too long for a layer. Received: "
                f"{len(text)} letters at {where(place.path)}. Expected: at most "
                f"{_LONGEST_TEXT}."
            )

    def _add(self, what: str, number: int, place: _Place) -> None:
        self._spent[what] += number * place.copies
        if self._spent[what] > _MOST[what]:
            raise ValueError(
                f"The config requests too many {what}. Received: more than "
                f"{_MOST[what]}, at {where(place.path)}. Expected: at most "
                f"{_MOST[what]} in one file. For a file that you trust, use "
                "keras.saving.load_model."
            )


def _texts(patterns: object) -> list[str]:
    """Return the strings of a list of patterns, or of a mapping by pattern."""
    if isinstance(patterns, str):
        return [patterns]
    if not isinstance(patterns, (list, tuple, dict)):
        return []
    return [each for each in patterns if isinstance(each, str)]


def _is_a(kind: object, classes: type | tuple[type, ...]) -> bool:
    return isinstance(kind, type) and issubclass(kind, classes)
