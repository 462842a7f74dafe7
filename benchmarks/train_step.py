r"""Time the wrapped training step against the plain base's, interleaved in one process.

    python benchmarks/train_step.py --backend=jax

prints how long wrapping took, the peak memory of each, which a process of its own
measures, and last the ratio of the two (median over rounds) behind the ratio of
multiply-adds. With `--tiny` the network is so small that the ratio is that of the fixed
price of a step: its operations, not their arithmetic. With `--peer` last is the ratio
to a step of `peers/pytorch_byot.py`, the same network and exits in plain PyTorch.
"""

import os
import resource
import statistics
import subprocess
import sys
import time

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_enum(
    "backend", "tensorflow", ["tensorflow", "jax", "torch"], "Keras backend."
)
flags.DEFINE_string(
    "model", "resnet18", "Name in keras_selfdistill.networks or keras.applications."
)
flags.DEFINE_float(
    "width_multiplier", 1.0, "Scales the widths of keras_selfdistill.networks."
)
flags.DEFINE_integer("image_size", 32, "Height and width of the images, in pixels.")
flags.DEFINE_integer("batch_size", 64, "Images a step.")
flags.DEFINE_string("taps", "3", "Number of exits, or layer names with commas.")
flags.DEFINE_string("recipe", "byot", "Recipe of the wrapper.")
flags.DEFINE_integer("rounds", 9, "Timed rounds; each times both models.", 7)
flags.DEFINE_integer("steps", 2, "Training steps a round and model.", 1)
flags.DEFINE_bool("memory", True, "Also measure peak memory.")
flags.DEFINE_bool("tiny", False, "Measure the fixed price of a step on a tiny network.")
flags.DEFINE_bool("peer", False, "Also time BYOT in plain PyTorch, of ResNet-18.")
flags.DEFINE_enum(
    "jit_compile", "auto", ["auto", "true", "false"], "Whether to compile the steps."
)
flags.DEFINE_enum(
    "memory_of", "", ["", "plain", "wrapped"], "Only print this model's peak memory."
)

# Flags of a tiny network, unless they are given.
TINY = {
    "width_multiplier": 1 / 16,
    "image_size": 8,
    "batch_size": 8,
    "steps": 30,
    "memory": False,
}


def build(kind):
    """Return the compiled plain base or the compiled wrapper around it."""
    import keras

    import keras_selfdistill as ksd

    shape = (FLAGS.image_size, FLAGS.image_size, 3)
    if FLAGS.model in ksd.networks.NETWORKS:
        model = ksd.networks.NETWORKS[FLAGS.model](
            input_shape=shape, width_multiplier=FLAGS.width_multiplier
        )
    else:
        make = getattr(keras.applications, FLAGS.model)
        model = make(weights=None, input_shape=shape, classes=100)
    if kind == "wrapped":
        taps = int(FLAGS.taps) if FLAGS.taps.isdigit() else FLAGS.taps.split(",")
        start = time.perf_counter()
        model = ksd.SelfDistiller(model, taps=taps, recipe=FLAGS.recipe)
        print(f"wrapped in {time.perf_counter() - start:.2f} s")
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile={"auto": "auto", "true": True, "false": False}[FLAGS.jit_compile],
    )
    return model


def batches():
    """Return images and labels for one round."""
    import numpy as np

    random = np.random.default_rng(0)
    count = FLAGS.batch_size * FLAGS.steps
    shape = (count, FLAGS.image_size, FLAGS.image_size, 3)
    return random.random(shape, "float32"), random.integers(0, 100, count)


def seconds_per_step(model, images, labels):
    """Return the median time of a step in one short `fit`.

    The clock stops with the last batch. On TensorFlow an epoch's end waits for the
    thread that tunes tf.data, which sleeps for 10, 20, 40, … ms: up to as long again
    as the epoch took, for any model.
    """
    import keras

    times = []

    def read_clock(batch, logs):
        # Backends that run ahead have finished a step when its loss can be read.
        _ = float((logs or {}).get("loss", 0.0))
        times.append(time.perf_counter())

    clock = keras.callbacks.LambdaCallback(
        on_train_batch_begin=read_clock, on_train_batch_end=read_clock
    )
    model.fit(
        images,
        labels,
        batch_size=FLAGS.batch_size,
        verbose=0,
        shuffle=False,
        callbacks=[clock],
    )
    # A step ends where the next begins: a pair of times for each.
    ends = [*times[2::2], times[-1]]
    return statistics.median(
        end - start for start, end in zip(times[::2], ends, strict=True)
    )


