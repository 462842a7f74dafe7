r"""Time early exit against the plain base's `predict`, interleaved in one process.

    python benchmarks/early_exit.py --backend=tensorflow \
        --data_dir=~/tensorflow_datasets --checkpoint=runs/byot/checkpoint.keras

prints for every batch size and threshold, as medians over rounds in which all are
interleaved:

- images a second of the plain base's `predict` and of `EarlyExit.predict`;
- the speed-up, and what the multiply-adds promise;
- realised / ideal: the ideal time is the sum over exits of the samples that exit there
  times the time per sample of that exit's `exit_model` at that batch size. It is
  measured twice: with `exit_model(...).predict` as users call it, and with a bare
  compiled call of it, which is the stricter of the two;
- where all samples go to the end: the time against that of a compiled call of the base
  with all its heads;
- how many sections were compiled after the warm-up.

The thresholds let given shares of the images exit before the end. Without a
checkpoint the weights are random: the times are those of a trained network, the
accuracies are not.
"""

import os
import pathlib
import statistics
import sys
import time

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_enum(
    "backend", "tensorflow", ["tensorflow", "jax", "torch"], "Keras backend."
)
flags.DEFINE_string(
    "checkpoint", "", "Wrapper saved by examples/train_cifar100.py; empty: untrained."
)
flags.DEFINE_string(
    "data_dir", "", "Folder with CIFAR-100, whose test images run; empty: noise."
)
flags.DEFINE_string("model", "resnet18", "Without a checkpoint: the network's name.")
flags.DEFINE_float("width_multiplier", 1.0, "Without a checkpoint: scales the widths.")
flags.DEFINE_list("batch_sizes", ["1", "32", "256"], "Images that a section takes.")
flags.DEFINE_list("images", ["64", "256", "768"], "Images a round, per batch size.")
flags.DEFINE_list(
    "shares",
    ["1", "0.75", "0.5", "0.25", "0"],
    "Shares of images that exit before the end.",
)
flags.DEFINE_integer("rounds", 7, "Timed rounds; each times everything.", 1)


def load_model():
    """Return the wrapper."""
    import keras

    import keras_selfdistill as ksd

    if FLAGS.checkpoint:
        return ksd.load_model(FLAGS.checkpoint)
    keras.utils.set_random_seed(0)
    make = ksd.networks.NETWORKS[FLAGS.model]
    base = make(width_multiplier=FLAGS.width_multiplier)
    return ksd.SelfDistiller(base, taps=3, recipe="byot")


def load_images(count):
    """Return images and labels, real ones where there is a folder."""
    import numpy as np

    if not FLAGS.data_dir:
        random = np.random.default_rng(0)
        images = random.normal(size=(count, 32, 32, 3)).astype("float32")
        return images, random.integers(0, 100, count)
    root = pathlib.Path(__file__).resolve().parent.parent
    sys.path.insert(0, str(root / "examples"))
    from shared import cifar100

    test = cifar100.load(FLAGS.data_dir).test
    indices = np.random.default_rng(0).permutation(len(test.labels))[:count]
    return cifar100.normalize(test.images[indices]), test.labels[indices]


