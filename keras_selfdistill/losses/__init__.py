"""Distillation losses: pure per-sample functions, and Keras losses around them.

Public: the names in `__all__`; the other modules are internal.
"""

from keras_selfdistill.losses.hint import (
    HintLoss,
    HintNormLoss,
    hint_distance,
    hint_norm,
)
from keras_selfdistill.losses.regression import OutputDistance, output_distance
from keras_selfdistill.losses.soft_target import (
    BinarySoftTargetLoss,
    SoftTargetCrossentropy,
    SoftTargetLoss,
    binary_soft_target_divergence,
    soft_target_crossentropy,
    soft_target_divergence,
)

__all__ = [
    "BinarySoftTargetLoss",
    "HintLoss",
    "HintNormLoss",
    "OutputDistance",
    "SoftTargetCrossentropy",
    "SoftTargetLoss",
    "binary_soft_target_divergence",
    "hint_distance",
    "hint_norm",
    "output_distance",
    "soft_target_crossentropy",
    "soft_target_divergence",
]
