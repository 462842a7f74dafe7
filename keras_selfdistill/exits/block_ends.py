"""The block ends of a base: the candidates for taps."""

import collections
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from keras import layers

from keras_selfdistill.graph.flatten import FlatModel
from keras_selfdistill.graph.nodes import ancestors, model_nodes, producer
from keras_selfdistill.graph.shells import original
from keras_selfdistill.utils.type_aliases import Node, SymbolicTensor

# The most tensors that may cross a cut, and the share of the multiply-adds that a
# stretch without a narrower cut must exceed before a wider cut counts as a block end.
_WIDEST_CUT = 3
_LONG_STRETCH = 0.25

# What may follow the operation that ends a block and still belongs to the block.
_FINISHING = (
    layers.Activation,
    layers.ReLU,
    layers.LeakyReLU,
    layers.PReLU,
    layers.ELU,
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
)
_NORMALIZATION = (
    layers.BatchNormalization,
    layers.LayerNormalization,
    layers.GroupNormalization,
)


class BlockEnd(NamedTuple):
    """The end of a block.

    Args:
        name: Name of the layer or operation that ends the block.
        tensor: Symbolic output of the block.
        macs_ratio: Multiply-adds up to there, as a fraction of the base's.
    """

    name: str
    tensor: SymbolicTensor
    macs_ratio: float


class _Cut(NamedTuple):
    node: Node
    needed: int  # The nodes that it depends on and its own, as bits.
    width: int  # Number of their tensors that the rest of the base reads.


_Priced = tuple[_Cut, int]  # With the multiply-adds up to there.


def block_ends(
    flat: FlatModel,
    feature: SymbolicTensor,
    costs: dict[int, int],
    data_format: str = "channels_last",
) -> list[BlockEnd]:
    """Return the end of every block of a base, shallow to deep, all on one path.

    A block ends where the rest of the base reads only one of the tensors computed so
    far; inputs, masks and other tensors without multiply-adds do not count. Some
    networks, such as NASNet, pass two tensors from cell to cell. If more than a quarter
    of the multiply-adds lies between two block ends, a node that joins branches also
    ends a block if the rest reads two tensors there, or else three.

    Blocks without a shortcut would be split into their layers. Excluded are therefore
    ends inside blocks that expand and project (more than twice the channels of the next
    end) and ends directly after a depthwise convolution.

    Also excluded are ends before the first and after the last multiply-add: an exit
    there would read the input, or the same feature as the final exit.

    Args:
        flat: The flattened base.
        feature: Last feature of the base.
        costs: Multiply-adds of each node, by the id of its first output.
        data_format: Data format of spatial tensors.

    Example:
        >>> import keras
        >>> from keras_selfdistill.graph.flatten import flatten
        >>> stack = [keras.layers.Dense(8, name=f"dense_{i}") for i in range(4)]
        >>> model = keras.Sequential([keras.Input((8,)), *stack])
        >>> costs = {id(layer.output): 64 for layer in stack}
        >>> ends = block_ends(flatten(model), model.outputs[0], costs)
        >>> [(end.name, end.macs_ratio) for end in ends]
        [('dense_0', 0.25), ('dense_1', 0.5), ('dense_2', 0.75)]
    """
    path = ancestors(feature)
    nodes = [node for node in model_nodes(flat.model) if id(node.outputs[0]) in path]
    priced = _priced(_cuts(nodes, costs), nodes, costs)
    total = sum(costs.values())
    last = sum(costs.get(id(node.outputs[0]), 0) for node in nodes)
    found: list[tuple[_Cut, int]] = []  # With the multiply-adds up to there.
    for width in range(1, _WIDEST_CUT + 1):
        borders = itertools.pairwise([0, *(spent for _, spent in found), last])
        long = [
            (start, stop)
            for start, stop in borders
            if stop - start > _LONG_STRETCH * total
        ]
        within = [
            (cut, spent)
            for cut, spent in priced
            if cut.width == width and (width == 1 or len(cut.node.input_tensors) > 1)
            if any(start < spent < stop for start, stop in long)
        ]
        found = sorted(found + _finished(within, costs), key=_spent)
    names = {id(tensor): name for name, tensor in flat.calls.items()}
    return [
        BlockEnd(names[id(cut.node.outputs[0])], cut.node.outputs[0], cost / total)
        for cut, cost in _whole_blocks(_one_path(found), costs, data_format)
    ]


