"""`suggest_taps`: where exits would go, as a table."""

from collections.abc import Iterable, Sequence
from typing import Self

import keras

from keras_selfdistill.exits.attach import exit_names, head_target
from keras_selfdistill.exits.head_budget import head_within_budget
from keras_selfdistill.exits.placement import Tap, flatten_to_place, placed_taps
from keras_selfdistill.graph.ends.base_end import BaseEnd, find_base_end
from keras_selfdistill.graph.flatten import FlatModel
from keras_selfdistill.graph.nodes import check_functional, unrecorded
from keras_selfdistill.heads.registry import get, head_for_taps
from keras_selfdistill.recipes.byot import BYOT
from keras_selfdistill.utils.table import Table
from keras_selfdistill.utils.type_aliases import SymbolicTensor


class SuggestedTaps(tuple[Tap, ...]):
    """Taps from shallow to deep, to pass as `taps=`; they print as a table.

    Args:
        taps: The taps.
        heads: What to know of the exits' heads there, printed below the table; `""` if
            the default recipe's own head fits.

    Example:
        >>> print(SuggestedTaps([Tap("block1_out", (None, 32, 32, 64), 0.254)]))
        tap         output shape        MACs ratio
        block1_out  (None, 32, 32, 64)       25.4%
    """

    heads: str

    def __new__(cls, taps: Iterable[Tap] = (), heads: str = "") -> Self:
        """Return the taps as a tuple."""
        self = super().__new__(cls, taps)
        self.heads = heads
        return self

    @property
    def names(self) -> list[str]:
        """Names of the tapped layers."""
        return [tap.name for tap in self]

    def __str__(self) -> str:
        """Return the table."""
        headings = ["tap", "output shape", "MACs ratio"]
        rows = [[tap.name, str(tap.shape), f"{tap.macs_ratio:.1%}"] for tap in self]
        notes = [f"heads: {self.heads}."] if self.heads else []
        return Table(headings, rows, notes, names=2).text()


def suggest_taps(model: keras.Model, exits: int | str = 3) -> SuggestedTaps:
    """Return the taps that `SelfDistiller(model, taps=exits, …)` places.

    Taps lie at block ends: where the rest of the base reads only one tensor, or a few
    in networks without such places. Tap i of k is near the share i / (k + 1) of the
    multiply-adds. Two neighbouring taps have different resolutions if that moves the
    taps, in total, by no more than half of 1 / (k + 1). The choice depends only on the
    base's graph.

    Below the table stands the head that exits get by default there, if it is not the
    recipe's own: narrowed to the budget of multiply-adds, or linear.

    Args:
        model: Functional or Sequential classifier. Unknown sizes of its inputs, such as
            the length of a text, count as 256, or as fewer if the model limits them.
        exits: Number of exits, or `"auto"`: the number of changes of resolution between
            the base's block ends; if there are none, 3 or the number of block ends if
            that is less.

    Returns:
        The taps, to print, to edit or to pass on.

    Raises:
        TypeError: `model` is not functional, or `exits` has another type.
        ValueError: The end of the base is unknown, or the base has fewer block ends
            than `exits`; or `exits` is below 1.

    Example:
        >>> import keras_selfdistill as ksd
        >>> base = ksd.networks.resnet18(width_multiplier=0.125, classes=10)
        >>> taps = ksd.suggest_taps(base)
        >>> print(taps)
        tap                output shape        MACs ratio
        stage1_block2_out  (None, 32, 32, 8)        29.1%
        stage2_block2_out  (None, 16, 16, 16)       52.7%
        stage3_block2_out  (None, 8, 8, 32)         76.4%
        >>> model = ksd.SelfDistiller(base, taps, recipe="byot")
    """
    check_functional(model)
    flat = flatten_to_place(model)
    with unrecorded(flat.model):
        end = find_base_end(flat.model)
        placed = placed_taps(flat, end, exits)
        heads = _other_heads(flat, end, [each.tensor for each in placed])
    taps = [
        Tap(each.name, tuple(each.tensor.shape), each.macs_ratio) for each in placed
    ]
    return SuggestedTaps(taps, heads)


def _other_heads(flat: FlatModel, end: BaseEnd, taps: Sequence[SymbolicTensor]) -> str:
    """Return the default recipe's heads at taps as text, if they are not its own."""
    own = get(BYOT.head)
    target = head_target(end, flat.calls)
    head = head_for_taps(BYOT.head, taps, target)
    by_exit = dict(zip(exit_names(len(taps)), taps, strict=False))
    head = head_within_budget(flat.model, head, by_exit, target, end.task.units)
    return "" if head == own else f"{head} with the default recipe, whose own is {own}"
