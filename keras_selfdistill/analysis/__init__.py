"""The papers' analyses: what self-distillation changes inside a network.

Each function returns an object with the measured numbers and a `plot` method.

Public: the names in `__all__`; the other modules are internal.
"""

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
from keras_selfdistill.analysis.predictions import (
    PredictionComparison,
    compare_predictions,
)
from keras_selfdistill.analysis.weight_noise import FlatMinima, flat_minima

__all__ = [
    "Features",
    "FlatMinima",
    "Gradients",
    "PredictionComparison",
    "compare_predictions",
    "discriminating_features",
    "exit_features",
    "flat_minima",
    "gradients_by_depth",
    "logged_gradients",
]
