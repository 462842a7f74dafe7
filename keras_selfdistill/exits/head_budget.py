"""What heads may cost: a recipe's own head, narrowed where it would be too dear."""

import math
from collections.abc import Mapping
from typing import Any

from absl import logging

from keras_selfdistill.costs.counting import model_macs
from keras_selfdistill.heads.base import Head, Target

# Heads of a recipe's own kind add at most this share of the base's multiply-adds.
SHARE = 0.15


def narrow_to_budget(
    base: Any, head: Head, taps: Mapping[str, Any], target: Target, classes: int
) -> Head:
    """Return a head, or the widest narrower one whose exits cost at most `SHARE`.

    The published heads were drawn for networks whose last feature is as wide as their
    cost warrants. Networks for phones end in a feature that is wide for so little
    work, and bottleneck ResNets in one of 2048 channels: there, three published heads
    would add a third to twice the base's multiply-adds to every training step. One
    head serves all exits, so they stay alike and a file of the wrapper says what it
    holds.

    A head that does not know its cost or has nothing narrower is returned as it is, and
    so is one where even the narrowest costs more, as for a base of a few toy layers:
    to lose what the exits can learn would save next to nothing.

    Args:
        base: Functional classifier.
        head: The recipe's own head.
        taps: Symbolic taps by exit name.
        target: The end of the base.
        classes: How many the logits of each exit tell apart.
    """
    if any(None in tensor.shape[1:] for tensor in base.inputs):
        return head  # Costs depend on sizes.
    base_cost, unknown = model_macs(base)
    if unknown:
        return head  # Of what is known, a share would be too large.
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
    logging.warning(
        "The exits of %s have %r, which adds %.0f %% to its multiply-adds. The "
        "recipe's own %r would add %.0f %%: pass it as `head=` to have it.",
        base.name,
        found,
        100 * shares[-1],
        head,
        100 * shares[0],
    )
    return found
