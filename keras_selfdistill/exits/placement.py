"""Place taps automatically: how many, and at which block ends."""

import dataclasses
import itertools
import numbers
from collections.abc import Mapping, Sequence

import keras
from absl import logging

from keras_selfdistill.costs.counting import Count, macs_by_node
from keras_selfdistill.costs.input_shapes import nominal_shapes
from keras_selfdistill.exits.block_ends import BlockEnd, block_ends
from keras_selfdistill.graph.ends.base_end import BaseEnd
from keras_selfdistill.graph.flatten import FlatModel, flatten
from keras_selfdistill.graph.layout import data_format_of
from keras_selfdistill.graph.nodes import model_nodes, producer
from keras_selfdistill.graph.shells import original
from keras_selfdistill.graph.trace_layer import holds_layers
from keras_selfdistill.utils.config import is_of_keras
from keras_selfdistill.utils.type_aliases import Node, Shape, SymbolicTensor

# The penalty of two neighbouring taps of equal resolution, in steps between targets.
_SAME_RESOLUTION = 0.5
_DEFAULT_EXITS = 3
# A layer with sublayers, such as a stack of transformer blocks, is traced if it has
# more than this share of the multiply-adds.
_DOMINATING = 0.5


@dataclasses.dataclass(frozen=True)
class Tap:
    """A suggested tap.

    Args:
        name: Name of the layer.
        shape: Shape of its output; `None` stands for the batch size.
        macs_ratio: Multiply-adds up to there, as a fraction of the base's.
        latency_ms: Time from the input to there in milliseconds, for one batch;
            `None` if taps were not placed by latency.
        latency_ratio: This time as a fraction of the base's.
    """

    name: str
    shape: Shape
    macs_ratio: float
    latency_ms: float | None = None
    latency_ratio: float | None = None


def flatten_to_place(model: keras.Model) -> FlatModel:
    """Return a flattened model none of whose layers holds most of the multiply-adds.

    Layers of Keras itself, such as recurrent ones, stay whole, and so do those that
    cannot be traced.

    Args:
        model: Functional or built Sequential model.
    """
    paths: list[str] = []
    flat = flatten(model)
    whole = None
    while (largest := _dominating_stack(flat)) not in (None, whole):
        try:
            flat = flatten(model, [*paths, f"{largest}/"])
            paths.append(f"{largest}/")
        except ValueError:  # It cannot be traced.
            whole = largest
    return flat


def _dominating_stack(flat: FlatModel) -> str | None:
    """Return the path of a layer with sublayers and most multiply-adds, if any."""
    stacks = {
        path: id(tensor)
        for path, tensor in flat.calls.items()
        if _is_stack(original(producer(tensor).operation))
    }
    if not stacks:
        return None
    costs = _by_output(_counts(flat.model))
    path = max(stacks, key=lambda each: costs[stacks[each]])
    return path if costs[stacks[path]] > _DOMINATING * sum(costs.values()) else None


def _is_stack(operation: keras.Operation) -> bool:
    return holds_layers(operation) and not is_of_keras(type(operation))


def placed_taps(flat: FlatModel, end: BaseEnd, exits: int | str) -> list[BlockEnd]:
    """Place taps as `suggest_taps` describes and return the block ends chosen.

    Args:
        flat: The flattened base.
        end: The end of the base.
        exits: Number of exits, or `"auto"`.
    """
    check_exits(exits)
    ends = possible_taps(flat, end)
    sizes = resolutions(ends, end)
    count = exit_count(flat.model, ends, sizes, exits)
    return nearest(ends, [each.macs_ratio for each in ends], sizes, count)


def check_exits(exits: int | str) -> None:
    """Check the type of a number of exits.

    Raises:
        TypeError: It is neither an integer nor `"auto"`.
    """
    if isinstance(exits, bool) or not (
        isinstance(exits, numbers.Integral) or exits == "auto"
    ):
        raise TypeError(
            "The number of exits must be an integer or 'auto'. Received: "
            f"{exits!r} of type {type(exits).__name__}. Expected, e.g., 3."
        )


