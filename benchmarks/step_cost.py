r"""Count what a training step of each recipe costs, wrapped over plain, by XLA.

    python benchmarks/step_cost.py --recipes=byot,separable_byot

compiles a step of the plain base and of wrappers around it on JAX and prints ratios of
what XLA counts, one recipe a line: floating-point operations, bytes that kernels move,
temporaries, and kernels. Nothing is trained, and the counts are the same on every run:
they need no quiet machine. Last on a line are the bytes.
"""

import os
import re

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string("recipes", "", "Recipes, with commas; by default each.")
flags.DEFINE_string("model", "resnet18", "Name in keras_selfdistill.networks.")
flags.DEFINE_float("width_multiplier", 1.0, "Scales the widths of the network.")
flags.DEFINE_integer("image_size", 32, "Height and width of the images, in pixels.")
flags.DEFINE_integer("batch_size", 64, "Images a step.")
flags.DEFINE_integer("taps", 3, "Number of exits.")

COUNTS = ("operations", "temporaries", "kernels", "bytes")
# What an instruction of XLA's program is that no kernel runs.
NO_KERNEL = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")


def compiled_step(recipe=None):
    """Return the compiled step of the plain base, or of a wrapper around it."""
    import jax
    import keras
    import numpy as np

    import keras_selfdistill as ksd

    model = ksd.networks.NETWORKS[FLAGS.model](
        input_shape=(FLAGS.image_size, FLAGS.image_size, 3),
        width_multiplier=FLAGS.width_multiplier,
    )
    if recipe:
        model = ksd.SelfDistiller(model, taps=FLAGS.taps, recipe=recipe)
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    shape = (FLAGS.batch_size, FLAGS.image_size, FLAGS.image_size, 3)
    data = np.zeros(shape, "float32"), np.zeros(FLAGS.batch_size, "int32")
    # Creates the variables of the metrics and of the optimizer.
    model.test_on_batch(*data)
    model.optimizer.build(model.trainable_variables)
    state = tuple(
        [variable.value for variable in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    )
    # As `fit` compiles it: the state is updated in place.
    step = jax.jit(model.train_step, donate_argnums=0)
    return step.lower(state, data).compile()


def counts(step):
    """Return what XLA counts of a compiled step, by the names of `COUNTS`."""
    analysis = step.cost_analysis()
    return {
        "operations": analysis["flops"],
        "temporaries": step.memory_analysis().temp_size_in_bytes,
        "kernels": kernels(step.as_text()),
        "bytes": analysis["bytes accessed"],
    }


def kernels(program):
    """Return how many kernels a program of XLA runs, in the longest of its branches."""
    blocks = dict(re.findall(r"^(ENTRY|%\S+) .*?{\n(.*?)^}", program, re.M | re.S))

    def count(name):
        text = blocks[name]
        found = re.findall(r"^ +(?:ROOT )?\S+ = .*? ([\w-]+)\(", text, re.M)
        branches = re.findall(r"(?:true|false)_computation=(%[^,\s}]+)", text)
        for group in re.findall(r"branch_computations={(.*?)}", text):
            branches += group.split(", ")
        longest = max(map(count, branches), default=0)
        return sum(each not in NO_KERNEL for each in found) + longest

    return count("ENTRY")


def main(argv):
    """Run the benchmark."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}. See --help.")
    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    import keras

    from keras_selfdistill.recipes.registry import RECIPES

    print(
        f"{FLAGS.model}, batch {FLAGS.batch_size}, {FLAGS.taps} exits, "
        f"keras {keras.__version__}, jax {jax.__version__}, {jax.default_backend()}"
    )
    plain = counts(compiled_step())
    print(f"{'plain':18}", *(f"{name} {plain[name]:.4g} " for name in COUNTS))
    for recipe in FLAGS.recipes.split(",") if FLAGS.recipes else RECIPES:
        wrapped = counts(compiled_step(recipe))
        ratios = (f"{name} {wrapped[name] / plain[name]:.3f} " for name in COUNTS)
        print(f"{recipe:18}", " ".join(ratios).rstrip())


if __name__ == "__main__":
    app.run(main)
