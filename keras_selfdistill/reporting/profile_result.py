"""`Profile`, the result of `profile`, and its table."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from keras_selfdistill.utils.table import Table, compact, elided


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of a model, or of a section of a model.

    Args:
        parameters: Number of weights, trainable or frozen.
        macs: Multiply-adds for one sample of the layers whose cost is known.
        macs_ratio: Multiply-adds as a fraction of the base's; NaN if unknown, or if
            the base has none.
        unknown: Names of the layers whose cost is unknown.
    """

    parameters: int
    macs: int
    macs_ratio: float
    unknown: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """Cost of one call of a layer or operation.

    Args:
        name: Path of the layer; `"backbone/stage/layer"` in a nested model.
        kind: Class name of the layer or operation.
        section: Name of the first exit that needs the call; `"ensemble"` if no exit
            does.
        parameters: Number of weights that no earlier row has counted.
        macs: Multiply-adds for one sample; `None` if unknown for a part of the layer.
        unknown: Names of the parts whose cost is unknown.
    """

    name: str
    kind: str
    section: str
    parameters: int
    macs: int | None
    unknown: tuple[str, ...] = ()


class Profile(Mapping[str, Cost]):
    """Mapping of exit names to costs; also costs by section and layer.

    Prints as a table.

    Args:
        exits: Costs of the models of all exits, shallow to deep, and of the ensemble.
        sections: Costs of what each exit needs beyond the exits before it.
        layers: Costs of all calls of layers, in topological order.
    """

    def __init__(
        self,
        exits: Mapping[str, Cost],
        sections: Mapping[str, Cost],
        layers: tuple[LayerCost, ...],
    ) -> None:
        self._exits = dict(exits)
        self.sections = dict(sections)
        self.layers = layers

    def __getitem__(self, name: str) -> Cost:
        """Return the cost of the model of one exit."""
        return self._exits[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the exits."""
        return iter(self._exits)

    def __len__(self) -> int:
        """Return the number of exits."""
        return len(self._exits)

    def render(self, *, layers: bool = False) -> str:
        """Return the costs by exit and by section as text.

        Args:
            layers: Whether to also list every layer with weights or multiply-adds.
        """
        parts = [
            _costs_table(self._exits, "model of"),
            _costs_table(self.sections, "section of"),
        ]
        if layers:
            parts.append(_layers_table(self.layers))
        unknown = sorted({name for row in self.layers for name in row.unknown})
        notes = [f"Not counted: {', '.join(unknown)} (unknown)."] if unknown else []
        return "\n\n".join([*(table.text() for table in parts), *notes])

    def __str__(self) -> str:
        """Return `render()`."""
        return self.render()

    def _repr_html_(self) -> str:
        parts = [
            _costs_table(self._exits, "model of"),
            _costs_table(self.sections, "section of"),
        ]
        return "".join(table.html() for table in parts)

    def __repr__(self) -> str:
        """Return the names of the exits and the number of layers."""
        return f"Profile([{elided(map(repr, self))}], {len(self.layers)} layers)"


def _costs_table(costs: Mapping[str, Cost], heading: str) -> Table:
    headings = [heading, "parameters", "MACs", "MACs ratio"]
    any_unknown = any(cost.unknown for cost in costs.values())
    missing = "unknown" if any_unknown else "undefined"  # A base without any.
    rows = [
        [
            name,
            compact(cost.parameters),
            ("at least " if cost.unknown else "") + compact(cost.macs),
            missing if math.isnan(cost.macs_ratio) else f"{cost.macs_ratio:.1%}",
        ]
        for name, cost in costs.items()
    ]
    return Table(headings, rows)


def _layers_table(layers: Sequence[LayerCost]) -> Table:
    headings = ["layer", "class", "section of", "parameters", "MACs"]
    rows = [
        [
            row.name,
            row.kind,
            row.section,
            compact(row.parameters),
            "unknown" if row.macs is None else compact(row.macs),
        ]
        for row in layers
        if row.parameters or row.macs != 0
    ]
    return Table(headings, rows, names=3)
