"""Which section a call belongs to.

A base is cut at its taps: section 1 ends at the first tap, the last one at the base's
end. An exit at the end of a section needs its head, too: the calls that an exit needs,
and no exit before it, are what is left to do from one exit to the next.
"""

from collections.abc import Iterable, Sequence

from keras_selfdistill.exits.attach import ExitGraph
from keras_selfdistill.graph.nodes import ancestors
from keras_selfdistill.utils.type_aliases import Node, SymbolicTensor


def needed_by(
    nodes: Iterable[Node], ends: Sequence[Sequence[SymbolicTensor]]
) -> dict[Node, list[int]]:
    """Return the numbers of the ends that need each call, ascending.

    Args:
        nodes: Calls of one graph.
        ends: Groups of symbolic tensors where it ends, numbered from 0.

    Returns:
        Numbers by call, in the order of the calls; an empty list if no end needs one.

    Example:
        >>> import keras
        >>> from keras_selfdistill.graph.nodes import graph_nodes
        >>> inputs = keras.Input((4,), name="table")
        >>> tap = keras.layers.Dense(3, name="tap")(inputs)
        >>> end = keras.layers.Dense(2, name="end")(tap)
        >>> numbers = needed_by(graph_nodes([inputs], end), [[tap], [end]])
        >>> {node.operation.name: found for node, found in numbers.items()}
        {'table': [0, 1], 'tap': [0, 1], 'end': [1]}
    """
    needed = [ancestors(*end) for end in ends]
    found = {}
    for node in nodes:
        made = {id(tensor) for tensor in node.outputs}
        found[node] = [i for i, tensors in enumerate(needed) if made & tensors]
    return found


def first_needing(
    nodes: Iterable[Node], ends: Sequence[Sequence[SymbolicTensor]]
) -> dict[Node, int]:
    """Return the number of the first end that needs each call, of those needed.

    Args:
        nodes: Calls of one graph.
        ends: Groups of symbolic tensors where it ends, numbered from 0.
    """
    found = needed_by(nodes, ends)
    return {node: numbers[0] for node, numbers in found.items() if numbers}


def base_sections(graph: ExitGraph, nodes: Iterable[Node]) -> dict[Node, int]:
    """Return the section of the base in which each call runs, from 0.

    A call that several sections need is in the first of them.

    Args:
        graph: A base with exits.
        nodes: Calls of its graph; those of heads alone are left out.
    """
    ends = [[graph.flat.calls[tap]] for tap in graph.taps]
    # The final exit's output may come from another call than the base's own.
    ends.append([*graph.flat.model.outputs, graph.exits["final"].output])
    return first_needing(nodes, ends)


def exit_sections(
    graph: ExitGraph, nodes: Iterable[Node], outputs: Sequence[str]
) -> dict[Node, int]:
    """Return the number of the first exit that needs each call, from 0.

    Args:
        graph: A base with exits.
        nodes: Calls of its graph; those that no exit needs are left out.
        outputs: Outputs needed of an exit: `"output"`, `"logits"` or both.
    """
    return first_needing(nodes, exit_ends(graph, outputs))


def exit_ends(graph: ExitGraph, outputs: Sequence[str]) -> list[list[SymbolicTensor]]:
    """Return the requested outputs of every exit, shallow to deep.

    Args:
        graph: A base with exits.
        outputs: Outputs of an exit: `"output"`, `"logits"` or both.
    """
    return [[getattr(each, name) for name in outputs] for each in graph.exits.values()]
