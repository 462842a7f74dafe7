"""Engines of JAX: all weights on every device, or kernels split between two."""

from collections.abc import Sequence

import keras

from .base import Engine


class DataParallelEngine(Engine):
    """`keras.distribution.DataParallel`: JAX, every device with all weights.

    Args:
        cpu_devices: How many devices to make of the CPU where there is no other.
        devices: Their names, of `keras.distribution.list_devices()`; `None` takes all.
    """

    def __init__(self, cpu_devices: int, devices: Sequence[str] | None = None) -> None:
        _make_jax_devices(cpu_devices)
        # Every process has its share of a batch already.
        self._distribution = keras.distribution.DataParallel(
            devices=devices, auto_shard_dataset=False
        )
        self.replicas = self._distribution.num_model_replicas

    def scope(self):
        """Returns the distribution's scope."""
        return self._distribution.scope()

    def fit(self, model, batches, **options):
        """Trains a compiled model; see `Engine.fit`."""
        with self.scope():
            return super().fit(model, batches, **options)


class ModelParallelEngine(DataParallelEngine):
    """`keras.distribution.ModelParallel`: JAX, kernels split between two devices.

    Of the base's convolutions and dense layers, each device holds half of the output
    channels; with more than two devices, every pair takes a share of the batch.

    Args:
        cpu_devices: How many devices to make of the CPU where there is no other.
    """

    def __init__(self, cpu_devices: int) -> None:
        _make_jax_devices(cpu_devices)
        self.replicas = keras.distribution.get_device_count() // 2
        mesh = keras.distribution.DeviceMesh((self.replicas, 2), ("batch", "model"))
        layout = keras.distribution.LayoutMap(mesh)
        layout["^(?!exit_).*conv.*/kernel"] = (None, None, None, "model")
        layout["^(?!exit_).*dense.*/kernel"] = (None, "model")
        self._distribution = keras.distribution.ModelParallel(
            layout_map=layout, batch_dim_name="batch"
        )


def _make_jax_devices(cpu_devices):
    import jax

    if jax.config.jax_num_cpu_devices < 1:
        jax.config.update("jax_num_cpu_devices", cpu_devices)
