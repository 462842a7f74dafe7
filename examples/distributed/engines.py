"""Engines that train one wrapper on several devices, each with the same few calls.

    engine = MirroredEngine(cpu_devices=2)
    with engine.scope():
        model = ...  # built and compiled, or loaded
    engine.fit(model, batches, steps_per_epoch=..., epochs=...)

Every process is given its own equal share of every global batch, and each device of it
an equal share of that. The losses that `fit` returns are means over global batches, as
on one device.
"""

import contextlib
import datetime
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

Batch = tuple[np.ndarray, ...]  # Images, labels and perhaps sample weights.


class Engine:
    """One device; the engines below are of the same form.

    Attributes:
        replicas: How many equal shares a global batch is cut into, one for each device.
        processes: Number of processes.
        process: Number of this process, from 0; its share is the one of this number.
        local_process: Number of this process among those of its machine, from 0.
    """

    replicas = 1
    processes = 1
    process = 0
    local_process = 0

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the files."""
        return self.process == 0

    def wait(self) -> None:
        """Waits until all processes are here, and what they wrote is there."""

    @contextlib.contextmanager
    def in_turns(self) -> Iterator[None]:
        """Lets one process of each machine download a file before the others read it.

        The first process of all comes before those of other machines, which may have
        their home folders on the same disk.
        """
        turn = 0 if self.is_chief else 1 if self.local_process == 0 else 2
        for _ in range(turn):
            self.wait()
        yield
        for _ in range(turn, 2):
            self.wait()

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the context in which models are built, loaded and saved."""
        return contextlib.nullcontext()

    def fit(
        self,
        model: keras.Model,
        batches: Iterable[Batch],
        *,
        steps_per_epoch: int,
        epochs: int,
        initial_epoch: int = 0,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        verbose: int = 0,
        validation_data: Any = None,
    ) -> keras.callbacks.History:
        """Trains a compiled model.

        Args:
            model: Made in `scope()`.
            batches: This process' shares of the global batches of one epoch after the
                other, from the first one on whenever it is iterated over.
            steps_per_epoch: Batches in an epoch.
            epochs: Number of the last epoch.
            initial_epoch: Number of epochs that the model has behind it.
            callbacks: Keras callbacks, as for `keras.Model.fit`.
            verbose: Verbosity, as for `keras.Model.fit`.
            validation_data: Data as for `keras.Model.fit`, of which each process has an
                equal share; not with several workers of TensorFlow.
        """
        return model.fit(
            self._data(batches),
            steps_per_epoch=steps_per_epoch,
            epochs=epochs,
            initial_epoch=initial_epoch,
            callbacks=list(callbacks),
            verbose=verbose,
            validation_data=validation_data,
            shuffle=False,  # which Keras cannot do to such data
        )

    def _data(self, batches):
        """Returns the batches in a form that Keras' `fit` takes."""
        return (batch for batch in batches)


def share(batch: Batch, index: int, count: int) -> Batch:
    """Returns one of `count` equal parts of a batch."""
    return tuple(np.split(array, count)[index] for array in batch)


class Shares(NamedTuple):
    """Of global batches, which every process can make, the shares of one process."""

    batches: Iterable[Batch]
    process: int
    processes: int

    def __iter__(self) -> Iterator[Batch]:
        """Begins with the first batch."""
        return (share(each, self.process, self.processes) for each in self.batches)


class MirroredEngine(Engine):
    """`tf.distribute.MirroredStrategy`: the GPUs of one machine.

    Args:
        cpu_devices: How many devices to make of the CPU where there is no GPU.
    """

    def __init__(self, cpu_devices: int) -> None:
        import tensorflow as tf

        devices = None
        if not tf.config.list_physical_devices("GPU"):
            (cpu,) = tf.config.list_physical_devices("CPU")
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * cpu_devices
            )
            devices = [f"CPU:{index}" for index in range(cpu_devices)]
        self._strategy = tf.distribute.MirroredStrategy(devices)
        self.replicas = self._strategy.num_replicas_in_sync

    def scope(self):
        """Returns the strategy's scope."""
        return self._strategy.scope()

    def _data(self, batches):
        # Keras reads a batch to build the model by, and begins anew: a generator would
        # have lost that batch.
        import tensorflow as tf

        signature = tuple(
            tf.TensorSpec(array.shape, array.dtype) for array in next(iter(batches))
        )
        return tf.data.Dataset.from_generator(
            lambda: iter(batches), output_signature=signature
        )