def possible_taps(flat: FlatModel, end: BaseEnd) -> list[BlockEnd]:
    """Return the block ends at which taps may be placed, shallow to deep.

    Args:
        flat: The flattened base.
        end: The end of the base.
    """
    ends = block_ends(flat, end.feature, node_costs(flat.model), end.data_format)
    if end.last_spatial is not None:
        # After the last spatial tensor, heads would have no positions to read.
        rank = len(end.last_spatial.shape)
        ends = [each for each in ends if len(each.tensor.shape) == rank]
    return ends


def resolutions(ends: Sequence[BlockEnd], end: BaseEnd) -> list[Shape]:
    """Return the number of positions of each block end along each axis.

    Args:
        ends: Block ends.
        end: The end of the base.
    """
    return [_positions(each.tensor, end.data_format) for each in ends]


def exit_count(
    base: keras.Model,
    ends: Sequence[BlockEnd],
    sizes: Sequence[Shape],
    exits: int | str,
) -> int:
    """Return the number of taps to place.

    Args:
        base: The base.
        ends: Block ends at which taps may be placed.
        sizes: Their resolutions.
        exits: Number of exits, or `"auto"`.

    Raises:
        ValueError: There are fewer block ends, or the number is below 1.
    """
    count = _automatic_count(sizes) if isinstance(exits, str) else int(exits)
    _check_count(base, ends, count)
    return count


def _positions(tensor: SymbolicTensor, default: str) -> Shape:
    last = data_format_of(tensor, default) == "channels_last"
    return tuple(tensor.shape[1:-1] if last else tensor.shape[2:])


def node_costs(base: keras.Model) -> dict[int, int]:
    """Return the multiply-adds of every node of a base, by the id of its output.

    Unknown ones count as zero, with a warning in the log.
    """
    counts = _counts(base)
    unknown = Count.total(counts.values()).unknown
    if unknown:
        logging.warning(
            "The multiply-adds of these layers are unknown, so taps are placed as if "
            "they were zero: %s. Pass layer names as `taps` to choose them yourself.",
            list(unknown),
        )
    return _by_output(counts)


def _counts(base: keras.Model) -> dict[Node, Count]:
    return macs_by_node(model_nodes(base), nominal_shapes(base))


def _by_output(counts: Mapping[Node, Count]) -> dict[int, int]:
    return {id(node.outputs[0]): count.macs for node, count in counts.items()}


def _automatic_count(sizes: Sequence[Shape]) -> int:
    changes = sum(before != after for before, after in itertools.pairwise(sizes))
    return changes or min(_DEFAULT_EXITS, max(1, len(sizes)))


def _check_count(base: keras.Model, ends: Sequence[BlockEnd], exits: int) -> None:
    if exits < 1:
        raise ValueError(
            f"`taps` must hold at least one tap. Received: taps={exits}. Expected: a "
            "number of exits such as 3, or a list of layer names."
        )
    if exits > len(ends):
        raise ValueError(
            f"The base has too few block ends for that many exits. Received: "
            f"taps={exits}. Expected: at most {len(ends)} for model {base.name!r}, "
            f"at {[each.name for each in ends]}."
        )


def nearest(
    ends: Sequence[BlockEnd],
    shares: Sequence[float],
    sizes: Sequence[Shape],
    exits: int,
) -> list[BlockEnd]:
    """Return the best block ends, by dynamic programming.

    The cost of a choice is the sum of the distances of tap i from the share i / (k +
    1), in steps of 1 / (k + 1), plus a half for each two neighbours of equal
    resolution. Of equal choices the shallowest is taken.

    Args:
        ends: Block ends, shallow to deep.
        shares: Cost up to each block end, as a fraction of the base's.
        sizes: Resolution of each block end.
        exits: Number of taps, at most that of the block ends.
    """
    # For each end: cost and indices of the best choice so far that ends there.
    # Rounded, so that equal costs compare equal.
    steps = [round(share * (exits + 1), 9) for share in shares]
    best: dict[int, tuple[float, tuple[int, ...]]]
    best = {here: (abs(step - 1), (here,)) for here, step in enumerate(steps)}
    for target in range(2, exits + 1):
        best = {
            here: min(
                (
                    cost
                    + abs(steps[here] - target)
                    + _SAME_RESOLUTION * (sizes[before] == sizes[here]),
                    (*chosen, here),
                )
                for before, (cost, chosen) in best.items()
                if before < here
            )
            for here in range(target - 1, len(ends))
        }
    return [ends[position] for position in min(best.values())[1]]
