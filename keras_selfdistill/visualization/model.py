"""A diagram of a wrapper: sections, taps, heads, exits and their teachers."""

import math
import re
from collections.abc import Sequence
from typing import Any

from keras_selfdistill.training.distiller import SelfDistiller
from keras_selfdistill.utils.table import compact
from keras_selfdistill.utils.type_aliases import Axes, Figure
from keras_selfdistill.visualization import style
from keras_selfdistill.visualization.anatomy import Anatomy, Part, anatomy

# Inches, so that type keeps its proportion to boxes; heights from a row's bottom.
_COLUMN, _LEFT, _RIGHT = 1.62, 0.75, 0.4
_BOX, _HEAD_BOX, _TAP_AT = 1.0, 1.2, 1.3
_ROW, _SECTION, _HEAD, _EXIT, _BUS = 2.95, 1.95, 0.95, 0.66, 0.12
_HIGH = 0.5
_MOST_COLUMNS = 4
_TAP_LETTERS, _TAP_LINES = 19, 3


def plot_model(model: SelfDistiller, *, ax: Axes = None) -> Figure:
    """Draw a wrapper: the base as a row of sections, heads at its taps, and exits.

    Percentages are multiply-adds as a fraction of the base's; the one below an exit is
    that of its `exit_model`. A tap has its exit's marker, the same in all plots. Dashed
    arrows lead from teachers to their students. More than four sections are drawn in
    several rows.

    Args:
        model: A `SelfDistiller`.
        ax: Matplotlib axes to draw on.

    Returns:
        The `matplotlib.figure.Figure`; `plot_model(model).savefig("model.svg")` saves
        it as vector graphics.

    Raises:
        ImportError: Matplotlib is not installed.
        ValueError: The base has unknown sizes, and none of the sizes tried for them
            fits.

    Example:
        >>> import keras_selfdistill as ksd
        >>> base = ksd.networks.resnet18(width_multiplier=0.125, classes=10)
        >>> figure = plot_model(ksd.SelfDistiller(base, taps=2, recipe="byot"))
        >>> figure.get_size_inches().round().tolist()
        [6.0, 4.0]
    """
    return _Drawing(anatomy(model), ax).draw()


