"""Cut a wrapper into sections: one model from each exit to the next.

A section computes everything its exit needs that no section before it has computed, so
all sections together run each layer of the network once.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import keras
from keras import layers

from keras_selfdistill.costs.counting import Count, Shapes, macs_by_node
from keras_selfdistill.exits.attach import ExitGraph
from keras_selfdistill.exits.sections import exit_ends, first_needing
from keras_selfdistill.graph.nodes import (
    ancestors,
    graph_nodes,
    producer,
    run_in_inference_mode,
)
from keras_selfdistill.graph.shells import original
from keras_selfdistill.training.distiller import SelfDistiller
from keras_selfdistill.utils.keras_internals import mask_of
from keras_selfdistill.utils.type_aliases import Node, SymbolicTensor, Tensor

OUTPUTS = ("output", "logits")
_SAMPLES = 7  # Of a symbolic batch: axes of other meanings seldom have this size.


class Section(keras.Model):
    """The part of a network between two exits, on the network's own tensors.

    No layer is called again or copied: the base does not change and weights are shared.
    Every layer runs in inference mode, as in the base's own `predict`, also layers
    that were called with `training=True`.

    Called with the list of tensors alive at the cut before it, in the order of
    `inputs`, it returns a dict with the `"output"` and `"logits"` of its exit (as
    requested), shape `(batch, classes)`, and under `"alive"` the list of tensors that
    later sections need, which are the inputs of the next section.

    Args:
        function: Symbolic graph of the section.
        exit_name: Name of the exit that the section computes.
        name: Name of the model.

    Attributes:
        scores: Whether it also returns, under `"confidence"`, the largest value of its
            exit's `"output"` for each sample, shape `(batch,)`.
    """

    scores = False

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
    def inputs(self) -> list[SymbolicTensor]:
        """Symbolic tensors alive at the cut before the section."""
        return self._function.inputs

    @property
    def parts(self) -> list[keras.Layer]:
        """The layers that the section applies, in order."""
        return list(self._parts)

    def call(
        self, alive: list[SymbolicTensor], training: bool = False
    ) -> dict[str, Tensor]:
        """Compute the exit and the inputs of the next section; see the class."""
        del training  # Sections are not trained.
        found = run_in_inference_mode(self._function, alive)
        if not self.scores:
            return found
        output = keras.ops.cast(found["output"], "float32")
        return {**found, "confidence": keras.ops.max(output, axis=-1)}


class _Pieces(NamedTuple):
    """The nodes of a network, and the section in which each of them runs.

    Args:
        nodes: Nodes in topological order.
        section: Index of the section of each node; -1 for inputs.
        ends: The requested outputs of every exit.
    """

    nodes: list[Node]
    section: dict[Node, int]
    ends: list[list[SymbolicTensor]]


def cut_sections(
    graph: ExitGraph, outputs: Sequence[str] = OUTPUTS
) -> tuple[Section, ...]:
    """Cut a network behind every exit.

    Args:
        graph: A base with exits.
        outputs: Requested outputs of each exit: `"output"`, `"logits"` or both.

    Returns:
        One section for each exit, shallow to deep. The first takes the inputs of the
        base that are used.

    Raises:
        ValueError: An exit reads the base beyond its tap, the base masks time steps, or
            a tensor at a cut has not one row for each sample.

    Example:
        >>> import keras_selfdistill as ksd
        >>> base = ksd.networks.resnet18(width_multiplier=0.125, classes=10)
        >>> model = ksd.SelfDistiller(base, taps=1, recipe="byot")
        >>> [len(part.inputs) for part in cut_sections(model.exit_graph)]
        [1, 1]
    """
    _check_exits(graph)
    pieces = _pieces(graph, outputs)
    cuts = [_alive(pieces, i) for i in range(len(pieces.ends) + 1)]
    _check_tensors(graph, [tensor for cut in cuts for tensor in cut])
    sections = []
    for i, (name, end) in enumerate(zip(graph.exits, pieces.ends, strict=True)):
        returned = dict(zip(outputs, end, strict=True)) | {"alive": cuts[i + 1]}
        function = keras.Function(cuts[i], returned)
        section_name = f"{_scope_name(graph.base.name)}_section_{i + 1}"
        sections.append(Section(function, name, name=section_name))
    return tuple(sections)


def _scope_name(name: str) -> str:
    """Return the name of a base as one that TensorFlow's scopes may have in exports."""
    found = re.sub(r"[^\w.\-/]", "_", name, flags=re.ASCII)
    return found if re.match(r"[A-Za-z0-9.]", found) else f"base{found}"


def section_costs(
    graph: ExitGraph, outputs: Sequence[str] = OUTPUTS, shapes: Shapes | None = None
) -> list[Count]:
    """Return the multiply-adds of each section for one sample, shallow to deep.

    Args:
        graph: A base with exits.
        outputs: Requested outputs, as in `cut_sections`.
        shapes: Shapes of the base's inputs with unknown sizes.

    Raises:
        ValueError: A count depends on an unknown size.

    Example:
        >>> import keras_selfdistill as ksd
        >>> base = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="a"),
        ...     keras.layers.Dense(4), keras.layers.Dense(2, "softmax")])
        >>> model = ksd.SelfDistiller(base, taps=["a"], recipe="byot", head="linear")
        >>> [count.macs for count in section_costs(model.exit_graph, ["output"])]
        [56, 24]
    """
    pieces = _pieces(graph, outputs)
    counts = macs_by_node(pieces.nodes, shapes)
    return [
        Count.total(
            counts[node] for node, own in pieces.section.items() if own == index
        )
        for index in range(len(pieces.ends))
    ]


