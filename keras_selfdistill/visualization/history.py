"""Training curves of every exit."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import keras

from keras_selfdistill.training.logs.log_names import exits_in_order, parse_log_names
from keras_selfdistill.utils.config import did_you_mean
from keras_selfdistill.utils.type_aliases import Axes, Figure
from keras_selfdistill.visualization import style

History: TypeAlias = keras.callbacks.History | Mapping[str, Sequence[float]]


def logs_of(history: History) -> Mapping[str, Sequence[float]]:
    """Return the values by key of a `History`, or of its dict."""
    return getattr(history, "history", history)


def plot_history(
    history: History, metric: str = "accuracy", *, ax: Axes = None
) -> Figure:
    """Draw a metric of every exit by epoch, of validation data if there are any.

    Training data are then dotted.

    Args:
        history: The `History` that `fit` returned, or its dict.
        metric: Name of a metric that was passed to `compile`.
        ax: Matplotlib axes to draw on.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        ImportError: Matplotlib is not installed.
        ValueError: The history does not contain the metric.

    Example:
        >>> history = {"exit_1_accuracy": [0.3, 0.5], "accuracy": [0.2, 0.6]}
        >>> plot_history(history).axes[0].get_ylabel()
        'accuracy'
    """
    values = logs_of(history)
    names = parse_log_names(values)
    # The history of a plain model has no exits: draw its metric as the final exit's.
    found = {
        key: name._replace(source=name.source or "final")
        for key, name in names.items()
        if name.quantity == metric
    }
    if not found:
        known = list(dict.fromkeys(name.quantity for name in names.values()))
        raise ValueError(
            f"The history does not contain this metric. Received: metric={metric!r}. "
            f"Expected one of {known}.{did_you_mean(str(metric), known)}"
        )
    ax = style.axes_of(ax)
    validated = any(name.validation for name in found.values())
    sources = exits_in_order(found.values())
    for source, look in style.exit_styles(sources).items():
        for key, name in found.items():
            if name.source == source:
                faint = validated and not name.validation
                _draw(ax, values[key], look, source, faint=faint)
    ax.set_xlabel("epoch")
    ax.set_ylabel(metric)
    if "accuracy" in metric:
        ax.yaxis.set_major_formatter("{x:.1%}")
    ax.margins(x=0.02)
    style.whole_numbers(ax.xaxis)
    style.tidy(ax)
    _legend(ax, sources, validated)
    return ax.figure


def _draw(
    ax: Axes, values: Sequence[float], look: style.Style, source: str, *, faint: bool
) -> None:
    epochs = range(1, len(values) + 1)
    if faint:
        ax.plot(epochs, values, ":", color=look.color, linewidth=1.2)
        return
    ax.plot(
        epochs,
        values,
        look.marker + look.line,
        color=look.color,
        linewidth=2,
        markersize=6,
        markevery=max(1, len(values) // 10),
        label=source,
    )


def _legend(ax: Axes, sources: Iterable[str], validated: bool) -> None:
    handles, labels = ax.get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))
    if validated:
        (by_label["validation data"],) = ax.plot([], [], "-", color=style.GRAY)
        (by_label["training data"],) = ax.plot([], [], ":", color=style.GRAY)
    kinds = ["validation data", "training data"]
    order = [name for name in [*sources, *kinds] if name in by_label]
    ax.legend(
        [by_label[name] for name in order],
        order,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
    )
