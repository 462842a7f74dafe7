r"""Trains a self-distilled network on several devices or machines.

    python examples/train_distributed.py --engine=mirrored

On one machine, this is all. With GPUs, `--engine=mirrored`, `data_parallel` and
`model_parallel` take all of them; without, they make `--devices` out of the CPU, which
is no faster and good for trying. `--engine=multi_worker` and `ddp` start `--devices`
processes; when one fails, the others are stopped, and the program fails.

On several machines, start it on each with all the same flags and a shared
`--output_dir`:

    TF_CONFIG='{"cluster": {"worker": ["host1:2222", "host2:2222"]},
                "task": {"type": "worker", "index": 0}}' \
        python examples/train_distributed.py --engine=multi_worker

    torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d \
        --rdzv-endpoint=host1:29400 examples/train_distributed.py --engine=ddp

where `index` counts the machines. A worker that misses another one for `--timeout`
seconds fails.

`--batch_size` is that of all devices together. Writes to `--output_dir`: the weights
after the last finished epoch, `history.csv`, and in the end `model.keras`. The same
command again goes on after the last finished epoch, with any number of devices.

Each device normalises its own share of a batch, but on JAX, where it is the whole batch
that counts. To have the same on TensorFlow, set `synchronized` of all
`BatchNormalization` layers of the wrapper.
"""

import os
import sys

from absl import app, flags

from distributed import local_workers
from shared import image_flags, script

FLAGS = flags.FLAGS

# The backend of each engine. Of those with several processes: what tells a process that
# it is one of them, and how to tell it.
BACKENDS = {
    "mirrored": "tensorflow",
    "multi_worker": "tensorflow",
    "data_parallel": "jax",
    "model_parallel": "jax",
    "ddp": "torch",
}
CLUSTERS = {
    "multi_worker": ("TF_CONFIG", local_workers.tensorflow_cluster),
    "ddp": ("RANK", local_workers.torch_cluster),
}


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_enum(
        "engine",
        None,
        list(BACKENDS),
        "tf.distribute.MirroredStrategy and MultiWorkerMirroredStrategy, "
        "keras.distribution.DataParallel and ModelParallel on JAX, or PyTorch's "
        "DistributedDataParallel.",
        required=True,
    )
    flags.DEFINE_integer(
        "devices",
        2,
        "Processes to start, for multi_worker and ddp; else devices to make of the CPU "
        "where there is no GPU.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "timeout",
        50,
        "Seconds that a process waits for another one, in multi_worker and ddp. The "
        "first one writes a checkpoint meanwhile.",
        lower_bound=1,
    )
    image_flags.define()
    flags.DEFINE_string(
        "model",
        "resnet18",
        "Network for --data=cifar100, of keras_selfdistill.networks; digits have the "
        "quickstart's.",
    )
    flags.DEFINE_string("recipe", "byot", "How the exits learn.")
    flags.DEFINE_integer("taps", 2, "Exits before the final one.", lower_bound=1)
    flags.DEFINE_integer("epochs", 30, "Passes over the training images.", 1)
    flags.DEFINE_integer("batch_size", 64, "Images a step, of all devices.", 1)
    flags.DEFINE_float("learning_rate", 0.05, "Rate at the start; it falls to 0.", 0.0)
    flags.DEFINE_integer("seed", 0, "Seed of the split, the weights and the order.", 0)
    flags.DEFINE_string("output_dir", "runs/distributed", "Folder of this run's files.")


def main(argv: list[str]) -> None:
    """Trains, or starts the processes that do."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}. See --help.")
    os.environ["KERAS_BACKEND"] = BACKENDS[FLAGS.engine]
    if FLAGS.engine in CLUSTERS:
        variable, environments = CLUSTERS[FLAGS.engine]
        if variable not in os.environ:
            command = [sys.executable, *sys.argv]
            status = local_workers.run(command, environments(FLAGS.devices))
            sys.exit(1 if status else 0)
    # Only now, because Keras chooses its backend when it is imported.
    from distributed import worker

    worker.train(FLAGS)


if __name__ == "__main__":
    define_flags()
    script.run(main)
