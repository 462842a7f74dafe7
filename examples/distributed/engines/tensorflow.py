"""Engines of TensorFlow: the devices of one machine, or several processes."""

import keras

from .base import Engine, share


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
