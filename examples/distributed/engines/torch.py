"""The engine of PyTorch: several processes that average gradients."""

import datetime
import os

import keras
import numpy as np

from .base import Engine


class AverageGradients(keras.callbacks.Callback):
    """Trains one model in all processes of `torch.distributed`, by Keras' own `fit`.

    PyTorch's `DistributedDataParallel` averages every gradient over the processes
    during the backward pass, so that all take the same step, from the first process'
    weights on. Give `fit` an equal share of every global batch in each process, and
    `steps_per_epoch`, and equal shares of the validation data. The logs of an epoch are
    those of all processes together, and a wrapper's step that is not finite in one is
    skipped by all. Each process normalises its own share of a batch; at the end of an
    epoch all have the moving statistics of the first process, before they validate.
    Layers such as `Dropout` draw other numbers in each process; all follow from the
    seeds of the first process, so its checkpoint is enough to go on. Every trainable
    weight must take part in the loss: freeze others. Give this before callbacks that
    read logs or write the model.
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
        import torch

        if batch + 1 == self.params["steps"]:
            for variable in self.model.metrics_variables:
                value = variable.value.detach()
                if value.is_floating_point():
                    _average(value)
                else:  # Counts, such as those of a confusion matrix.
                    torch.distributed.all_reduce(value)
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
