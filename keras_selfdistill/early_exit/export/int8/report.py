"""What an int8 artifact contains, and what it needs on a device."""

import dataclasses
import textwrap
from collections.abc import Sequence

from absl import logging

from keras_selfdistill.early_exit.thresholds.choice import Choice
from keras_selfdistill.early_exit.thresholds.setting import condition
from keras_selfdistill.utils.table import Table, compact


@dataclasses.dataclass(frozen=True)
class SectionSize:
    """What one section of an int8 artifact contains and needs.

    Args:
        operators: Number of operators by their names in the format.
        weight_bytes: Bytes of its constants; those that sections share count in the
            first of them.
        arena_bytes: Bytes of the tensors that are needed at once while it runs, with
            those that the sections before it hold; `None` for ONNX, whose batch size
            is open.
    """

    operators: dict[str, int]
    weight_bytes: int
    arena_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class QuantizedExport:
    """What an int8 artifact contains, and what it needs; `print` shows a table.

    Args:
        thresholds: Thresholds in the artifact, by exit; `None` at the last.
        sections: Size of the section of each exit, shallow to deep.
        file_bytes: Size of the file, or of all models of the folder.
        calibration: Thresholds chosen on the quantised outputs, with their accuracy and
            cost; `None` without `recalibrate`.
        float_operators: Kinds of operators that compute in float32, for want of an int8
            form; those that score an exit are not among them, and of ONNX only those
            with weights are.

    Example:
        >>> size = SectionSize({"CONV_2D": 2}, 4000, 2050)
        >>> print(QuantizedExport({"final": None}, (size,), 9000))
        exit   threshold  operators  weights    arena
        final                     2  4.00 kB  2.05 kB
        <BLANKLINE>
        File: 9.00 kB. Largest arena: 2.05 kB, of tensors alone.
        Operators: CONV_2D.
    """

    thresholds: dict[str, float | None]
    sections: tuple[SectionSize, ...]
    file_bytes: int
    calibration: Choice | None = None
    float_operators: tuple[str, ...] = ()

    @property
    def arena_bytes(self) -> int | None:
        """The largest arena of a section: what a sample needs that goes to the end."""
        found = [each.arena_bytes for each in self.sections]
        return max(each for each in found if each is not None) if all(found) else None

    @property
    def operators(self) -> list[str]:
        """Names of all operators, which the interpreter of a device must have."""
        return sorted({name for each in self.sections for name in each.operators})

    def __str__(self) -> str:
        """Return a table of the sections."""
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html("int8 artifact")

    def _table(self) -> Table:
        headings = ["exit", "threshold", "operators", "weights", "arena"]
        rows = []
        for (name, limit), size in zip(
            self.thresholds.items(), self.sections, strict=True
        ):
            rows.append(
                [
                    name,
                    "" if limit is None else condition(limit),
                    str(sum(size.operators.values())),
                    compact(size.weight_bytes, "B"),
                    compact(size.arena_bytes or 0, "B"),
                ]
            )
        notes = f"File: {compact(self.file_bytes, 'B')}."
        if self.arena_bytes is None:
            headings, rows = headings[:-1], [row[:-1] for row in rows]
        else:
            largest = compact(self.arena_bytes, "B")
            notes += f" Largest arena: {largest}, of tensors alone."
        kinds = textwrap.wrap(f"Operators: {', '.join(self.operators)}.", 80)
        floats = f"Not in int8: {', '.join(self.float_operators)}."
        found = [notes, *kinds, *([floats] if self.float_operators else [])]
        return Table(headings, rows, found)


def warn_of_floats(operators: Sequence[str]) -> None:
    """Warn of operators that compute in float32, if there are any."""
    if operators:
        logging.warning(
            "These operators have no int8 form and compute in float32: %s.",
            ", ".join(operators),
        )
