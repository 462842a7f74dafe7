"""Cut a wrapper into sections: one model from each exit to the next.

A section computes what its exit needs and no section before it has computed, so the
sections one after another do the work of the whole network once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import layers

from keras_selfdistill.costs.counting import Count, Shapes, macs_by_node
from keras_selfdistill.exits.attach import ExitGraph
from keras_selfdistill.graph.nodes import ancestors, graph_nodes
from keras_selfdistill.graph.shells import original
from keras_selfdistill.utils.keras_internals import run_in_inference_mode

ANSWERS = ("output", "logits")


class Section(keras.Model):
    """The part of a network between two exits, on the network's own tensors.

    No layer is called again or copied, so a base stays as it is and weights are shared.
    Every layer is in inference mode, as in a base's own `predict`, also those that were
    called with `training=True`.

    Called with the list of tensors alive at the cut before it, in the order of
    `inputs`, it returns a dict: `"output"` and `"logits"` of its exit (those it was cut
    for), shape `(batch, classes)`, and under `"alive"` the list of tensors that the
    sections behind it need: the next section's inputs.

    Args:
        function: The symbolic graph of the section.
        exit_name: The exit that it computes.
        name: Name of the model.
    """

    def __init__(self, function: keras.Function, exit_name: str, *, name: str):
        # Without autocast, alive tensors keep the dtype in which they were made.
        super().__init__(name=name, autocast=False)
        self.exit_name = exit_name
        self._function = function
        self._parts = [
            operation
            for operation in function.operations
            if isinstance(operation, keras.Layer)
            and not isinstance(operation, layers.InputLayer)
        ]
        self.built = True

    @property
    def inputs(self) -> list[Any]:
        """Symbolic tensors alive at the cut before the section."""
        return self._function.inputs

    @property
    def parts(self) -> list[keras.Layer]:
        """The layers that the section applies, in order."""
        return list(self._parts)

    def call(self, alive, training=False):
        """Compute the exit and what the next sections need; see the class."""
        del training  # What is cut is never trained.
        return run_in_inference_mode(self._function, alive)


class _Pieces(NamedTuple):
    """The nodes of a network, and the section in which each of them runs."""

    nodes: list[Any]
    number: dict[Any, int]  # -1 for the inputs.
    ends: list[list[Any]]  # The answers of every exit.


def cut_sections(
    graph: ExitGraph, answers: Sequence[str] = ANSWERS
) -> tuple[Section, ...]:
    """Cut a network behind every exit.

    Args:
        graph: A base with exits.
        answers: What each section gives of its exit: `"output"`, `"logits"` or both.

    Returns:
        One section for each exit, shallow to deep. The first takes those of the
        base's inputs that anything reads.

    Raises:
        ValueError: An exit reads the base beyond its tap, so that nothing could stop
            there; or the base masks time steps.

    Example:
        >>> import keras_selfdistill as ksd
        >>> base = ksd.networks.resnet18(width_multiplier=0.125, classes=10)
        >>> model = ksd.SelfDistiller(base, taps=1, recipe="byot")
        >>> [len(part.inputs) for part in cut_sections(model.exit_graph)]
        [1, 1]
    """
    _check_exits(graph)
    pieces = _pieces(graph, answers)
    cuts = [_alive(pieces, i) for i in range(len(pieces.ends) + 1)]
    sections = []
    for i, (name, end) in enumerate(zip(graph.exits, pieces.ends, strict=True)):
        outputs = dict(zip(answers, end, strict=True)) | {"alive": cuts[i + 1]}
        function = keras.Function(cuts[i], outputs)
        section_name = f"{graph.base.name}_section_{i + 1}"
        sections.append(Section(function, name, name=section_name))
    return tuple(sections)


def section_costs(
    graph: ExitGraph, answers: Sequence[str] = ANSWERS, shapes: Shapes | None = None
) -> list[Count]:
    """Return each section's multiply-adds for one sample, shallow to deep.

    Args:
        graph: A base with exits.
        answers: As in `cut_sections`.
        shapes: Of the base's inputs, where they leave sizes open.

    Raises:
        ValueError: A size is unknown on which a count depends.

    Example:
        >>> import keras_selfdistill as ksd
        >>> base = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="a"),
        ...     keras.layers.Dense(4), keras.layers.Dense(2, "softmax")])
        >>> model = ksd.SelfDistiller(base, taps=["a"], recipe="byot", head="linear")
        >>> [count.macs for count in section_costs(model.exit_graph, ["output"])]
        [56, 24]
    """
    pieces = _pieces(graph, answers)
    counts = macs_by_node(pieces.nodes, shapes)
    return [
        Count.total(
            counts[node] for node, own in pieces.number.items() if own == number
        )
        for number in range(len(pieces.ends))
    ]


def calls_by_section(graph: ExitGraph, answers: Sequence[str] = ANSWERS) -> dict:
    """Return, for every call that an exit needs, the first exit that does.

    Args:
        graph: A base with exits.
        answers: As in `cut_sections`.
    """
    pieces = _pieces(graph, answers)
    names = list(graph.exits)
    # The inputs, which belong to no section, are read in the first.
    return {node: names[max(0, number)] for node, number in pieces.number.items()}


def _pieces(graph, answers):
    ends = [
        [getattr(each, answer) for answer in answers] for each in graph.exits.values()
    ]
    nodes = graph_nodes(graph.base.inputs, ends)
    needed = [_all_ancestors(end) for end in ends]
    number = {}
    for node in nodes:
        made = {id(tensor) for tensor in node.outputs}
        exits = [i for i, found in enumerate(needed) if found & made]
        number[node] = exits[0] if exits and node.input_tensors else -1
    return _Pieces(nodes, number, ends)


def _all_ancestors(tensors):
    return set().union(*(ancestors(tensor) for tensor in tensors))


def _alive(pieces, section):
    """Return the tensors made before a section and read in it or behind it."""
    read = {id(tensor) for end in pieces.ends[section:] for tensor in end}
    for node in pieces.nodes:
        if pieces.number[node] >= section:
            read.update(id(tensor) for tensor in node.input_tensors)
    return [
        tensor
        for node in pieces.nodes
        if pieces.number[node] < section
        for tensor in node.outputs
        if id(tensor) in read
    ]


def _check_exits(graph):
    """Refuse exits and layers that leave nothing to cut."""
    if graph.head.reads_whole_base:
        raise ValueError(
            f"No sample can leave early: the exits' head, {graph.head!r}, reads the "
            f"whole base {graph.base.name!r} at each of them. Deploy final_model(), "
            "which the exits helped to train, or ensemble_model()."
        )
    nodes = graph_nodes(graph.base.inputs, graph.flat.model.outputs)
    for node in nodes:
        operation = original(node.operation)
        masks = isinstance(operation, layers.Masking)
        if masks or getattr(operation, "mask_zero", False):
            raise ValueError(
                "A network that masks time steps cannot be cut: the mask is no tensor "
                f"of its graph. Received: layer {operation.name!r} of model "
                f"{graph.base.name!r}. Build the base without masks, or serve "
                "exit_model(...), which is not cut."
            )
    made = {id(tensor): node for node in nodes for tensor in node.outputs}
    *shallow, _ = graph.exits
    for name, tap in zip(shallow, graph.taps, strict=True):
        exit_ = graph.exits[name]
        reads = _all_ancestors([exit_.output, exit_.logits]) & made.keys()
        beyond = reads - ancestors(graph.flat.calls[tap])
        if beyond:
            layer = made[min(beyond, key=list(made).index)].operation.name
            raise ValueError(
                f"No sample can leave at {name!r}, which reads the base beyond its "
                f"tap. Received: tap {tap!r}, and a head that also reads {layer!r}. "
                "Expected: a head that reads its own tap alone, such as "
                "head='bottleneck'. Deploy exit_model(...) or final_model() instead."
            )
