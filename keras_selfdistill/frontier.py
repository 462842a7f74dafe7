"""The trade between accuracy and cost, as data and as a picture."""

import dataclasses
import os
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Frontier:
    """Thresholds that no others beat, by rising cost.

    Args:
        exit_names: The exits that have thresholds.
        thresholds: Shape `(points, exits)`.
        accuracy: Shape `(points,)`, on the calibration data.
        flops_ratio: Shape `(points,)`: mean share of the base's multiply-adds.
        base_accuracy: Accuracy of the final exit alone, which costs 1.
    """

    exit_names: tuple[str, ...]
    thresholds: np.ndarray
    accuracy: np.ndarray
    flops_ratio: np.ndarray
    base_accuracy: float

    def __len__(self):
        """Return the number of points."""
        return len(self.accuracy)

    def plot(self, path: str | os.PathLike | None = None) -> Any:
        """Draw accuracy over cost, with the base beside it.

        Args:
            path: File to write, such as `"frontier.svg"`.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            ImportError: Matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "A picture needs matplotlib, which is not installed. Run "
                "`python -m pip install matplotlib`; the numbers are in `.accuracy` "
                "and `.flops_ratio`."
            ) from error
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.step(self.flops_ratio, self.accuracy, where="post", label="early exit")
        axes.plot([1], [self.base_accuracy], "o", color="black", label="base")
        axes.set_xlabel("multiply-adds, as a share of the base's")
        axes.set_ylabel("accuracy on the calibration data")
        axes.set_xlim(left=0)
        axes.legend(loc="lower right", frameon=False)
        if path is not None:
            figure.savefig(path)
        return figure