def _cuts(nodes: Sequence[Node], costs: dict[int, int]) -> list[_Cut]:
    """Return the nodes that each node depends on, and the width of the cut after it."""
    readers: collections.defaultdict[int, int] = collections.defaultdict(int)
    for position, node in enumerate(nodes):
        for tensor in node.input_tensors:
            readers[id(tensor)] |= 1 << position
    needed: dict[int, int] = {}
    crossing: dict[int, set[int]] = {}
    priced = 0  # The nodes that cost something, as bits.
    cuts = []
    for position, node in enumerate(nodes):
        bits, alive = 1 << position, {id(tensor) for tensor in node.outputs}
        for tensor in node.input_tensors:
            bits |= needed[id(tensor)]
            alive |= crossing[id(tensor)]
        priced |= bool(costs.get(id(node.outputs[0]))) << position
        alive = {
            tensor for tensor in alive if bits & priced and readers[tensor] & ~bits
        }
        for tensor in node.outputs:
            needed[id(tensor)], crossing[id(tensor)] = bits, alive
        # The output of a node with several outputs would be ambiguous.
        if len(node.outputs) == 1 and id(node.outputs[0]) in alive:
            cuts.append(_Cut(node, bits, len(alive)))
    return cuts


def _priced(
    cuts: Sequence[_Cut], nodes: Sequence[Node], costs: dict[int, int]
) -> list[_Priced]:
    """Return narrow cuts with the multiply-adds up to each, in ascending cost."""
    kernels = [
        (1 << position, costs[id(node.outputs[0])])
        for position, node in enumerate(nodes)
        if costs.get(id(node.outputs[0]))
    ]
    priced = [
        (cut, sum(cost for bit, cost in kernels if cut.needed & bit))
        for cut in cuts
        if cut.width <= _WIDEST_CUT
    ]
    return sorted(priced, key=_spent)


def _spent(pair: _Priced) -> int:
    return pair[1]


def _finished(cuts: Sequence[_Priced], costs: dict[int, int]) -> list[_Priced]:
    """Keep one cut of those at the same cost: where the block is complete."""
    ends: list[tuple[_Cut, int]] = []
    unfinished = True
    for cut, cost in cuts:
        if ends and ends[-1][1] == cost:
            # A later cut at the same cost: the same block, if it only finishes it.
            before = ends[-1][0].node
            if unfinished and _finishes(cut.node, costs.get(id(before.outputs[0]))):
                ends[-1] = (cut, cost)
            else:
                unfinished = False
            continue
        ends.append((cut, cost))
        unfinished = True
    return ends


def _finishes(node: Node, cost_before: int | None) -> bool:
    if isinstance(original(node.operation), _NORMALIZATION):
        # After a convolution it ends the block, after a sum it begins the next one.
        return bool(cost_before)
    return isinstance(original(node.operation), _FINISHING)


def _one_path(ends: list[_Priced]) -> list[_Priced]:
    """Drop the ends on side branches: those that no deeper end depends on."""
    kept: list[tuple[_Cut, int]] = []
    for cut, cost in reversed(ends):
        if not kept or kept[-1][0].needed | cut.needed == kept[-1][0].needed:
            kept.append((cut, cost))
    return kept[::-1]


def _whole_blocks(
    ends: list[_Priced], costs: dict[int, int], data_format: str
) -> list[_Priced]:
    """Drop the ends inside blocks that expand and project or are separable."""
    axis = -1 if data_format == "channels_last" else 1
    kept: list[tuple[_Cut, int]] = []
    for cut, cost in reversed(ends):
        shape = cut.node.outputs[0].shape
        spatial = len(shape) > 2
        next_shape = kept[-1][0].node.outputs[0].shape if kept else shape
        expanded = len(next_shape) == len(shape) and shape[axis] > 2 * next_shape[axis]
        if not (spatial and expanded) and not _behind_depthwise(cut.node, costs):
            kept.append((cut, cost))
    return kept[::-1]


def _behind_depthwise(node: Node, costs: dict[int, int]) -> bool:
    while not costs.get(id(node.outputs[0])) and len(node.input_tensors) == 1:
        node = producer(node.input_tensors[0])
    depthwise = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
    return isinstance(original(node.operation), depthwise)
