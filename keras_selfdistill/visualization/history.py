"""Training curves of every exit."""

from collections.abc import Mapping, Sequence
from typing import Any

from keras_selfdistill.training.logs.log_names import exits_in_order, parse_log_names
from keras_selfdistill.utils.config import did_you_mean
from keras_selfdistill.visualization import style


def plot_history(history: Any, metric: str = "accuracy", *, ax: Any = None) -> Any:
    """Draw a metric of every exit by epoch; thin dotted lines are of the training data.

    Args:
        history: What `fit` returned, or the dict in it.
        metric: Name of a metric that `compile` was given.
        ax: Matplotlib axes to draw on.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        ImportError: Matplotlib is not installed.
        ValueError: The history holds no such metric.

    Example:
        >>> history = {"exit_1_accuracy": [0.3, 0.5], "accuracy": [0.2, 0.6]}
        >>> plot_history(history).axes[0].get_ylabel()
        'accuracy'
    """
    values: Mapping[str, Sequence[float]] = getattr(history, "history", history)
    names = parse_log_names(values)
    # A single exit's metric, as of a plain base, is a curve, too.
    found = {
        key: name._replace(source=name.source or "final")
        for key, name in names.items()
        if name.quantity == metric
    }
    if not found:
        known = list(dict.fromkeys(name.quantity for name in names.values()))
        raise ValueError(
            f"The history holds no such metric. Received: metric={metric!r}. Expected "
            f"one of {known}.{did_you_mean(str(metric), known)}"
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
    ax.margins(x=0.02)
    style.whole_numbers(ax.xaxis)
    style.tidy(ax)
    _legend(ax, sources, validated)
    return ax.figure


def _draw(ax, values, look, source, *, faint):
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


def _legend(ax, sources, validated):
    handles, labels = ax.get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))
    if validated:
        (by_label["training data"],) = ax.plot([], [], ":", color=style.GRAY)
    order = [name for name in [*sources, "training data"] if name in by_label]
    ax.legend(
        [by_label[name] for name in order],
        order,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
    )