class MultiWorkerEngine(Engine):
    """`tf.distribute.MultiWorkerMirroredStrategy`: several processes or machines.

    `TF_CONFIG` says where the workers are and which one this process is.

    Keras 3 cannot `fit` under this strategy (keras-team/keras issue 20585): it hands a
    whole batch to `Strategy.reduce`, which takes one tensor, and takes the mean of the
    scalar logs over an axis that they do not have. So this is `fit` with a loop around
    the wrapper's own `train_step`.
    """

    def __init__(self, timeout: int) -> None:
        import tensorflow as tf

        # Workers also send heartbeats, and are missed within about ten seconds.
        self._strategy = tf.distribute.MultiWorkerMirroredStrategy(
            communication_options=tf.distribute.experimental.CommunicationOptions(
                timeout_seconds=timeout
            )
        )
        self.replicas = self._strategy.num_replicas_in_sync
        resolver = self._strategy.cluster_resolver
        jobs = resolver.cluster_spec().as_dict()
        # As the strategy numbers its replicas.
        tasks = [
            (job, index)
            for job in ("chief", "worker")
            for index in range(len(jobs.get(job, ())))
        ]
        self.processes = len(tasks)
        self.process = tasks.index((resolver.task_type, resolver.task_id))

    def scope(self):
        """Returns the strategy's scope."""
        return self._strategy.scope()

    def fit(
        self,
        model,
        batches,
        *,
        steps_per_epoch,
        epochs,
        initial_epoch=0,
        callbacks=(),
        verbose=0,
    ):
        """Trains a compiled model; see `Engine.fit`."""
        import tensorflow as tf

        @tf.function
        def train_step(batch):
            self._strategy.run(model.train_step, args=(batch,))

        with self._strategy.scope():
            model.optimizer.build(model.trainable_variables)
        calls = keras.callbacks.CallbackList(
            list(callbacks),
            add_history=True,
            add_progbar=verbose != 0,
            verbose=verbose,
            model=model,
            epochs=epochs,
            steps=steps_per_epoch,
        )
        model.stop_training = False
        batches = iter(batches)
        calls.on_train_begin()
        for epoch in range(initial_epoch, epochs):
            model.reset_metrics()
            calls.on_epoch_begin(epoch)
            for index in range(steps_per_epoch):
                calls.on_train_batch_begin(index)
                train_step(self._distributed(next(batches)))
                calls.on_train_batch_end(index)
            # Reading a metric sums it over all workers.
            logs = model.get_metrics_result()
            calls.on_epoch_end(epoch, {key: float(logs[key]) for key in logs})
            if model.stop_training:
                break
        calls.on_train_end()
        return model.history

    def _distributed(self, batch):
        """Returns a batch of which every replica of this process holds its share."""
        replicas = self.replicas // self.processes
        return tuple(
            self._strategy.experimental_distribute_values_from_function(
                lambda replica, array=array: share(
                    (array,), replica.replica_id_in_sync_group % replicas, replicas
                )[0]
            )
            for array in batch
        )


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


