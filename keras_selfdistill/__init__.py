"""Self-distillation and early exits for any Keras 3 classifier."""

# First: the other modules need names that older versions of Keras lack.
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
from keras_selfdistill.costs.layer_rules import register_macs
from keras_selfdistill.early_exit.early_exit import EarlyExit
from keras_selfdistill.exits.suggestion import suggest_taps
from keras_selfdistill.files.archive import RefusedFileError, load_model
from keras_selfdistill.reporting.compare import compare
from keras_selfdistill.reporting.latency import pick_exit
from keras_selfdistill.reporting.profile import profile
from keras_selfdistill.reporting.report import report
from keras_selfdistill.training.distiller import SelfDistiller

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
    "register_macs",
    "report",
    "suggest_taps",
    "visualization",
]
