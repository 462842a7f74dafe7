"""The budget of heads: a recipe's own head, narrowed if it is too expensive."""

import math
from collections.abc import Mapping

import keras
from absl import logging

from keras_selfdistill.costs.counting import model_macs
from keras_selfdistill.heads.base import Head, Target
from keras_selfdistill.utils.type_aliases import SymbolicTensor

# Heads of a recipe's own kind add at most this share of the base's multiply-adds.
SHARE = 0.15


def narrow_to_budget(
    base: keras.Model,
    head: Head,
    taps: Mapping[str, SymbolicTensor],
    target: Target,
    classes: int,
) -> Head:
    """Return a head, or the widest narrower one whose exits cost at most `SHARE`.

    The published heads were designed for networks whose last feature is narrow compared
    with their cost. Mobile networks end in a wide feature, and bottleneck ResNets in
    one of 2048 channels: there, three published heads would add between a third and
    twice the base's multiply-adds to every training step. All exits use one head, so
    that they stay comparable and the wrapper's config names it.

    The head is returned as it is if its cost is unknown, if it has no narrower version,
    or if even the narrowest is over budget, as for a base of a few small layers, where
    nothing would be saved.

    Args:
        base: Functional classifier.
        head: The recipe's own head.
        taps: Symbolic taps by exit name.
        target: The end of the base.
        classes: Number of units of each exit's logits.
    """
    if any(None in tensor.shape[1:] for tensor in base.inputs):
        return head  # Costs depend on the input's size.
    base_cost, unknown = model_macs(base)
    if unknown:
        return head  # A share of the known part would be too large.
    found: Head | None = head
    shares = []
    while found is not None:
        costs = [found.macs(tap, target) for tap in taps.values()]
        known = [cost for cost in costs if cost is not None]
        if len(known) < len(costs):
            return head
        logits = len(taps) * target.width * classes
        shares.append((sum(known) + logits) / base_cost if base_cost else math.inf)
        if shares[-1] <= SHARE:
            break
        found = found.narrower()
    if found is None or found is head:
        return head
    logging.info(
        "The exits of %s use %r, which adds %.0f %% to its multiply-adds. The "
        "recipe's own %r would add %.0f %%; pass it as `head=` to use it.",
        base.name,
        found,
        100 * shares[-1],
        head,
        100 * shares[0],
    )
    return found
