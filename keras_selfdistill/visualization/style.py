"""Helpers that all plots share: figures without pyplot, colours and markers."""

import io
import itertools
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from keras_selfdistill.utils.optional_packages import optional_module
from keras_selfdistill.utils.type_aliases import Axes, Figure

# The palette of Okabe and Ito, which colour-blind readers can tell apart, too.
BLUE, GREEN, ORANGE, SKY, INK = "#0072B2", "#009E73", "#D55E00", "#56B4E9", "#222222"
ROSE, AMBER = "#CC79A7", "#E69F00"
GRAY = "#777777"
WIDTH, HEIGHT = 8.0, 4.8  # Inches; 800 pixels wide at 100 dots per inch.


class Style(NamedTuple):
    """Colour, marker and line of one exit or model."""

    color: str
    marker: str
    line: str


_PINNED = {
    "final": Style(INK, "o", "-"),
    "ensemble": Style(ORANGE, "D", "--"),
    "base": Style(INK, "o", "-"),
    "chosen": Style(BLUE, "*", "--"),
    **dict.fromkeys(("plain", "plain base", "trained plainly"), Style(ROSE, "s", "--")),
}
_EXIT_MARKERS, _OTHER_MARKERS = "^vPXdhp<>8", "X^vP"


def exit_styles(names: Iterable[str]) -> dict[str, Style]:
    """Return a style for each name: exits get darker with depth, others are in colour.

    Lightness and markers distinguish exits without colour, too. Exits, the ensemble and
    the plain base look the same in all plots, whichever other names are drawn.

    Example:
        >>> exit_styles(["exit_1", "final", "ensemble"])["final"]
        Style(color='#222222', marker='o', line='-')
    """
    others = zip(itertools.cycle((AMBER, SKY)), itertools.cycle(_OTHER_MARKERS))
    return {name: _style_by_name(name) or Style(*next(others), "--") for name in names}


def series_styles(names: Iterable[str]) -> dict[str, Style]:
    """Return a style for each of several compared models.

    Example:
        >>> series_styles(["byot", "plain"])["plain"]
        Style(color='#CC79A7', marker='s', line='--')
    """
    names = list(names)
    looks = zip(
        itertools.cycle((BLUE, GREEN, AMBER, SKY)),
        itertools.cycle("oX^vP"),
        strict=False,
    )
    styles = {}
    for name in names:
        line = "--" if name == names[0] else "-"  # The first is the baseline.
        styles[name] = _style_by_name(name) or Style(*next(looks), line)
    return styles


def _style_by_name(name: str) -> Style | None:
    """Return the style that a name has in every plot; `None` for a user's name."""
    if name in _PINNED or not is_exit(name):
        return _PINNED.get(name)
    number = int(name.removeprefix("exit_"))
    marker = _EXIT_MARKERS[(number - 1) % len(_EXIT_MARKERS)]
    # By its number alone, not by how many exits there are: towards 0.85, never there.
    shade = 0.85 - 0.73 * 0.65 ** (number - 1)
    color = module("matplotlib.colors").to_hex(colormap("viridis_r")(shade))
    return Style(color, marker, "-")


def colormap(name: str) -> Any:
    """Return a Matplotlib colour map."""
    return module("matplotlib").colormaps[name]


def is_exit(name: str) -> bool:
    """Return whether a name is that of an exit, not of the ensemble or a model."""
    return name == "final" or re.fullmatch(r"exit_\d+", name) is not None


def axes_of(ax: Axes = None, *, size: tuple[float, float] = (WIDTH, HEIGHT)) -> Axes:
    """Return the given axes, or the only axes of a new figure.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    return new_figure(size).add_subplot() if ax is None else ax


def several_axes(ax: Axes, count: int) -> list[Axes]:
    """Return the given axes as a list.

    Args:
        ax: One axes, or a list or array of them, as `Figure.subplots` returns them.
        count: Number of axes that the plot needs.

    Raises:
        ValueError: The number of axes is another one.
    """
    given = [*np.ravel(ax)]
    if len(given) != count:
        raise ValueError(
            f"The plot needs another number of axes. Received: {len(given)}. Expected: "
            f"{count}, as from plt.subplots(1, {count})[1]."
        )
    return given


def new_figure(size: tuple[float, float], *, layout: str = "constrained") -> Figure:
    """Return a figure that pyplot does not manage.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    figure = module("matplotlib.figure").Figure(figsize=size, layout=layout)
    # Jupyter calls this; without it, only figures of pyplot are shown.
    figure._repr_png_ = lambda: _png(figure)
    return figure


def tidy(ax: Axes) -> None:
    """Give axes a light grid, and hide the top and right spines."""
    ax.grid(alpha=0.3, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def whole_numbers(axis: Any) -> None:
    """Put the ticks of a Matplotlib axis, such as that of epochs, at integers only."""
    ticks = module("matplotlib.ticker")
    axis.set_major_locator(ticks.MaxNLocator(integer=True))


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def module(name: str) -> Any:
    """Return a module of Matplotlib.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    return optional_module(name, "A plot", "plot")
