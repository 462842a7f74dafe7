"""Exit heads: from a tapped tensor to a feature as wide as the base's last one.

A head is a frozen, serialisable object. Called on a symbolic tap it adds plain Keras
layers, so that an exit cut off from its wrapper is a model that needs only Keras.

Public: the names in `__all__`; the other modules are internal.
"""

from keras_selfdistill.heads.base import Head, Target
from keras_selfdistill.heads.bottleneck import Bottleneck
from keras_selfdistill.heads.linear import Linear
from keras_selfdistill.heads.registry import get
from keras_selfdistill.heads.separable import Separable
from keras_selfdistill.heads.top_down import TopDown

__all__ = ["Bottleneck", "Head", "Linear", "Separable", "Target", "TopDown", "get"]
