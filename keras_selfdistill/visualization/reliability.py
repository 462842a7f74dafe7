"""How far confidence can be believed."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_selfdistill.visualization import style


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Answers, binned by their confidence.

    Args:
        edges: Borders of the bins, shape `(bins + 1,)`.
        confidence: Mean confidence in each bin, NaN in an empty one.
        accuracy: Share of right answers in each bin, NaN in an empty one.
        share: Share of the samples in each bin.
    """

    edges: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    share: np.ndarray

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance of accuracy and confidence, weighted by the bins' shares."""
        return float(np.nansum(self.share * np.abs(self.accuracy - self.confidence)))


def reliability(probabilities: Any, labels: Any, bins: int = 15) -> Reliability:
    """Bin answers by the largest probability, in bins of equal width.

    Args:
        probabilities: Shape `(samples, classes)`, rows that sum to 1.
        labels: Classes, shape `(samples,)`.
        bins: Number of bins.

    Raises:
        ValueError: Rows do not sum to 1, or the labels are not as many.

    Example:
        >>> found = reliability(np.array([[0.9, 0.1], [0.7, 0.3]]), [0, 1], bins=2)
        >>> found.accuracy.tolist(), round(found.expected_calibration_error, 3)
        ([nan, 0.5], 0.3)
    """
    probabilities = np.asarray(probabilities, "float64")
    labels = np.asarray(labels).reshape(-1)
    _check(probabilities, labels)
    confidence = probabilities.max(axis=-1)
    right = probabilities.argmax(axis=-1) == labels
    edges = np.linspace(0, 1, bins + 1)
    number = np.clip(np.digitize(confidence, edges[1:-1], right=True), 0, bins - 1)
    count = np.bincount(number, minlength=bins)
    # An empty bin has no mean.
    some = np.where(count > 0, count, np.nan)
    return Reliability(
        edges,
        np.bincount(number, confidence, bins) / some,
        np.bincount(number, right, bins) / some,
        count / len(labels),
    )


def plot_reliability(
    outputs: Mapping[str, Any],
    labels: Any,
    *,
    bins: int = 15,
    ax: Sequence[Any] | None = None,
) -> Any:
    r"""Draw a reliability diagram of each exit: its accuracy where it is so confident.

    Bars are accuracies; the darker they are, the more samples are in the bin. A bar
    below the diagonal is overconfident, one above it too modest. "ECE" is the expected
    calibration error.

    Args:
        outputs: Probabilities of shape `(samples, classes)`, by exit, such as
            `model.predict(x)` of a base that ends in softmax.
        labels: Classes, shape `(samples,)`.
        bins: Number of bins.
        ax: Matplotlib axes, one for each exit.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        ImportError: Matplotlib is not installed.
        ValueError: The outputs are no probabilities.

    Example:
        >>> outputs = {"final": np.array([[0.9, 0.1], [0.2, 0.8]])}
        >>> plot_reliability(outputs, [0, 1]).axes[0].get_title()
        'final\nECE 15.0 %'
    """
    panels = _panels(len(outputs)) if ax is None else list(ax)
    for panel, (name, probabilities) in zip(panels, outputs.items(), strict=True):
        _draw(panel, name, reliability(probabilities, labels, bins))
    return panels[0].figure


def _panels(count):
    columns = min(count, 4 if count != 5 else 3)
    rows = math.ceil(count / columns)
    figure = style.new_figure((style.WIDTH, rows * (style.WIDTH / columns + 0.75)))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for panel in grid.flat[count:]:
        panel.set_axis_off()
    figure.supxlabel("confidence", fontsize=10)
    figure.supylabel("accuracy", fontsize=10)
    return list(grid.flat[:count])


def _draw(ax, name, found):
    shade = style.colormap("Blues")(0.25 + 0.7 * found.share / found.share.max())
    ax.bar(
        found.edges[:-1],
        np.nan_to_num(found.accuracy),
        width=np.diff(found.edges),
        align="edge",
        color=shade,
        edgecolor="white",
        linewidth=0.5,
    )
    ax.plot([0, 1], [0, 1], "--", color=style.ORANGE, linewidth=1.5)
    error = 100 * found.expected_calibration_error
    ax.set_title(f"{name}\nECE {error:.1f} %", fontsize=10)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    ax.set_yticks([0, 0.5, 1], ["0", "½", "1"])
    style.tidy(ax)


def _check(probabilities, labels):
    if probabilities.ndim != 2 or len(probabilities) != len(labels) or not len(labels):
        raise ValueError(
            "Reliability needs one row of probabilities for each label. Received: "
            f"probabilities of shape {probabilities.shape}, {len(labels)} labels. "
            "Expected: shapes (samples, classes) and (samples,)."
        )
    off = np.abs(probabilities.sum(axis=-1) - 1).max()
    if off > 1e-2 or probabilities.min() < 0:
        raise ValueError(
            "Reliability needs probabilities. Received: rows whose sum is off 1 by up "
            f"to {off:.3g}, smallest value {probabilities.min():.3g}. Pass logits "
            "through keras.ops.softmax first."
        )
