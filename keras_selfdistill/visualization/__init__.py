"""Pictures with matplotlib, which the extra `plot` installs.

Each function draws on the axes that it is given, or in a figure of its own, and returns
the figure: `plot_history(history).savefig("history.svg")`. None touches pyplot, so that
nothing has to be closed and no screen is needed; notebooks show what is returned.
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
