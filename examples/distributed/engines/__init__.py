"""Engines that train one wrapper on several devices, each with the same few calls.

    engine = MirroredEngine(cpu_devices=2)
    with engine.scope():
        model = ...  # built and compiled, or loaded
    engine.fit(model, batches, steps_per_epoch=..., epochs=...)

Every process is given its own equal share of every global batch, and each device of it
an equal share of that. The losses that `fit` returns are means over global batches, as
on one device. The package imports nothing of its neighbours, so it can be copied.
"""

from .base import Batch, Engine, Shares, share
from .jax import DataParallelEngine, ModelParallelEngine
from .tensorflow import MirroredEngine, MultiWorkerEngine
from .torch import AverageGradients, DistributedDataParallelEngine

__all__ = [
    "AverageGradients",
    "Batch",
    "DataParallelEngine",
    "DistributedDataParallelEngine",
    "Engine",
    "MirroredEngine",
    "ModelParallelEngine",
    "MultiWorkerEngine",
    "Shares",
    "share",
]
