"""What all pictures share: figures without pyplot, colours, labels that keep apart."""

import importlib
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# Of Okabe and Ito: also the colour-blind tell them apart.
BLUE, GREEN, ORANGE, SKY, INK = "#0072B2", "#009E73", "#D55E00", "#56B4E9", "#222222"
OTHERS = (ORANGE, BLUE, GREEN, "#CC79A7", "#E69F00", SKY)
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
    colors = itertools.cycle(OTHERS)
    to_hex = module("matplotlib.colors").to_hex
    styles = {}
    for name in names:
        if name == "final":
            styles[name] = Style(INK, "o", "-")
        elif is_exit(name):
            styles[name] = Style(to_hex(next(shades)), next(exit_markers), "-")
        else:
            styles[name] = Style(next(colors), next(markers), "--")
    return styles


def series_styles(names: Iterable[str]) -> dict[str, Style]:
    """Return a style for each of several models that are compared.

    Example:
        >>> series_styles(["plain"])["plain"]
        Style(color='#D55E00', marker='s', line='--')
    """
    looks = zip(itertools.cycle(OTHERS), itertools.cycle("soD^vP"), strict=False)
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


def place_labels(ax: Any, labels: Mapping[str, tuple[float, float]]) -> None:
    """Write a label beside each point, where it hits no line, point or other label.

    Args:
        ax: Axes that hold everything else already.
        labels: Text, and the point in data coordinates.
    """
    figure = ax.figure
    figure.draw_without_rendering()  # Settles the layout.
    taken = _obstacles(ax)
    boxes: list[Any] = []
    legend = ax.get_legend()
    if legend is not None:
        boxes.append(legend.get_window_extent())
    for text, point in labels.items():
        found = None
        for x, y, horizontal, vertical in _PLACES:
            note = ax.annotate(
                text,
                point,
                xytext=(x, y),
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=9,
                color=INK,
            )
            box = note.get_window_extent().padded(1)
            hits = _count_inside(box, taken) + 50 * _outside(box, ax)
            hits += 50 * sum(box.overlaps(other) for other in boxes)
            if found is None or hits < found[0]:
                if found:
                    found[1].remove()
                found = hits, note, box
            else:
                note.remove()
        boxes.append(found[2])


# Offsets in points from the point to the label, and the label's alignment.
_PLACES: Sequence[tuple[float, float, str, str]] = (
    (8, -6, "left", "top"),
    (0, -9, "center", "top"),
    (0, 9, "center", "bottom"),
    (-8, 6, "right", "bottom"),
    (9, 0, "left", "center"),
    (-9, 0, "right", "center"),
    (0, -22, "center", "top"),
    (0, 22, "center", "bottom"),
)


def _obstacles(ax):
    """Return points along all lines, in pixels."""
    found = []
    for line in ax.lines:
        path = line.get_transform().transform_path(line.get_path())
        corners = path.vertices
        if len(corners) > 1 and line.get_linestyle() not in ("None", "none", ""):
            steps = np.linspace(0, 1, 60)[:, None, None]
            corners = (corners[:-1] * (1 - steps) + corners[1:] * steps).reshape(-1, 2)
        found.append(corners)
    return np.concatenate(found) if found else np.zeros((0, 2))


def _count_inside(box, points):
    inside = (points >= box.min) & (points <= box.max)
    return int(inside.all(axis=1).sum())


def _outside(box, ax):
    frame = ax.get_window_extent()
    return not (frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0)


def _png(figure):
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def module(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            "A picture needs matplotlib, which is not installed. Run "
            "`python -m pip install matplotlib`, or install this library with its "
            "extra `plot`. The numbers are to be had without."
        ) from error
