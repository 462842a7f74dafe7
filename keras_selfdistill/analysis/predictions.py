"""Which samples each exit classifies correctly and other exits do not."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from keras_selfdistill.evaluation.data_adapter import correct_predictions
from keras_selfdistill.utils.table import elided
from keras_selfdistill.utils.type_aliases import Axes, Figure, Labels, Tensor
from keras_selfdistill.visualization import style


@dataclasses.dataclass(frozen=True, repr=False)
class PredictionComparison:
    """How the correct predictions of several exits overlap.

    Args:
        names: Names of the exits.
        accuracy: Fraction of samples that each exit predicts correctly, shape
            `(exits,)`.
        alone: Fraction of samples that only this exit predicts correctly, shape
            `(exits,)`.
        ahead: Fraction of samples that the exit of the row predicts correctly and
            the exit of the column does not, shape `(exits, exits)`.
        any_right: Fraction of samples that at least one exit predicts correctly: the
            accuracy of a perfect choice of the exit for each sample.
        all_right: Fraction of samples that all exits predict correctly.
    """

    names: tuple[str, ...]
    accuracy: np.ndarray
    alone: np.ndarray
    ahead: np.ndarray
    any_right: float
    all_right: float

    def __repr__(self) -> str:
        """Return the names of the exits."""
        return f"<PredictionComparison of {elided(self.names)}>"

    def plot(self, *, ax: Axes = None) -> Figure:
        """Draw `ahead` as a heat map.

        Args:
            ax: Matplotlib axes to draw on.

        Returns:
            The `matplotlib.figure.Figure`.
        """
        count = len(self.names)
        ax = style.axes_of(ax, size=(style.WIDTH, 1.6 + 0.62 * count))
        shown = np.ma.masked_array(100 * self.ahead, np.eye(count, dtype=bool))
        ax.imshow(shown, cmap="cividis", aspect="auto", vmin=0)
        dark = 0.6 * shown.max() if count > 1 else 0.0
        for (row, column), value in np.ndenumerate(self.ahead):
            if row != column:
                color = "white" if 100 * value < dark else style.INK
                text = f"{value:.1%}"
                ax.text(column, row, text, ha="center", va="center", color=color)
        ax.set_xticks(range(count), self.names)
        rows = zip(self.names, self.accuracy, self.alone, strict=True)
        labels = [f"{n}\n{right:.1%}, alone {own:.1%}" for n, right, own in rows]
        ax.set_yticks(range(count), labels)
        ax.set_xlabel("wrong")
        ax.set_ylabel("right")
        ax.xaxis.set_label_position("top")
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        return ax.figure


def compare_predictions(
    outputs: Mapping[str, Tensor], labels: Labels
) -> PredictionComparison:
    """Compare the predictions of several exits on the same samples.

    Args:
        outputs: Mapping of exit names to outputs of shape `(samples, classes)`, such
            as `model.predict(x)`.
        labels: Class indices of shape `(samples,)`, or one-hot labels of shape
            `(samples, classes)`.

    Raises:
        ValueError: The shapes do not match, or a label is not a class of the outputs.

    Example:
        >>> outputs = {"exit_1": np.eye(2)[[0, 0, 1]], "final": np.eye(2)[[0, 1, 1]]}
        >>> found = compare_predictions(outputs, [0, 1, 0])
        >>> found.accuracy.round(2).tolist(), found.alone.round(2).tolist()
        ([0.33, 0.67], [0.0, 0.33])
    """
    right = np.stack(
        [correct_predictions(np.asarray(each), labels) for each in outputs.values()]
    )
    only = right & (right.sum(axis=0) == 1)
    numbers = right.astype("float64")
    return PredictionComparison(
        names=tuple(outputs),
        accuracy=right.mean(axis=1),
        alone=only.mean(axis=1),
        ahead=numbers @ (1 - numbers).T / right.shape[1],
        any_right=float(right.any(axis=0).mean()),
        all_right=float(right.all(axis=0).mean()),
    )
