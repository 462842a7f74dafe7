"""Heads by their names."""

import functools
from collections.abc import Callable, Sequence

from absl import logging

from keras_selfdistill.heads.base import Head, Target
from keras_selfdistill.heads.bottleneck import Bottleneck
from keras_selfdistill.heads.linear import Linear, Pointwise
from keras_selfdistill.heads.separable import Separable
from keras_selfdistill.heads.top_down import TopDown
from keras_selfdistill.utils.config import resolve
from keras_selfdistill.utils.type_aliases import SymbolicTensor

_SHORTHANDS: dict[str, Callable[[], Head]] = {
    "bottleneck": Bottleneck,
    "separable": Separable,
    "attention": functools.partial(Separable, attention=True),
    "top_down": TopDown,
    "linear": Linear,
    "pointwise": Pointwise,
}


def get(identifier: "str | Head") -> Head:
    """Return the head with a name and default fields, or the head given.

    Args:
        identifier: `"bottleneck"`, `"separable"`, `"attention"`, `"top_down"`,
            `"linear"`, `"pointwise"`, or a `Head`.

    Raises:
        ValueError: No head has this name.
        TypeError: `identifier` is neither a string nor a `Head`.

    Example:
        >>> get("bottleneck")
        Bottleneck(reduction=4)
    """
    return resolve(identifier, "head", Head, _SHORTHANDS)


def head_for_taps(name: str, taps: Sequence[SymbolicTensor], target: Target) -> Head:
    """Return the head with a name, or another if it does not fit the taps.

    The other is `Pointwise` if the base predicts at each position, and `Linear` if a
    tap is not an image of known size.

    Args:
        name: Name of the recipe's head.
        taps: Symbolic tensors of the base.
        target: The end of the base.
    """
    if target.positions:
        return Pointwise()
    sizes = [(*tap.shape[1:], *target.spatial_shape) for tap in taps]
    images = all(len(each) == 5 and None not in each for each in sizes)
    if images:
        return get(name)
    logging.info("Exits get linear heads: head=%r needs images of known size.", name)
    return Linear()
