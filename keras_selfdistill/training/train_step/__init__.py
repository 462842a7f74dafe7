"""Training and test step of the backend in use. Internal."""

import importlib

import keras

_step = importlib.import_module(f"{__name__}.{keras.backend.backend()}")
train_step = _step.train_step
test_step = _step.test_step

__all__ = ["test_step", "train_step"]
