"""The papers' analyses: what self-distillation changes inside a network.

Each returns its numbers, with a `plot` of them.
"""

from keras_selfdistill.analysis.answers import Answers, compare_answers
from keras_selfdistill.analysis.features import (
    Features,
    discriminating_features,
    exit_features,
)
from keras_selfdistill.analysis.gradients import (
    Gradients,
    gradients_by_depth,
    logged_gradients,
)
from keras_selfdistill.analysis.weight_noise import FlatMinima, flat_minima

__all__ = [
    "Answers",
    "Features",
    "FlatMinima",
    "Gradients",
    "compare_answers",
    "discriminating_features",
    "exit_features",
    "flat_minima",
    "gradients_by_depth",
    "logged_gradients",
]
