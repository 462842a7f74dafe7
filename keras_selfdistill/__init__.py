"""Self-distillation and early exits for any Keras 3 classifier."""

# First: the others need what older versions have not.
from keras_selfdistill import _keras_version as _keras_version  # isort: skip
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
from keras_selfdistill.comparing import compare
from keras_selfdistill.distiller import SelfDistiller
from keras_selfdistill.early_exit import EarlyExit
from keras_selfdistill.latency import pick_exit
from keras_selfdistill.layer_rules import register_multiply_adds
from keras_selfdistill.placement import suggest_taps
from keras_selfdistill.profiling import profile
from keras_selfdistill.reporting import report
from keras_selfdistill.safe_file import RefusedFileError, load_model

__version__ = "0.1.0"
__all__ = [
    "EarlyExit",
    "RefusedFileError",
    "SelfDistiller",
    "analysis",
    "callbacks",
    "compare",
    "criteria",
    "heads",
    "load_model",
    "losses",
    "networks",
    "pick_exit",
    "profile",
    "recipes",
    "register_multiply_adds",
    "report",
    "suggest_taps",
    "visualization",
]
