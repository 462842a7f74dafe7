r"""Wrap the networks of keras.applications and print what it takes and costs.

    python benchmarks/wrap_all.py --backend=jax --models=ResNet50,NASNetMobile --step

prints a row for each: the taps with their shares of the multiply-adds, seconds to build
the base and to wrap it, and multiply-adds with heads over those without. Seconds are
those of later uses in a process; the first row is the first use, which on JAX compiles.
With `--step` each also takes one training step, and the outputs of its exits' models
are compared with the wrapper's. The status is 1 if a network breaks one of the limits
in the last row; that of seconds needs two rounds.

Building and wrapping end when all weights are there. JAX returns before: without
waiting, the numbers that are drawn for VGG19 would be counted to its wrapping, whose
check of the base's end has to wait for them.
"""

import gc
import inspect
import os
import sys
import time

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_enum(
    "backend", "tensorflow", ["tensorflow", "jax", "torch"], "Keras backend."
)
flags.DEFINE_list("models", [], "Names in keras.applications; all 40 by default.")
flags.DEFINE_integer("image_size", 224, "Height and width of the images, in pixels.")
flags.DEFINE_string("taps", "3", "Number of exits, or auto.")
flags.DEFINE_string("recipe", "byot", "Recipe of the wrapper.")
flags.DEFINE_integer("rounds", 3, "Times are the shortest of so many rounds.", 1)
flags.DEFINE_bool("step", False, "Also train one step and compare exits' models.")
flags.DEFINE_integer("step_image_size", 96, "Size of the images of that step.")
flags.DEFINE_integer("batch_size", 4, "Images of that step.")

MOST_SECONDS = 0.3  # Times what building the base took, ...
ENOUGH_SECONDS = 0.2  # ... but no limit is below this.
MOST_MULTIPLY_ADDS = 1.15  # Times the base's.


def builders():
    """Return the functions of keras.applications that build a network, by name."""
    import keras

    return {
        name: function
        for name, function in vars(keras.applications).items()
        if inspect.isfunction(function)
    }


def build(name, size):
    """Return an untrained network and the seconds that building it took."""
    start = time.perf_counter()
    base = builders()[name](weights=None, input_shape=(size, size, 3), classes=10)
    wait_for(base)
    return base, time.perf_counter() - start


def wait_for(model):
    """Wait until the weights are there: JAX computes them in the background."""
    if FLAGS.backend == "jax":
        import jax

        jax.block_until_ready([weight.value for weight in model.weights])


def wrap(base):
    """Return a wrapped network and the seconds that wrapping it took."""
    import keras_selfdistill as ksd

    taps = int(FLAGS.taps) if FLAGS.taps.isdecimal() else FLAGS.taps
    start = time.perf_counter()
    model = ksd.SelfDistiller(base, taps=taps, recipe=FLAGS.recipe)
    wait_for(model)
    return model, time.perf_counter() - start


def measure(name):
    """Print the row of one network; return its seconds over the limit, and its cost."""
    from keras_selfdistill import suggest_taps
    from keras_selfdistill.costs.counting import model_macs

    times = []
    for _ in range(FLAGS.rounds):
        base, build_seconds = build(name, FLAGS.image_size)
        model, wrap_seconds = wrap(base)
        times.append((build_seconds, wrap_seconds))
    build_seconds, wrap_seconds = map(min, zip(*times, strict=True))
    shares = {tap.name: tap.macs_ratio for tap in suggest_taps(base, len(model.taps))}
    cost = model_macs(model)[0] / model_macs(base)[0]
    ratio = wrap_seconds / build_seconds
    placed = ", ".join(f"{tap} {shares[tap]:.0%}" for tap in model.taps)
    print(
        f"| {name} | {placed} | {model.head} | {build_seconds:.2f} | "
        f"{wrap_seconds:.2f} | {ratio:.2f} | {cost:.3f} |",
        flush=True,
    )
    return wrap_seconds / max(MOST_SECONDS * build_seconds, ENOUGH_SECONDS), cost


def train_step(name):
    """Train one step; return the largest difference of an exit's model to the wrapper.

    Both run the same layers, so the difference is that of rounding.
    """
    import keras
    import numpy as np

    model, _ = wrap(build(name, FLAGS.step_image_size)[0])
    model.compile(
        keras.optimizers.SGD(1e-5),
        loss="sparse_categorical_crossentropy",
        run_eagerly=FLAGS.backend != "jax",
        jit_compile=False,
    )
    random = np.random.default_rng(0)
    shape = (FLAGS.batch_size, FLAGS.step_image_size, FLAGS.step_image_size, 3)
    images, labels = random.random(shape, "float32"), np.arange(FLAGS.batch_size)
    loss = model.train_on_batch(images, labels, return_dict=True)["loss"]
    if not np.isfinite(loss):
        raise RuntimeError(f"{name}: the loss of one step is {loss}.")
    expected = model(images, training=False)
    return max(
        float(
            keras.ops.max(
                keras.ops.abs(
                    model.exit_model(exit_name)(images, training=False) - output
                )
            )
        )
        for exit_name, output in expected.items()
    )


def main(argv):
    """Run the benchmark."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}. See --help.")
    os.environ["KERAS_BACKEND"] = FLAGS.backend
    import keras

    names = FLAGS.models or sorted(builders())
    unknown = set(names) - set(builders())
    if unknown:
        raise app.UsageError(
            f"Received --models with {sorted(unknown)}; expected some of "
            f"{sorted(builders())}."
        )
    # The first network of a process pays for imports: not one that is measured.
    base, first_built = build("MobileNet", 32)
    first_wrapped = wrap(base)[1]
    print(
        f"{FLAGS.recipe}, {FLAGS.image_size}×{FLAGS.image_size} pixels, "
        f"{FLAGS.backend}, keras {keras.__version__}, "
        f"{len(os.sched_getaffinity(0))} cores\n"
    )
    print("| network | taps | head | build, s | wrap, s | ratio | multiply-adds |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| the first use: MobileNet, 32×32 | | | {first_built:.2f} | "
        f"{first_wrapped:.2f} | {first_wrapped / first_built:.2f} | |"
    )
    rows, differences = [], []
    for name in names:
        rows.append(measure(name))
        if FLAGS.step:
            differences.append(train_step(name))
        keras.backend.clear_session()
        gc.collect()
    seconds, costs = (max(column) for column in zip(*rows, strict=True))
    print(
        f"| the worst of {len(names)} | | | | | {seconds:.2f} of the limit, "
        f"{MOST_SECONDS} or {ENOUGH_SECONDS} s, whichever is more "
        f"| {costs:.3f} (at most {MOST_MULTIPLY_ADDS}) |"
    )
    if differences:
        print(
            f"\nOne step each; exits' models differ by at most {max(differences):.1e}"
        )
    # A single round is a first use, too.
    slow = seconds > 1 and FLAGS.rounds > 1
    wrong = slow or costs > MOST_MULTIPLY_ADDS
    sys.exit(wrong or any(difference > 1e-5 for difference in differences))


if __name__ == "__main__":
    app.run(main)
