"""Reliability diagrams: accuracy by confidence."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from keras_selfdistill.evaluation.data_adapter import correct_predictions
from keras_selfdistill.evaluation.reliability import BINS, Reliability, binned
from keras_selfdistill.utils.type_aliases import Axes, Figure, Labels, Tensor
from keras_selfdistill.visualization import style


def plot_reliability(
    outputs: Mapping[str, Tensor],
    labels: Labels,
    *,
    bins: int = BINS,
    ax: Sequence[Axes] | None = None,
) -> Figure:
    r"""Draw a reliability diagram of each exit: its accuracy by confidence.

    The height of a bar is the accuracy in a bin; the darker the bar, the more samples
    are in the bin. Where a bar ends below the diagonal the exit is overconfident, above
    it underconfident. "ECE" is the expected calibration error.

    Args:
        outputs: Mapping of exit names to probabilities of shape `(samples, classes)`,
            such as `model.predict(x)` of a base that ends in softmax.
        labels: Class indices of shape `(samples,)`, or one-hot labels of shape
            `(samples, classes)`.
        bins: Number of bins.
        ax: Matplotlib axes, one for each exit.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        ImportError: Matplotlib is not installed.
        ValueError: The outputs are not probabilities.

    Example:
        >>> outputs = {"final": np.array([[0.9, 0.1], [0.2, 0.8]])}
        >>> plot_reliability(outputs, [0, 1]).axes[0].get_title()
        'final\nECE 15.0 %'
    """
    count = len(outputs)
    panels = _panels(count) if ax is None else style.several_axes(ax, count)
    for panel, (name, probabilities) in zip(panels, outputs.items(), strict=True):
        _draw(panel, name, _reliability(probabilities, labels, bins))
    return panels[0].figure


def _panels(count: int) -> list[Axes]:
    columns = min(count, 4 if count != 5 else 3)
    rows = math.ceil(count / columns)
    figure = style.new_figure((style.WIDTH, rows * (style.WIDTH / columns + 0.75)))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for panel in grid.flat[count:]:
        panel.set_axis_off()
    figure.supxlabel("confidence", fontsize=10)
    figure.supylabel("accuracy", fontsize=10)
    return list(grid.flat[:count])


def _reliability(probabilities: Tensor, labels: Labels, bins: int) -> Reliability:
    probabilities = np.asarray(probabilities, "float64")
    right = correct_predictions(probabilities, labels)
    _check(probabilities)
    return binned(probabilities.max(axis=-1), right, bins)


def _draw(ax: Axes, name: str, found: Reliability) -> None:
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


def _check(probabilities: np.ndarray) -> None:
    off = np.abs(probabilities.sum(axis=-1) - 1).max()
    if not (off <= 1e-2 and probabilities.min() >= 0):  # False for NaN, too.
        raise ValueError(
            "Reliability needs probabilities. Received: outputs whose sums differ from "
            f"1 by up to {off:.3g}, smallest value {probabilities.min():.3g}. Apply "
            "keras.ops.softmax to logits first."
        )
