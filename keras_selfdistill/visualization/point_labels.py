"""Labels beside points, placed so that they overlap neither lines nor each other."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_selfdistill.utils.type_aliases import Axes

# Offsets in points from the point to the label, and the label's alignment.
_PLACES = (
    (8, -6, "left", "top"),
    (0, -9, "center", "top"),
    (0, 9, "center", "bottom"),
    (-8, 6, "right", "bottom"),
    (9, 0, "left", "center"),
    (-9, 0, "right", "center"),
    (0, -22, "center", "top"),
    (0, 22, "center", "bottom"),
)
_WORST = 50  # Penalty of an overlap, in covered points of a line.


def place_labels(ax: Axes, labels: Mapping[str, tuple[float, float]]) -> None:
    """Write a label beside each point, where it overlaps as little as possible.

    Args:
        ax: Axes on which everything else is drawn already.
        labels: Mapping of label texts to points in data coordinates.
    """
    ax.figure.draw_without_rendering()  # Computes the layout.
    points = _points_of_lines(ax)
    legend = ax.get_legend()
    boxes = [] if legend is None else [legend.get_window_extent()]
    for text, point in labels.items():
        notes = [_note(ax, text, point, place) for place in _PLACES]
        hits = [_hits(each.get_window_extent(), points, boxes, ax) for each in notes]
        best = notes.pop(int(np.argmin(hits)))
        for note in notes:
            note.remove()
        boxes.append(best.get_window_extent())


def _note(
    ax: Axes,
    text: str,
    point: tuple[float, float],
    place: tuple[float, float, str, str],
) -> Any:
    x, y, horizontal, vertical = place
    return ax.annotate(
        text,
        point,
        xytext=(x, y),
        textcoords="offset points",
        ha=horizontal,
        va=vertical,
        fontsize=9,
    )


def _hits(box: Any, points: np.ndarray, boxes: Sequence[Any], ax: Axes) -> int:
    """Return the penalty of a label at a place: covered points and overlaps."""
    box = box.padded(3)
    covered = ((points >= box.min) & (points <= box.max)).all(axis=1).sum()
    frame = ax.get_window_extent()
    inside = (box.min >= frame.min).all() and (box.max <= frame.max).all()
    overlaps = sum(box.overlaps(other) for other in boxes)
    return covered + _WORST * (overlaps + (not inside))


def _points_of_lines(ax: Axes) -> np.ndarray:
    """Return points along all lines, in pixels, shape `(points, 2)`."""
    found = [np.zeros((0, 2))]
    for line in ax.lines:
        corners = line.get_transform().transform_path(line.get_path()).vertices
        if line.get_linestyle() != "None":
            steps = np.linspace(0, 1, 60)[:, None, None]
            between = corners[:-1] * (1 - steps) + corners[1:] * steps
            found.append(between.reshape(-1, 2))
        found.append(corners)
    return np.concatenate(found)
