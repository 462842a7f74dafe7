"""Callbacks for training a wrapper.

Public: the names in `__all__`; the other modules are internal.
"""

from keras_selfdistill.callbacks.epoch_table import EpochTable
from keras_selfdistill.callbacks.label_warm_up import LabelWarmUp
from keras_selfdistill.callbacks.resume import Resume
from keras_selfdistill.callbacks.tensorboard import TensorBoard
from keras_selfdistill.callbacks.trackers import MLflowLogger, WandbLogger

__all__ = [
    "EpochTable",
    "LabelWarmUp",
    "MLflowLogger",
    "Resume",
    "TensorBoard",
    "WandbLogger",
]