def peer_seconds_per_step(trainer, images, labels):
    """Return the median time of a step of the network in plain PyTorch."""
    images, labels = trainer.place(images, labels)
    times = []
    for first in range(0, len(labels), FLAGS.batch_size):
        rows = slice(first, first + FLAGS.batch_size)
        start = time.perf_counter()
        trainer.step(images[rows], labels[rows])  # Reads its loss: it has ended.
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_memory(kind):
    """Return the peak memory in MiB of a process that trains one of the models."""
    arguments = [argument for argument in sys.argv if "--memory" not in argument]
    command = [sys.executable, *arguments, f"--memory_of={kind}"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.split()[-1])


def print_peak_memory():
    """Train for one round and print this process's peak memory in MiB."""
    model, (images, labels) = build(FLAGS.memory_of), batches()
    seconds_per_step(model, images, labels)
    if FLAGS.backend == "torch":
        import torch

        if torch.cuda.is_available():
            print(torch.cuda.max_memory_allocated() / 2**20)
            return
    if FLAGS.backend == "jax":
        import jax

        statistics_of_device = jax.devices()[0].memory_stats()
        if statistics_of_device:
            print(statistics_of_device["peak_bytes_in_use"] / 2**20)
            return
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def contenders():
    """Return what is timed, by name: how a step is timed, and the model."""
    models = {kind: (seconds_per_step, build(kind)) for kind in ("plain", "wrapped")}
    if FLAGS.peer:
        from peers import pytorch_byot

        trainer = pytorch_byot.Trainer(width_multiplier=FLAGS.width_multiplier)
        models["peer"] = peer_seconds_per_step, trainer
    return models


def measure(timed):
    """Return the seconds of a step by name, one for each round, interleaved."""
    images, labels = batches()
    times = {kind: [] for kind in timed}
    for round_ in range(FLAGS.rounds + 1):
        for kind, (seconds, model) in timed.items():
            found = seconds(model, images, labels)
            if round_:  # The first one compiles.
                times[kind].append(found)
    return times


def ratios(times, divisor):
    """Return wrapped over another one's time: all rounds, and the fastest."""
    pairs = zip(times["wrapped"], times[divisor], strict=True)
    found = [wrapped / other for wrapped, other in pairs]
    return (
        f"fastest rounds {min(times['wrapped']) / min(times[divisor]):.3f}, all from "
        f"{min(found):.3f} to {max(found):.3f}, median of {len(found)}: "
        f"{statistics.median(found):.3f}"
    )


def check_flags(arguments):
    """Refuse what cannot be measured, and set the flags of a tiny network."""
    if arguments:
        raise app.UsageError(f"Unexpected arguments: {arguments}. See --help.")
    for name, value in TINY.items():
        if FLAGS.tiny and FLAGS[name].using_default_value:
            FLAGS[name].value = value
    asked = FLAGS.model, FLAGS.taps, FLAGS.recipe, FLAGS.image_size
    if FLAGS.peer and asked != ("resnet18", "3", "byot", 32):
        raise app.UsageError(
            f"--peer is ResNet-18 with three exits of BYOT. Received: {asked}; "
            "expected --model, --taps, --recipe and --image_size as they are by "
            "default, without --tiny."
        )


def main(argv):
    """Run the benchmark."""
    check_flags(argv[1:])
    os.environ["KERAS_BACKEND"] = FLAGS.backend
    if FLAGS.memory_of:
        print_peak_memory()
        return
    # First, because Linux counts the peak of a process from that of its parent on.
    memory = {}
    if FLAGS.memory:
        memory = {kind: peak_memory(kind) for kind in ("plain", "wrapped")}
    import keras

    from keras_selfdistill.costs.counting import model_macs

    timed = contenders()
    times = measure(timed)
    plain, wrapped = timed["plain"][1], timed["wrapped"][1]
    print(
        f"{FLAGS.model}, batch {FLAGS.batch_size}, taps {wrapped.taps}, "
        f"{FLAGS.recipe}, {FLAGS.backend}, keras {keras.__version__}, "
        f"{len(os.sched_getaffinity(0))} cores"
    )
    if memory:
        print(
            "peak memory of the process or device: plain "
            f"{memory['plain']:.0f} MiB, wrapped "
            f"{memory['wrapped']:.0f} MiB, ratio "
            f"{memory['wrapped'] / memory['plain']:.3f}"
        )
    for kind, values in times.items():
        print(f"{kind:8} {1000 * statistics.median(values):8.2f} ms a step")
    macs = model_macs(wrapped)[0] / model_macs(plain)[0]
    print(f"multiply-adds {macs:.3f}, {ratios(times, 'plain')}")
    if FLAGS.peer:
        print(f"over BYOT in plain PyTorch: {ratios(times, 'peer')}")


if __name__ == "__main__":
    app.run(main)
