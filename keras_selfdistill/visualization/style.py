"""What all pictures share: figures without pyplot, colours and markers."""

import importlib
import io
import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

# Of Okabe and Ito: also the colour-blind tell them apart.
BLUE, GREEN, ORANGE, SKY, INK = "#0072B2", "#009E73", "#D55E00", "#56B4E9", "#222222"
ROSE = "#CC79A7"
GRAY = "#777777"
WIDTH, HEIGHT = 8.0, 4.8  # Inches: 800 pixels wide where a file has 100 to the inch.


class Style(NamedTuple):
    """How one exit looks in every picture."""

    color: str
    marker: str
    line: str


def exit_styles(names: Iterable[str]) -> dict[str, Style]:
    """Return a style for each name: exits darken with depth, others stand out.

    Lightness and markers tell exits apart where colours do not.

    Example:
        >>> exit_styles(["exit_1", "final", "ensemble"])["final"]
        Style(color='#222222', marker='o', line='-')
    """
    names = list(names)
    exits = [name for name in names if is_exit(name) and name != "final"]
    shades = iter(colormap("viridis_r")(np.linspace(0.12, 0.85, len(exits))))
    exit_markers, markers = itertools.cycle("sD^vP*Xdhp"), itertools.cycle("DsX^vP")
    colors = itertools.cycle((ROSE, "#E69F00", SKY))
    to_hex = module("matplotlib.colors").to_hex
    styles = {}
    for name in names:
        if name == "final":
            styles[name] = Style(INK, "o", "-")
        elif is_exit(name):
            styles[name] = Style(to_hex(next(shades)), next(exit_markers), "-")
        else:
            color = ORANGE if name == "ensemble" else next(colors)
            styles[name] = Style(color, next(markers), "--")
    return styles


def series_styles(names: Iterable[str]) -> dict[str, Style]:
    """Return a style for each of several models that are compared.

    Example:
        >>> series_styles(["plain"])["plain"]
        Style(color='#CC79A7', marker='s', line='--')
    """
    looks = zip(
        itertools.cycle((ROSE, BLUE, GREEN, ORANGE, SKY)),
        itertools.cycle("soD^vP"),
        strict=False,
    )
    lines = itertools.chain(["--"], itertools.repeat("-"))  # The first is the baseline.
    return {
        name: Style(*look, line)
        for name, look, line in zip(names, looks, lines, strict=False)
    }


def colormap(name: str) -> Any:
    """Return a colour map of matplotlib's."""
    return module("matplotlib").colormaps[name]


def is_exit(name: str) -> bool:
    """Tell an exit from the ensemble, the plain base and the like."""
    return name == "final" or name.startswith("exit_")


def axes_of(ax: Any = None, *, size: tuple[float, float] = (WIDTH, HEIGHT)) -> Any:
    """Return the axes to draw on: those given, or the only ones of a new figure.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    return new_figure(size).add_subplot() if ax is None else ax


def new_figure(size: tuple[float, float], *, layout: str = "constrained") -> Any:
    """Return a figure that pyplot does not know of.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    figure = module("matplotlib.figure").Figure(figsize=size, layout=layout)
    # Jupyter asks for this; only pyplot's own figures are shown without.
    figure._repr_png_ = lambda: _png(figure)
    return figure


def tidy(ax: Any) -> None:
    """Give axes a light grid and no box."""
    ax.grid(alpha=0.3, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def whole_numbers(axis: Any) -> None:
    """Put ticks of an axis, such as that of epochs, at integers alone."""
    ticks = module("matplotlib.ticker")
    axis.set_major_locator(ticks.MaxNLocator(integer=True))


def _png(figure):
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def module(name: str) -> Any:
    """Return a module of matplotlib's, or say how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            "A picture needs matplotlib, which is not installed. Run "
            "`python -m pip install matplotlib`, or install this library with its "
            "extra `plot`. The numbers are to be had without."
        ) from error