def seconds(function):
    """Return how long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compiled_loop(model, images, batch_size):
    """Return a function that runs a model on all images by bare compiled calls."""
    import keras

    from keras_selfdistill.backend.compiled import CompiledModel
    from keras_selfdistill.backend.tensors import to_numpy

    call = CompiledModel(keras.Model(list(model.inputs), model.outputs[0]))

    def run():
        for start in range(0, len(images), batch_size):
            to_numpy(call([images[start : start + batch_size]]))

    return run


def thresholds_for(fast, images):
    """Return one shared threshold for each share of images that exits early."""
    import numpy as np

    labels = np.zeros(len(images), "int64")
    scores = fast._cascade.observe(images, labels, 32).scores.max(axis=1)
    shares = [float(share) for share in FLAGS.shares]
    ends = {1.0: -np.inf, 0.0: np.inf}
    return {
        share: ends.get(share, float(np.quantile(scores, 1 - share)))
        for share in shares
    }


def contenders(model, fast, images, batch_size, thresholds):
    """Return what a round interleaves: functions by name."""

    def by_predict(part):
        return lambda: part.predict(images, batch_size=batch_size, verbose=0)

    def early(threshold):
        def run():
            fast.thresholds = threshold
            fast.predict(images, batch_size=batch_size)

        return run

    found = {"heads": compiled_loop(model.ensemble_model(), images, batch_size)}
    for name in model.exit_names:
        part = model.exit_model(name)
        found["predict", name] = by_predict(part)
        found["call", name] = compiled_loop(part, images, batch_size)
    for share, threshold in thresholds.items():
        found["early", share] = early(threshold)
    return found


def measure(functions):
    """Return the times of every function, round by round."""
    times = {name: [] for name in functions}
    for round_ in range(FLAGS.rounds + 1):
        for name, function in functions.items():
            taken = seconds(function)
            if round_:  # The first one compiles.
                times[name].append(taken)
    return times


def median_ratio(above, below):
    """Return the median over rounds of the ratio of two lists of times."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def report(model, fast, images, labels, times, thresholds):
    """Print one line for each threshold."""
    import numpy as np

    base = times["predict", "final"]
    for share, threshold in thresholds.items():
        fast.thresholds = threshold
        result = fast.predict(images)
        exited = {name: np.mean(result.exits == name) for name in model.exit_names}
        early = times["early", share]
        ideal = {
            kind: [
                sum(part * times[kind, name][i] for name, part in exited.items())
                for i in range(FLAGS.rounds)
            ]
            for kind in ("predict", "call")
        }
        accuracy = np.mean(result.predictions.argmax(axis=-1) == labels)
        print(
            f"  exit early {share:4.2f}  accuracy {accuracy:.3f}  images/s base "
            f"{len(images) / statistics.median(base):7.1f} early "
            f"{len(images) / statistics.median(early):7.1f}  speed-up "
            f"{median_ratio(base, early):5.2f} (multiply-adds "
            f"{1 / result.macs_ratio:5.2f})  realised/ideal "
            f"{median_ratio(ideal['predict'], early):.3f} by predict, "
            f"{median_ratio(ideal['call'], early):.3f} by call"
        )
        if share == 0.0:
            print(
                "  all to the end: "
                f"{median_ratio(early, times['heads']):.3f} of the base with its heads"
            )


def main(argv):
    """Run the benchmark."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}. See --help.")
    os.environ["KERAS_BACKEND"] = FLAGS.backend
    import keras

    import keras_selfdistill as ksd

    model = load_model()
    counts = [int(count) for count in FLAGS.images]
    images, labels = load_images(max(counts))
    fast = ksd.EarlyExit(model)
    thresholds = thresholds_for(fast, images)
    print(
        f"{model.name}, taps {model.taps}, {FLAGS.backend}, keras {keras.__version__}, "
        f"{len(os.sched_getaffinity(0))} cores, {FLAGS.rounds} rounds, "
        f"{'trained' if FLAGS.checkpoint else 'untrained'}, "
        f"{'CIFAR-100 test images' if FLAGS.data_dir else 'noise'}"
    )
    for batch_size, count in zip(map(int, FLAGS.batch_sizes), counts, strict=True):
        some = images[:count]
        fast.warm_up(batch_size)
        compiled = fast.compile_count
        functions = contenders(model, fast, some, batch_size, thresholds)
        times = measure(functions)
        recompiled = fast.compile_count - compiled
        print(f"batch {batch_size}, {count} images, compiled again: {recompiled}")
        report(model, fast, some, labels[:count], times, thresholds)


if __name__ == "__main__":
    app.run(main)
