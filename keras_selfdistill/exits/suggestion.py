"""`suggest_taps`: where exits would go, as a table."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import keras

from keras_selfdistill.costs.latency import (
    check_mapping,
    cumulative,
    median_milliseconds,
)
from keras_selfdistill.evaluation.sample_batch import one_batch
from keras_selfdistill.exits.attach import exit_names, head_target
from keras_selfdistill.exits.block_ends import BlockEnd
from keras_selfdistill.exits.head_budget import head_within_budget
from keras_selfdistill.exits.placement import (
    Tap,
    check_exits,
    exit_count,
    flatten_to_place,
    nearest,
    possible_taps,
    resolutions,
)
from keras_selfdistill.exits.tap_latency import (
    BASE,
    calls_up_to,
    given_latencies,
)
from keras_selfdistill.graph.ends.base_end import BaseEnd, find_base_end
from keras_selfdistill.graph.flatten import FlatModel
from keras_selfdistill.graph.nodes import check_functional, unrecorded
from keras_selfdistill.heads.registry import get, head_for_taps
from keras_selfdistill.recipes.exit_losses.byot import BYOT
from keras_selfdistill.utils.table import Table
from keras_selfdistill.utils.type_aliases import Data, SymbolicTensor


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
        timed = any(tap.latency_ms is not None for tap in self)
        headings = ["tap", "output shape", "MACs ratio"]
        headings += ["latency", "latency ratio"] if timed else []
        rows = [
            [
                tap.name,
                str(tap.shape),
                f"{tap.macs_ratio:.1%}",
                *(_latency(tap) if timed else ()),
            ]
            for tap in self
        ]
        notes = [f"heads: {self.heads}."] if self.heads else []
        return Table(headings, rows, notes, names=2).text()


def _latency(tap: Tap) -> tuple[str, str]:
    if tap.latency_ms is None or tap.latency_ratio is None:
        return "?", "?"
    return f"{tap.latency_ms:.3f} ms", f"{tap.latency_ratio:.1%}"


def suggest_taps(
    model: keras.Model,
    exits: int | str = 3,
    *,
    by: str = "macs",
    sample: Data = None,
    costs: Mapping[str, float] | None = None,
) -> SuggestedTaps:
    """Return the taps that `SelfDistiller(model, taps=exits, …)` places.

    Taps lie at block ends: where the rest of the base reads only one tensor, or a few
    in networks without such places. Tap i of k is near the share i / (k + 1) of the
    multiply-adds. Two neighbouring taps have different resolutions if that moves the
    taps, in total, by no more than half of 1 / (k + 1). The choice depends only on the
    base's graph.

    With `by="latency"`, the shares are those of time, as multiply-adds say little of
    the time on accelerators and small devices. The time up to a block end is the
    median of interleaved compiled calls (PyTorch: eager calls) of a model that ends
    there, so each block end is compiled once. On another device, or at another batch
    size, the result may differ. Pass it on as `taps=`.

    Below the table stands the head that exits get by default there, if it is not the
    recipe's own: narrowed to the budget of multiply-adds, or linear.

    Args:
        model: Functional or Sequential classifier. Unknown sizes of its inputs, such as
            the length of a text, count as 256, or as fewer if the model limits them.
        exits: Number of exits, or `"auto"`: the number of changes of resolution between
            the base's block ends; if there are none, 3 or the number of block ends if
            that is less.
        by: Cost of which taps get equal shares: `"macs"` or `"latency"`.
        sample: For `by="latency"`: one batch of the size used in deployment, such as
            `x[:1]`, with which times are measured on this device; a tuple or dict of
            arrays for several inputs.
        costs: Instead of `sample`: times measured elsewhere, as a mapping of names of
            block ends to milliseconds from the input to there, for one batch, and of
            `"final"` to those of the whole base. Taps are placed only at block ends
            that it holds.

    Returns:
        The taps, to print, to edit or to pass on.

    Raises:
        TypeError: `model` is not functional, or `exits` or `costs` has another type.
        ValueError: The end of the base is unknown, or the base has fewer block ends
            than `exits`; or `exits` is below 1, or `by` is unknown, or `sample` or
            `costs` does not fit it or the base.

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
        >>> costs = {"stage1_block2_out": 3.0, "stage2_block1_out": 4.1, "final": 8.0}
        >>> print(ksd.suggest_taps(base, exits=1, by="latency", costs=costs))
        tap                output shape        MACs ratio   latency  latency ratio
        stage2_block1_out  (None, 16, 16, 16)       39.4%  4.100 ms          51.2%
    """
    check_functional(model)
    _check_arguments(by, sample, costs)
    check_exits(exits)
    arrays = None if sample is None else one_batch(model, sample)
    flat = flatten_to_place(model)
    with unrecorded(flat.model):
        end = find_base_end(flat.model)
        ends = possible_taps(flat, end)
        times = None if costs is None else given_latencies(ends, costs, exits)
        ends = [each for each in ends if times is None or each.name in times]
        sizes = resolutions(ends, end)
        count = exit_count(flat.model, ends, sizes, exits)
        calls = {} if arrays is None else calls_up_to(flat.model, ends, arrays)
    if calls:  # Measured while other threads may build models.
        times = cumulative(median_milliseconds(calls))
    shares = [
        each.macs_ratio if times is None else times[each.name] / times[BASE]
        for each in ends
    ]
    placed = nearest(ends, shares, sizes, count)
    with unrecorded(flat.model):
        heads = _other_heads(flat, end, [each.tensor for each in placed])
    return SuggestedTaps([_tap(each, times) for each in placed], heads)


def _check_arguments(by: str, sample: Data, costs: object) -> None:
    if by not in ("macs", "latency"):
        raise ValueError(
            f"Unknown cost of taps. Received: by={by!r}. Expected: 'macs' or 'latency'."
        )
    given = [
        name
        for name, value in (("sample", sample), ("costs", costs))
        if value is not None
    ]
    received = f"by={by!r} with {' and '.join(given) or 'neither sample nor costs'}"
    if by == "macs" and given:
        raise ValueError(
            f"Multiply-adds need no measurement. Received: {received}. Expected: "
            "by='latency', or no more than the base and `exits`."
        )
    if by == "latency" and len(given) != 1:
        raise ValueError(
            f"Latency is measured, or given as a table. Received: {received}. "
            "Expected: either sample=x[:1], a batch of the size used in deployment, "
            "or costs={'name of a tap': milliseconds, …, 'final': milliseconds}."
        )
    if costs is not None:
        check_mapping(costs, "block1_out")


def _tap(end: BlockEnd, times: Mapping[str, float] | None) -> Tap:
    tap = Tap(end.name, tuple(end.tensor.shape), end.macs_ratio)
    if times is None:
        return tap
    milliseconds = float(times[end.name])
    return dataclasses.replace(
        tap, latency_ms=milliseconds, latency_ratio=milliseconds / times[BASE]
    )


def _other_heads(flat: FlatModel, end: BaseEnd, taps: Sequence[SymbolicTensor]) -> str:
    """Return the default recipe's heads at taps as text, if they are not its own."""
    own = get(BYOT.head)
    target = head_target(end, flat.calls)
    head = head_for_taps(BYOT.head, taps, target)
    by_exit = dict(zip(exit_names(len(taps)), taps, strict=False))
    head = head_within_budget(flat.model, head, by_exit, target, end.task.units)
    return "" if head == own else f"{head} with the default recipe, whose own is {own}"
