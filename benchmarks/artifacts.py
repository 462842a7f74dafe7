r"""Time early-exit artifacts against the artifacts of single exits, one sample a call.

    python benchmarks/artifacts.py

exports an early-exit network and each of its exits as SavedModel and LiteRT, and
prints, for every exit, the median time of the deciding artifact where the sample exits
there, that of `exit_model` of the same exit, and their ratio. Calls are interleaved.
Weights are random: thresholds alone decide where the sample exits. Latency does not
depend on the values of weights.
"""

import os
import pathlib
import statistics
import tempfile
import time

from absl import app, flags

os.environ["KERAS_BACKEND"] = "tensorflow"
FLAGS = flags.FLAGS
flags.DEFINE_float("width_multiplier", 1.0, "Scales the widths of CIFAR ResNet-18.")
flags.DEFINE_integer("taps", 3, "Number of exits before the final one.", 1)
flags.DEFINE_integer("repeats", 51, "Timed calls of each artifact.", 1)
flags.DEFINE_integer("threads", 2, "Threads of the LiteRT interpreter.", 1)


def saved_model_call(path, image):
    """Return a function that runs a SavedModel on the image."""
    import tensorflow as tf

    loaded, tensor = tf.saved_model.load(str(path)), tf.constant(image)
    return lambda: loaded.serve(tensor)


def litert_call(path, image):
    """Return a function that runs a LiteRT file on the image."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=FLAGS.threads)
    interpreter.allocate_tensors()
    place = interpreter.get_input_details()[0]["index"]
    outputs = [each["index"] for each in interpreter.get_output_details()]

    def call():
        interpreter.set_tensor(place, image)
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in outputs]

    return call


CALLS = {"tf_saved_model": saved_model_call, "litert": litert_call}


def calls(model, folder, format, image):
    """Return timed functions by (exit name, whether the artifact decides itself)."""
    import numpy as np

    import keras_selfdistill as ksd

    found = {}
    for number, name in enumerate(model.exit_names):
        limits = [-np.inf if i == number else np.inf for i in range(FLAGS.taps)]
        path = folder / f"{name}_deciding_{format}"
        ksd.EarlyExit(model, thresholds=limits).export(path, format=format)
        found[name, True] = CALLS[format](path, image)
        suffix = ".tflite" if format == "litert" else ""
        path = folder / f"{name}_{format}{suffix}"
        model.exit_model(name).export(str(path), format=format, verbose=False)
        found[name, False] = CALLS[format](path, image)
    return found


def medians(functions, repeats):
    """Return the median seconds of each function, in interleaved calls."""
    times = {key: [] for key in functions}
    for _ in range(repeats + 5):
        for key, function in functions.items():
            start = time.perf_counter()
            function()
            times[key].append(time.perf_counter() - start)
    return {key: statistics.median(values[5:]) for key, values in times.items()}


def main(argv):
    """Run the benchmark."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}. See --help.")
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_selfdistill as ksd

    keras.utils.set_random_seed(0)
    base = ksd.networks.resnet18(width_multiplier=FLAGS.width_multiplier)
    model = ksd.SelfDistiller(base, FLAGS.taps, "byot")
    image = np.random.default_rng(0).random((1, 32, 32, 3), "float32")
    print(
        f"resnet18, width multiplier {FLAGS.width_multiplier}, batch 1, "
        f"keras {keras.__version__}, tensorflow {tf.__version__}, "
        f"{len(os.sched_getaffinity(0))} cores"
    )
    print(f"{'format':15} {'exit':8} {'deciding':>10} {'exit_model':>11} {'ratio':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for format in CALLS:
            functions = calls(model, pathlib.Path(folder), format, image)
            found = medians(functions, FLAGS.repeats)
            for name in model.exit_names:
                both = found[name, True], found[name, False]
                print(
                    f"{format:15} {name:8} {1000 * both[0]:7.2f} ms "
                    f"{1000 * both[1]:8.2f} ms {both[0] / both[1]:6.3f}"
                )


if __name__ == "__main__":
    app.run(main)