class _Drawing:
    """Draws one wrapper on Matplotlib axes."""

    def __init__(self, found: Anatomy, ax: Axes) -> None:
        count = len(found.parts)
        rows = math.ceil(count / _MOST_COLUMNS)
        self.columns = math.ceil(count / rows)
        width = _LEFT + self.columns * _COLUMN + _RIGHT
        height = rows * _ROW + 1.05
        self.found = found
        self.rows = rows
        self.ax = ax
        if ax is None:
            self.ax = style.new_figure((width, height), layout="none").add_axes(
                (0, 0, 1, 1)
            )
        self.ax.set(xlim=(0, width), ylim=(0, height))
        self.ax.set_axis_off()
        self.width, self.height = width, height

    def draw(self) -> Figure:
        for number, part in enumerate(self.found.parts):
            self._section(number, part)
            self._exit(number, part)
            if number < len(self.found.parts) - 1:
                self._onwards(number)
        self._teaching()
        self._words()
        return self.ax.figure

    def _place(self, number: int) -> tuple[float, float]:
        """Return the left end and the bottom of a column."""
        row, column = divmod(number, self.columns)
        return _LEFT + column * _COLUMN, self.height - 0.5 - (row + 1) * _ROW

    def _section(self, number: int, part: Part) -> None:
        x, y = self._place(number)
        y += _SECTION
        text = f"section {number + 1}\n{self._share(part.section)}"
        self._box(x, y, _BOX, text, style.BLUE)
        if number == 0:
            shapes = self._input_shapes()
            self._arrow((x - 0.2, y + _HIGH / 2), (x, y + _HIGH / 2), style.INK)
            label = shapes[0] if len(shapes) == 1 else f"{len(shapes)} inputs"
            label = label.replace(" × ", "×\n")
            self._text(x - 0.42, y + _HIGH / 2, label, size=8)

    def _onwards(self, number: int) -> None:
        """Draw an arrow to the next section, which may be in the next row."""
        x, y = self._place(number)
        y += _SECTION + _HIGH / 2
        self._arrow((x + _BOX, y), (x + _COLUMN, y), style.INK)
        if (number + 1) % self.columns == 0:
            x, y = self._place(number + 1)
            y += _SECTION + _HIGH / 2
            self._arrow((x - 0.35, y), (x, y), style.INK)

    def _exit(self, number: int, part: Part) -> None:
        x, y = self._place(number)
        tap, level = x + _TAP_AT, y + _SECTION + _HIGH / 2
        last = part.tap == ""
        color = style.INK if last else style.GREEN
        bottom = y + _EXIT + 0.03
        if last:
            self._line([(x + _BOX, level), (tap, level)], color)
            self._arrow((tap, level), (tap, bottom), color)
        else:
            self._arrow((tap, level), (tap, y + _HEAD + _HIGH), color)
            self._arrow((tap, y + _HEAD), (tap, bottom), color)
            look = style.exit_styles([part.exit_name])[part.exit_name]
            (mark,) = self.ax.plot([tap], [level], look.marker, color=look.color)
            mark.set(label=part.exit_name, markersize=8, zorder=4)
            self._text(
                tap,
                y + _SECTION + _HIGH + 0.08,
                _wrapped(part.tap),
                size=8,
                va="bottom",
            )
            text = f"{self.found.head}\n{self._share(part.head, plus=True)}"
            left = tap - _HEAD_BOX / 2
            self._box(left, y + _HEAD, _HEAD_BOX, text, style.GREEN)
        self._text(tap, y + _EXIT, part.exit_name, weight="bold", va="top")
        if last or not self.found.heads_read_on:
            cost = self._share(self._cost(number))
            self._text(tap, y + _EXIT - 0.19, cost, va="top")

    def _cost(self, number: int) -> int | None:
        """Return the multiply-adds of the `exit_model` of one exit."""
        sections = [part.section for part in self.found.parts[: number + 1]]
        counts = [*sections, self.found.parts[number].head]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def _teaching(self) -> None:
        """Draw dashed arrows from teachers to students, below the exits."""
        names = [part.exit_name for part in self.found.parts]
        for i, part in enumerate(self.found.parts):
            for teacher in part.teachers:
                # The ensemble is no exit: its lines begin at the end of the last row.
                number = names.index(teacher) if teacher in names else len(names) - 1
                x, y = self._tap_x(number), self._place(number)[1] + _BUS
                start = x + 0.09 if teacher in names else self.width - 0.11
                end, level = self._tap_x(i) - 0.09, self._place(i)[1] + _BUS
                above = _EXIT - _BUS - 0.36
                path = [(start, y + above), (start, y)]
                if level != y:  # Another row: along the right margin.
                    path += [(self.width - 0.06, y), (self.width - 0.06, level)]
                self._line([*path, (end, level)], style.ORANGE, "--")
                self._arrow((end, level), (end, level + above), style.ORANGE)

    def _tap_x(self, number: int) -> float:
        return self._place(number)[0] + _TAP_AT

    def _input_shapes(self) -> list[str]:
        return [" × ".join(map(str, shape)) for shape in self.found.input_shapes]

    def _words(self) -> None:
        total = self.found.macs
        size = "unknown" if total is None else compact(total)
        sample = "a sample"
        if self.found.sizes_are_open:
            sample = f"for a sample of {' and '.join(self._input_shapes())}"
        title = f"{self.found.name}: {size} multiply-adds {sample}"
        self._text(self.width / 2, self.height - 0.25, title, size=11, weight="bold")
        lines = ["percentages: multiply-adds, as a share of the base's"]
        if self.found.heads_read_on:
            lines.append("heads read the base beyond their taps")
        taught = any(part.teachers for part in self.found.parts)
        if taught:
            lines.append("dashed: who teaches whom")
        text = "\n".join(lines)
        self._text(self.width / 2, 0.3, text, size=9, color=style.GRAY)

    def _share(self, count: int | None, *, plus: bool = False) -> str:
        total = self.found.macs
        if count is None or not total:
            return "cost unknown"
        share = 100 * count / total
        digits = 1 if share < 9.95 else 0
        return f"{'+' if plus else ''}{share:.{digits}f} %"

    def _box(self, x: float, y: float, width: float, text: str, color: str) -> None:
        patches = style.module("matplotlib.patches")
        shape = "round,pad=0,rounding_size=0.08"
        box = patches.FancyBboxPatch(
            (x, y), width, _HIGH, boxstyle=shape, color=color, linewidth=0, zorder=3
        )
        self.ax.add_patch(box)
        self._text(x + width / 2, y + _HIGH / 2, text, color="white", zorder=5)

    def _text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 9.5,
        va: str = "center",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("color", style.INK)
        self.ax.text(x, y, text, fontsize=size, ha="center", va=va, **kwargs)

    def _line(
        self, points: Sequence[tuple[float, float]], color: str, line: str = "-"
    ) -> None:
        self.ax.plot(*zip(*points, strict=True), line, color=color, linewidth=1.6)

    def _arrow(
        self, start: tuple[float, float], end: tuple[float, float], color: str
    ) -> None:
        arrow = {
            "arrowstyle": "-|>",
            "color": color,
            "linewidth": 1.6,
            "shrinkA": 0,
            "shrinkB": 0,
            "mutation_scale": 11,
        }
        self.ax.annotate("", end, start, arrowprops=arrow, zorder=2)


def _wrapped(name: str) -> str:
    r"""Break a layer's name after slashes and underscores, and shorten a very long one.

    Example:
        >>> _wrapped("backbone/stage_3/conv_block_2_expand_relu")
        'backbone/stage_3/\nconv_block_2_\nexpand_relu'
    """
    lines = [""]
    for piece in re.findall(r"[^/_]*[/_]?", name):
        piece = piece if len(piece) <= _TAP_LETTERS else piece[: _TAP_LETTERS - 1] + "…"
        if len(lines[-1]) + len(piece) > _TAP_LETTERS:
            lines.append("")
        lines[-1] += piece
    if len(lines) > _TAP_LINES:
        lines = ["…" + lines[-_TAP_LINES][1:], *lines[1 - _TAP_LINES :]]
    return "\n".join(lines)
