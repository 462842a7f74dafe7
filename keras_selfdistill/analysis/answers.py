"""What each exit gets right that others do not."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_selfdistill.evaluation.data_adapter import right_answers
from keras_selfdistill.visualization import style


@dataclasses.dataclass(frozen=True)
class Answers:
    """Which exits are right on the same samples.

    Args:
        names: Of the exits.
        accuracy: Share of the samples that each gets right.
        alone: Share that it alone gets right.
        ahead: Shape `(exits, exits)`: share that the exit of the row gets right and
            that of the column wrong.
        any_right: Share that at least one gets right: what a perfect choice of the
            exit for each sample would reach.
        all_right: Share that all get right.
    """

    names: tuple[str, ...]
    accuracy: np.ndarray
    alone: np.ndarray
    ahead: np.ndarray
    any_right: float
    all_right: float

    def plot(self, *, ax: Any = None) -> Any:
        """Draw who is right where another is wrong, as a table in colours.

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


def compare_answers(outputs: Mapping[str, Any], labels: Any) -> Answers:
    """Compare what exits answer on the same samples.

    Args:
        outputs: Shape `(samples, classes)` of each exit, such as `model.predict(x)`.
        labels: Class numbers, shape `(samples,)`, or one-hot rows.

    Raises:
        ValueError: The shapes do not fit, or there are labels that are no classes.

    Example:
        >>> outputs = {"exit_1": np.eye(2)[[0, 0, 1]], "final": np.eye(2)[[0, 1, 1]]}
        >>> found = compare_answers(outputs, [0, 1, 0])
        >>> found.accuracy.round(2).tolist(), found.alone.round(2).tolist()
        ([0.33, 0.67], [0.0, 0.33])
    """
    right = np.stack(
        [right_answers(np.asarray(each), labels) for each in outputs.values()]
    )
    only = right & (right.sum(axis=0) == 1)
    numbers = right.astype("float64")
    return Answers(
        names=tuple(outputs),
        accuracy=right.mean(axis=1),
        alone=only.mean(axis=1),
        ahead=numbers @ (1 - numbers).T / right.shape[1],
        any_right=float(right.any(axis=0).mean()),
        all_right=float(right.all(axis=0).mean()),
    )
