"""Plots with Matplotlib, which the extra `plot` installs.

Each function draws on the given axes or in a new figure, and returns the figure:
`plot_history(history).savefig("history.svg")`. No function uses pyplot, so there is no
figure to close and no display is needed; notebooks show the returned figure.

Public: the names in `__all__`; the other modules are internal.
"""

from keras_selfdistill.visualization.accuracy import (
    plot_accuracy_vs_compute,
    plot_exit_shares,
)
from keras_selfdistill.visualization.history import plot_history
from keras_selfdistill.visualization.model import plot_model
from keras_selfdistill.visualization.reliability import plot_reliability

__all__ = [
    "plot_accuracy_vs_compute",
    "plot_exit_shares",
    "plot_history",
    "plot_model",
    "plot_reliability",
]
