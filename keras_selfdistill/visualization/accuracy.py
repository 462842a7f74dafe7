"""Plots of accuracy against compute, and of the fraction of samples per exit."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from keras_selfdistill.utils.type_aliases import Axes, Figure, Tensor
from keras_selfdistill.visualization import style
from keras_selfdistill.visualization.point_labels import place_labels


class AccuracyCurve(Protocol):
    """Accuracy by compute, such as a `Frontier`."""

    @property
    def macs_ratio(self) -> np.ndarray:
        """Multiply-adds as a fraction of the base's, ascending, shape `(points,)`."""

    @property
    def accuracy(self) -> np.ndarray:
        """Accuracy of shape `(points,)`."""


def plot_accuracy_vs_compute(
    points: Mapping[str, tuple[float, float]],
    *,
    frontier: AccuracyCurve | None = None,
    ax: Axes = None,
) -> Figure:
    """Draw accuracy against multiply-adds: exits, other models and early exit.

    Args:
        points: Mapping of names to pairs of multiply-adds, as a fraction of the
            base's, and accuracy. Exits (`exit_1`, …, `final`) are joined by a line;
            others, such as `"ensemble"` or `"plain base"`, are single points.
        frontier: The `Frontier` that `EarlyExit.frontier` returned.
        ax: Matplotlib axes to draw on.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        ImportError: Matplotlib is not installed.

    Example:
        >>> points = {"exit_1": (0.4, 0.70), "final": (1.0, 0.75)}
        >>> plot_accuracy_vs_compute(points).savefig("curve.svg")  # doctest: +SKIP
    """
    curve = None if frontier is None else (frontier.macs_ratio, frontier.accuracy)
    ax = _draw(points, curve, ax)
    ax.set_xlabel("multiply-adds, as a share of the base's")
    ax.xaxis.set_major_formatter("{x:.0%}")
    return ax.figure


def draw_by_latency(
    points: Mapping[str, tuple[float, float]],
    latency_ms: np.ndarray,
    accuracy: np.ndarray,
    ax: Axes = None,
) -> Figure:
    """Draw accuracy against latency for a `Frontier`.

    Args:
        points: Mapping of names to pairs of milliseconds and accuracy.
        latency_ms: Milliseconds of the front, ascending, shape `(points,)`.
        accuracy: Accuracy of the front, shape `(points,)`.
        ax: Matplotlib axes to draw on.
    """
    ax = _draw(points, (latency_ms, accuracy), ax)
    ax.set_xlabel("mean latency, ms")
    return ax.figure


def _draw(
    points: Mapping[str, tuple[float, float]],
    curve: tuple[np.ndarray, np.ndarray] | None,
    ax: Axes,
) -> Axes:
    """Draw accuracy against any cost, and return the axes."""
    ax = style.axes_of(ax)
    styles = style.exit_styles(points)
    exits = {name: at for name, at in points.items() if style.is_exit(name)}
    if curve is not None:
        ax.step(
            *curve,
            where="post",
            color=style.GREEN,
            linewidth=2,
            label="early exit, all thresholds",
        )
    if exits:
        ax.plot(*zip(*exits.values(), strict=True), "-", color=style.GRAY, zorder=1.5)
        ax.lines[-1].set_label("exits")
    for name, (share, accuracy) in points.items():
        look = styles[name]
        ax.plot(
            [share],
            [accuracy],
            look.marker,
            color=look.color,
            markersize=8 if name in exits else 10,
            markerfacecolor=look.color if name in exits else "none",
            markeredgewidth=2,
            label=name,
        )
    ax.set_ylabel("accuracy")
    ax.yaxis.set_major_formatter("{x:.1%}")
    ax.margins(x=0.1, y=0.15)
    ax.set_xlim(left=0)
    style.tidy(ax)
    # Above the axes, where the legend covers no curve.
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1)}
    shown = [line for line in ax.lines if line.get_label() not in exits]
    ax.legend(handles=shown, ncols=4, frameon=False, **place)
    place_labels(ax, exits)  # In place of entries in the legend.
    return ax


def plot_exit_shares(
    thresholds: Sequence[float] | np.ndarray,
    shares: Tensor,
    exit_names: Sequence[str],
    *,
    chosen: float | Sequence[float] | None = None,
    ax: Axes = None,
) -> Figure:
    """Draw the fraction of samples that exit at each exit, by threshold.

    Args:
        thresholds: Thresholds that all exits share, ascending, shape `(thresholds,)`.
        shares: Fractions of shape `(thresholds, exits)`; each row sums to 1.
        exit_names: Names of the exits, shallow to deep.
        chosen: Threshold to mark, or one for each exit but the last. Infinite ones, at
            which no sample or every sample exits, are left out.
        ax: Matplotlib axes to draw on.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        ImportError: Matplotlib is not installed.

    Example:
        >>> shares = [[1.0, 0.0], [0.3, 0.7]]
        >>> figure = plot_exit_shares([0.0, 1.0], shares, ["exit_1", "final"])
        >>> figure.axes[0].get_ylabel()
        'fraction of samples per exit'
    """
    ax = style.axes_of(ax)
    styles = style.exit_styles(exit_names)
    ax.stackplot(
        thresholds,
        np.asarray(shares).T,
        labels=exit_names,
        colors=[styles[name].color for name in exit_names],
        edgecolor="white",
    )
    _mark_thresholds(ax, chosen, exit_names, styles)
    ax.set_xlabel("threshold of every exit")
    ax.set_ylabel("fraction of samples per exit")
    ax.yaxis.set_major_formatter("{x:.0%}")
    ax.set_xlim(thresholds[0], thresholds[-1])
    ax.set_ylim(0, 1)
    handles, labels = ax.get_legend_handles_labels()
    # Outside the axes, in the vertical order of the areas: the deepest exit on top.
    ax.legend(
        handles[::-1],
        labels[::-1],
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
    )
    return ax.figure


def _mark_thresholds(
    ax: Axes,
    chosen: float | Sequence[float] | None,
    exit_names: Sequence[str],
    styles: Mapping[str, style.Style],
) -> None:
    """Draw lines at the thresholds in use: one where all exits share it."""
    values = np.atleast_1d(np.asarray([] if chosen is None else chosen, "float64"))
    if len(set(values.tolist())) == 1:
        marks = [("chosen", style.exit_styles(["chosen"])["chosen"].color, values[0])]
    else:
        named = zip(exit_names, values, strict=False)
        marks = [(name, styles[name].color, value) for name, value in named]
    for name, color, value in marks:
        if np.isfinite(value):
            ax.axvline(value, color="white", linewidth=4)
            ax.axvline(value, color=color, linewidth=2, linestyle="--")
            ax.lines[-1].set_label(f"{name}: {value:.3g}")
