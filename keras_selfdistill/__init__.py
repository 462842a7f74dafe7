"""Self-distillation and early exits for any Keras 3 classifier."""

from keras_selfdistill import (
    analysis,
    callbacks,
    criteria,
    heads,
    losses,
    networks,
    recipes,
    visualization,
)
from keras_selfdistill.distiller import SelfDistiller
from keras_selfdistill.early_exit import EarlyExit
from keras_selfdistill.latency import pick_exit
from keras_selfdistill.placement import suggest_taps
from keras_selfdistill.profiling import profile

__version__ = "0.1.0"
__all__ = [
    "EarlyExit",
    "SelfDistiller",
    "analysis",
    "callbacks",
    "criteria",
    "heads",
    "losses",
    "networks",
    "pick_exit",
    "profile",
    "recipes",
    "suggest_taps",
    "visualization",
]
