"""The budget of heads: a recipe's own head, narrowed if it is too expensive."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
from absl import logging

from keras_selfdistill.costs.counting import (
    Count,
    macs_by_node,
    macs_ratio,
    model_macs,
)
from keras_selfdistill.graph.nodes import model_nodes, nodes_behind
from keras_selfdistill.heads.base import Head, Target
from keras_selfdistill.utils.keras_internals import deferred_values, give_values
from keras_selfdistill.utils.type_aliases import SymbolicTensor

# Heads of a recipe's own kind add at most this share of the base's multiply-adds.
MACS_BUDGET = 0.15


def features_within_budget(
    base: keras.Model,
    head: Head,
    taps: Mapping[str, SymbolicTensor],
    target: Target,
    classes: int,
) -> tuple[Head, dict[str, SymbolicTensor]]:
    """Return a head, or the widest narrower one whose exits cost at most `MACS_BUDGET`.

    The published heads were designed for networks whose last feature is narrow compared
    with their cost. Mobile networks end in a wide feature, and bottleneck ResNets in
    one of 2048 channels: there, three published heads would add between a third and
    twice the base's multiply-adds to every training step. All exits use one head, so
    that they stay comparable and the wrapper's config names it.

    The head is returned as it is if its cost is unknown, if it has no narrower version,
    or if even the narrowest is over budget, as for a base of a few small layers, where
    nothing would be saved.

    Heads are built to be counted. Call this within `unrecorded(base)`, so that the base
    keeps nothing of those that are too expensive.

    Args:
        base: Functional classifier.
        head: The recipe's own head.
        taps: Symbolic taps by exit name.
        target: The end of the base.
        classes: Number of units of each exit's logits.

    Returns:
        The head, and its features by exit name.
    """
    seeds = random.getstate()
    tried = _tried(base, head, taps, target, classes)
    if not tried:
        random.setstate(seeds)
        return head, head.features(taps, target)
    chosen = tried[-1]
    if chosen is not tried[0]:
        _log(base, tried)
    random.setstate(chosen.seeds)
    give_values(chosen.variables)
    return chosen.head, chosen.features


def head_within_budget(
    base: keras.Model,
    head: Head,
    taps: Mapping[str, SymbolicTensor],
    target: Target,
    classes: int,
) -> Head:
    """Return the head that `features_within_budget` chooses; no random number is drawn.

    The arguments are those of `features_within_budget`, with `unrecorded(base)`, too.
    """
    seeds = random.getstate()
    tried = _tried(base, head, taps, target, classes)
    random.setstate(seeds)
    return tried[-1].head if tried else head


def _tried(
    base: keras.Model,
    head: Head,
    taps: Mapping[str, SymbolicTensor],
    target: Target,
    classes: int,
) -> "list[_Trial]":
    """Return the heads that were tried: first the recipe's own, last the chosen one.

    There are none if there is nothing to narrow or to compare with, or none is chosen.
    """
    of_base = _known_macs(base) if head.narrower() is not None else Count()
    if not of_base.macs:
        return []
    tried: list[_Trial] = []
    for trial in _trials(base, of_base, head, taps, target, classes):
        tried.append(trial)
        if trial.macs_ratio <= MACS_BUDGET:
            return tried
        if math.isnan(trial.macs_ratio):
            break
    return []


class _Trial(NamedTuple):
    """A head that was built to be counted: its variables have no values yet."""

    head: Head
    features: dict[str, SymbolicTensor]  # Of all exits only if within the budget.
    variables: list[keras.Variable]
    macs_ratio: float  # Of these exits, logits included; NaN if unknown.
    seeds: Any  # State of Python's random numbers behind it.


def _trials(
    base: keras.Model,
    of_base: Count,
    head: Head | None,
    taps: Mapping[str, SymbolicTensor],
    target: Target,
    classes: int,
) -> Iterator[_Trial]:
    """Build a head, then ever narrower ones, each until it is over budget."""
    # Keras' initializers draw their seeds here: a head that is dropped must not change
    # the weights of the next.
    seeds = random.getstate()
    while head is not None:
        random.setstate(seeds)
        features: dict[str, SymbolicTensor] = {}
        count = Count()
        with deferred_values() as variables:
            for part in _parts(head, taps, target):
                features |= part
                units = sum(math.prod(each.shape[1:]) for each in part.values())
                logits = Count(units * classes)
                count = Count.total([count, features_macs(base, part), logits])
                ratio = macs_ratio(count, of_base)
                if not ratio <= MACS_BUDGET:
                    break
        yield _Trial(head, features, variables, ratio, random.getstate())
        head = head.narrower()


def _parts(
    head: Head, taps: Mapping[str, SymbolicTensor], target: Target
) -> Iterator[dict[str, SymbolicTensor]]:
    """Build a head exit by exit, shallow to deep, if the exits are independent."""
    if type(head).features is Head.features:
        for name, tap in taps.items():
            yield head.features({name: tap}, target)
    else:
        yield head.features(taps, target)


def features_macs(base: keras.Model, features: Mapping[str, SymbolicTensor]) -> Count:
    """Return the multiply-adds of exits' features per sample, without the base's own.

    Args:
        base: Functional model whose input sizes are known.
        features: Symbolic features of exits at its taps.

    Example:
        >>> base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
        >>> feature = keras.layers.Dense(2)(base.outputs[0])
        >>> features_macs(base, {"exit_1": feature})
        Count(macs=16, unknown=())
    """
    own = nodes_behind(model_nodes(base), list(features.values()))
    return Count.total(macs_by_node(own).values())


def _known_macs(base: keras.Model) -> Count:
    """Return a base's multiply-adds per sample, none if not all are known."""
    if any(None in tensor.shape[1:] for tensor in base.inputs):
        return Count()  # They depend on the input's size.
    count = model_macs(base)
    return Count() if count.unknown else count


def _log(base: keras.Model, tried: Sequence[_Trial]) -> None:
    logging.info(
        "The exits of %s use %r, which adds %.0f %% to its multiply-adds. The "
        "recipe's own %r would add at least %.0f %%; pass it as `head=` to use it.",
        base.name,
        tried[-1].head,
        100 * tried[-1].macs_ratio,
        tried[0].head,
        100 * tried[0].macs_ratio,
    )