class AverageGradients(keras.callbacks.Callback):
    """Trains one model in all processes of `torch.distributed`, by Keras' own `fit`.

    PyTorch's `DistributedDataParallel` averages every gradient over the processes
    during the backward pass, so that all take the same step, from the first process'
    weights on. Give `fit` an equal share of every global batch in each process, and
    `steps_per_epoch`, and equal shares of the validation data. The logs of an epoch are
    those of all processes together, and a wrapper's step that is not finite in one is
    skipped by all. Each process normalises its own share of a batch; at the end of an
    epoch all have the moving statistics of the first process, before they validate.
    Layers such as `Dropout` draw in each process other numbers. A checkpoint of the
    first process has all of them, as they follow from its seeds. Give this before
    callbacks that read logs or write the model.
    """

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Copies the first process' weights and hooks into the backward pass."""
        import torch

        _broadcast(self.model.weights)
        # Read by a wrapper alone: models of Keras check averaged gradients, if at all.
        self.model.process_group = torch.distributed.group.WORLD
        weights = torch.nn.Identity()
        weights.trained = torch.nn.ParameterList(
            variable.value for variable in self.model.trainable_variables
        )
        self._averaged = torch.nn.parallel.DistributedDataParallel(weights)
        # After its first backward pass it packs gradients anew, in the order in which
        # they came, and more than two processes then add them in another order. This
        # empty pass is the first one of a training and of one that goes on alike.
        self._averaged(None)
        sum((0 * value).sum() for value in weights.trained).backward()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Remembers that seeds may be those of a checkpoint."""
        self._epoch_begins = True

    def on_train_batch_begin(
        self, batch: int, logs: dict[str, float] | None = None
    ) -> None:
        """Announces a backward pass, over which the gradients are averaged."""
        if self._epoch_begins:
            # Not before: other callbacks restore a checkpoint as the epoch begins.
            _draw_apart(self.model)
            self._epoch_begins = False
        # The network itself runs in the wrapper's train_step. All that the call of a
        # DistributedDataParallel does for the gradients is to begin a new average.
        self._averaged(None)

    def on_train_batch_end(
        self, batch: int, logs: dict[str, float] | None = None
    ) -> None:
        """Averages what the metrics counted, of which Keras then logs the epoch."""
        if batch + 1 == self.params["steps"]:
            for variable in self.model.metrics_variables:
                _average(variable.value.detach())
            _broadcast(self.model.non_trainable_weights)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Averages the logs of the validation, which callbacks read next."""
        import torch

        names = [name for name in logs or () if name.startswith("val_")]
        # All processes in one tensor; gloo and nccl have their own devices.
        values = torch.tensor(
            [logs[name] for name in names], dtype=torch.float64, device=_device()
        )
        _average(values)
        logs.update(zip(names, values.tolist(), strict=True))

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Lets go of the gradients and of the other processes."""
        del self._averaged
        self.model.process_group = None


def _broadcast(variables):
    """Copies the first process' values."""
    import torch

    for variable in variables:
        torch.distributed.broadcast(variable.value.detach(), src=0)


def _draw_apart(model):
    """Sets the seeds of a process, which follow from those of the first one."""
    import torch

    weights = {id(variable) for variable in model.weights}
    seeds = [each for each in model.variables if id(each) not in weights]
    _broadcast(seeds)
    rank = torch.distributed.get_rank()
    if rank == 0:
        return
    for variable in seeds:
        seed, count = keras.ops.convert_to_numpy(variable).astype("uint32")
        (seed,) = np.random.SeedSequence([seed, rank]).generate_state(1)
        variable.assign(np.array([seed, count]).astype("int32"))


def _average(value):
    """Replaces a tensor by its mean over the processes."""
    import torch

    torch.distributed.all_reduce(value)
    value /= torch.distributed.get_world_size()


def _device():
    """Returns where the tensors are that the processes exchange."""
    import torch

    return "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"


class DistributedDataParallelEngine(Engine):
    """PyTorch's `DistributedDataParallel`: several processes or machines.

    The variables that `torchrun` sets say where the processes are and which this is.
    """

    def __init__(self, timeout: int) -> None:
        import torch

        self.local_process = int(os.environ.get("LOCAL_RANK", 0))
        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.set_device(self.local_process)
        torch.distributed.init_process_group(
            "nccl" if gpu else "gloo", timeout=datetime.timedelta(seconds=timeout)
        )
        self.process = torch.distributed.get_rank()
        self.replicas = self.processes = torch.distributed.get_world_size()

    def wait(self):
        """Waits until all processes are here."""
        import torch

        torch.distributed.barrier()

    def fit(self, model, batches, *, callbacks=(), **options):
        """Trains a compiled model; see `Engine.fit`."""
        callbacks = [AverageGradients(), *callbacks]
        return super().fit(model, batches, callbacks=callbacks, **options)