def _pieces(graph: ExitGraph, outputs: Sequence[str]) -> _Pieces:
    ends = exit_ends(graph, outputs)
    nodes = graph_nodes(graph.base.inputs, ends)
    section = first_needing(nodes, ends)
    section |= {node: -1 for node in nodes if not node.input_tensors}
    return _Pieces(nodes, section, ends)


def _alive(pieces: _Pieces, section: int) -> list[SymbolicTensor]:
    """Return the tensors computed before a section and read in it or after it."""
    read = {id(tensor) for end in pieces.ends[section:] for tensor in end}
    for node in pieces.nodes:
        if pieces.section[node] >= section:
            read.update(id(tensor) for tensor in node.input_tensors)
    return [
        tensor
        for node in pieces.nodes
        if pieces.section[node] < section
        for tensor in node.outputs
        if id(tensor) in read
    ]


def _check_tensors(graph: ExitGraph, tensors: Sequence[SymbolicTensor]) -> None:
    """Refuse cuts of tensors with masks, or with other rows than those of the samples.

    Masks do not reach the next section, and rows are selected for samples that go on.
    """
    inputs = graph.base.inputs
    fixed = next(filter(None, (each.shape[0] for each in inputs)), None)
    size = fixed or _SAMPLES
    batch = [keras.KerasTensor((size, *each.shape[1:]), each.dtype) for each in inputs]
    found = keras.Function(inputs, tensors).compute_output_spec(batch)
    for tensor, each in zip(tensors, found, strict=True):
        name = original(producer(tensor).operation).name
        if mask_of(tensor) is not None:
            raise _masks_error(graph, name)
        of_batch = ((size,), (None,))  # Some layers do not tell.
        if each.shape[:1] not in of_batch or not (fixed or tensor.shape[0] is None):
            raise ValueError(
                "A network can only be cut where every tensor has one row for each "
                f"sample. Received: {name!r} of model {graph.base.name!r}, with shape "
                f"{tuple(each.shape)} for {size} samples. Expected: taps before or "
                "behind it; or deploy exit_model(...), which is not cut."
            )


def _masks_error(graph: ExitGraph, layer: str) -> ValueError:
    return ValueError(
        "A network that masks time steps cannot be cut, because masks are not tensors "
        f"of its graph. Received: layer {layer!r} of model {graph.base.name!r}. "
        "Expected: a base without masks; or deploy exit_model(...), which is not cut."
    )


def check_wrapper(model: SelfDistiller) -> None:
    """Check that a model has exits and predicts one class for each sample.

    Args:
        model: Model of which samples are to exit early.

    Raises:
        TypeError: The model is not a `SelfDistiller`.
        ValueError: There is no exit, or the task is not multiclass, or has positions.
    """
    if not isinstance(model, SelfDistiller):
        raise TypeError(
            "Early exit needs a model with exits. Received: "
            f"{type(model).__name__}. Expected: a SelfDistiller."
        )
    graph = model.exit_graph
    if not graph.taps:
        raise ValueError(
            "Early exit needs an exit before the end. Received: "
            f"{model.name!r} with taps=[]. Expected: at least one tap."
        )
    if graph.task.name != "multiclass" or graph.task.positions:
        raise ValueError(
            "Early exit needs a model that predicts one class for each sample. "
            f"Received: {model.name!r} of task {graph.task.name!r} with outputs of "
            f"shape {tuple(graph.base.outputs[0].shape)}. Deploy exit_model(...) "
            "or final_model() instead."
        )


def _check_exits(graph: ExitGraph) -> None:
    """Refuse networks that cannot be cut into sections."""
    if graph.head.reads_whole_base:
        raise ValueError(
            "No sample can exit early, because every exit reads the whole base. "
            f"Received: head {graph.head!r} on base {graph.base.name!r}. Expected: a "
            "head that reads its own tap alone, such as head='bottleneck'; or deploy "
            "final_model() or ensemble_model()."
        )
    nodes = graph_nodes(graph.base.inputs, graph.flat.model.outputs)
    for node in nodes:
        operation = original(node.operation)
        masks = isinstance(operation, layers.Masking)
        if masks or getattr(operation, "mask_zero", False):
            raise _masks_error(graph, operation.name)
    made = {id(tensor): node for node in nodes for tensor in node.outputs}
    *shallow, _ = graph.exits
    for name, tap in zip(shallow, graph.taps, strict=True):
        exit_ = graph.exits[name]
        reads = ancestors(exit_.output, exit_.logits) & made.keys()
        beyond = reads - ancestors(graph.flat.calls[tap])
        if beyond:
            layer = made[min(beyond, key=list(made).index)].operation.name
            raise ValueError(
                f"No sample can exit at {name!r}, which reads the base beyond its "
                f"tap. Received: tap {tap!r}, and a head that also reads {layer!r}. "
                "Expected: a head that reads its own tap alone, such as "
                "head='bottleneck'; or deploy exit_model(...) or final_model()."
            )
