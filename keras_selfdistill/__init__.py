"""Self-distillation and early exits for any Keras 3 classifier."""

from keras_selfdistill import callbacks, heads, losses, networks, recipes
from keras_selfdistill.distiller import SelfDistiller
from keras_selfdistill.profiling import profile

__version__ = "0.1.0"
__all__ = [
    "SelfDistiller",
    "callbacks",
    "heads",
    "losses",
    "networks",
    "profile",
    "recipes",
]
