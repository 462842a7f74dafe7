"""The sections, taps and heads of a wrapper, with their multiply-adds."""

import dataclasses

from keras_selfdistill.costs.counting import Shapes, macs_by_node
from keras_selfdistill.costs.input_shapes import nominal_shapes
from keras_selfdistill.exits.attach import ExitGraph
from keras_selfdistill.exits.sections import base_sections, needed_by
from keras_selfdistill.graph.nodes import graph_nodes
from keras_selfdistill.recipes.fields import is_used
from keras_selfdistill.training.distiller import SelfDistiller


@dataclasses.dataclass(frozen=True)
class Part:
    """A section of the base, and the exit at its end.

    Args:
        exit_name: Name of the exit.
        tap: Name of the tapped layer; `""` at the base's end.
        section: Multiply-adds of the section for one sample; `None` if unknown.
        head: Multiply-adds of the exit's head for one sample; `None` if unknown, 0 at
            the base's end.
        teachers: Names of the exits that teach this one.
    """

    exit_name: str
    tap: str
    section: int | None
    head: int | None
    teachers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """The structure of a wrapper, with its multiply-adds.

    Args:
        name: Name of the base.
        input_shapes: Shapes of one sample for which multiply-adds were counted; where
            the base has unknown sizes, those of `nominal_shapes`.
        sizes_are_open: Whether the base has unknown sizes.
        head: Class name of the head, such as `"Bottleneck"`.
        heads_read_on: Whether heads read the base beyond their taps.
        parts: Sections with their exits, shallow to deep.
    """

    name: str
    input_shapes: tuple[tuple[int, ...], ...]
    sizes_are_open: bool
    head: str
    heads_read_on: bool
    parts: tuple[Part, ...]

    @property
    def macs(self) -> int | None:
        """Multiply-adds of the base for one sample; `None` if unknown."""
        counts = [part.section for part in self.parts]
        return None if None in counts else sum(counts)  # type: ignore[arg-type]


def anatomy(model: SelfDistiller) -> Anatomy:
    """Return the structure of a wrapper.

    A layer that several sections need counts in the first of them; one that several
    heads need counts in the deepest.

    Args:
        model: A `SelfDistiller`.

    Example:
        >>> import keras_selfdistill as ksd
        >>> base = ksd.networks.resnet18(width_multiplier=0.125, classes=10)
        >>> found = anatomy(ksd.SelfDistiller(base, taps=2, recipe="byot"))
        >>> [(part.exit_name, part.teachers) for part in found.parts]
        [('exit_1', ('final',)), ('exit_2', ('final',)), ('final', ())]
    """
    graph = model.exit_graph
    shapes = nominal_shapes(graph.flat.model)
    sections, heads = _costs(graph, shapes)
    teachers = _teachers(model)
    parts = [
        Part(name, tap, section, head, teachers[name])
        for name, tap, section, head in zip(
            graph.exits, [*graph.taps, ""], sections, heads, strict=True
        )
    ]
    return Anatomy(
        name=graph.base.name,
        input_shapes=tuple(
            shapes.get(id(tensor), tuple(tensor.shape[1:]))
            for tensor in graph.base.inputs
        ),
        sizes_are_open=bool(shapes),
        head=type(graph.head).__name__,
        heads_read_on=graph.head.reads_whole_base,
        parts=tuple(parts),
    )


def _costs(
    graph: ExitGraph, shapes: Shapes
) -> tuple[list[int | None], list[int | None]]:
    """Return the multiply-adds of every section and of every head."""
    outputs = [each.output for each in graph.exits.values()]
    nodes = graph_nodes(graph.base.inputs, outputs)
    counts = macs_by_node(nodes, shapes)
    in_section = base_sections(graph, nodes)
    users = needed_by(nodes, [[output] for output in outputs])
    sections: list[int | None] = [0] * len(outputs)
    heads: list[int | None] = [0] * len(outputs)
    for node in nodes:
        if node in in_section:
            totals, number = sections, in_section[node]
        elif users[node]:
            totals, number = heads, users[node][-1]
        else:
            continue  # An input that the base does not use.
        total, count = totals[number], counts[node]
        if total is None or count.unknown:
            totals[number] = None
        else:
            totals[number] = total + count.macs
    return sections, heads


def _teachers(model: SelfDistiller) -> dict[str, tuple[str, ...]]:
    """Return the names of the exits that each exit learns from."""
    recipe, names = model.recipe.at(0), model.exit_names
    all_learn = bool(model.distillation_losses)
    return {
        name: tuple(recipe.teachers_of(name, names))
        if all_learn or is_used(weights.soft_target) or is_used(weights.hint)
        else ()
        for name, weights in recipe.weights(names).items()
    }
