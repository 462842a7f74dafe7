"""Self-distillation in a minute, on scikit-learn's 1,797 handwritten digits.

    python examples/quickstart.py

Trains a small convolutional network plainly, then the same network from the same
initial weights with exits, and prints what each exit costs and how accurate it is on
images that training never saw. Saves the wrapper as `selfdistilled.keras` and a
picture of accuracy against compute as `accuracy_vs_compute.png` in `--output_dir`,
where they replace files of these names.
"""

import shared.quiet  # noqa: F401  # isort: skip  (first: it imports Keras)

import pathlib

import keras
import numpy as np
from absl import app, flags, logging
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_selfdistill as ksd
from shared import script

FLAGS = flags.FLAGS


def define_flags():
    """Define the command line; a function, so that other examples may import this."""
    flags.DEFINE_string("recipe", "byot", "How exits learn: byot or deep_supervision.")
    flags.DEFINE_integer("taps", 2, "Number of exits before the final one.", 1)
    flags.DEFINE_integer("epochs", 30, "Passes over the training images.", 1)
    flags.DEFINE_integer("batch_size", 64, "Images a training step.", 1)
    flags.DEFINE_integer("seed", 0, "Seed of the split, the weights and the order.")
    flags.DEFINE_string("output_dir", "runs/quickstart", "Where the results are saved.")


def load_images(seed):
    """Return (images, labels) for training and as many again for the test."""
    digits = load_digits()
    images = (digits.images[..., np.newaxis] / 16.0).astype("float32")
    split = train_test_split(
        images, digits.target, test_size=0.5, stratify=digits.target, random_state=seed
    )
    x_train, x_test, y_train, y_test = split
    return (x_train, y_train), (x_test, y_test)


def build_base():
    """Return a convolutional network for 8×8 images of ten digits."""
    inputs = keras.Input((8, 8, 1))
    x = inputs
    for stage, width in enumerate((16, 32, 64), start=1):
        x = keras.layers.Conv2D(
            width, 3, strides=1 if stage == 1 else 2, padding="same", use_bias=False
        )(x)
        x = keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.ReLU(name=f"stage{stage}_out")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(10, activation="softmax")(x)
    return keras.Model(inputs, outputs, name="digits")


def train(model, images, labels):
    """Compile and fit a plain base or a wrapper: the calls are the same."""
    keras.utils.set_random_seed(FLAGS.seed)
    model.compile(
        keras.optimizers.Adam(2e-3),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(images, labels, batch_size=FLAGS.batch_size, epochs=FLAGS.epochs)


def main(argv):
    """Run the example."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}. See --help.")
    logging.set_verbosity(logging.WARNING)  # `app.run` makes it INFO.
    keras.utils.set_random_seed(FLAGS.seed)
    (x_train, y_train), (x_test, y_test) = load_images(FLAGS.seed)
    plain, base = build_base(), build_base()
    base.set_weights(plain.get_weights())
    model = ksd.SelfDistiller(base, taps=FLAGS.taps, recipe=FLAGS.recipe)

    print("Training the plain base")
    train(plain, x_train, y_train)
    print(f"\nTraining with exits at {', '.join(model.taps)}")
    train(model, x_train, y_train)

    report = ksd.report(model, (x_test, y_test), base=plain)
    print(f"\n{report}")
    output_dir = pathlib.Path(FLAGS.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    model.save(output_dir / "selfdistilled.keras")
    report.plot().savefig(output_dir / "accuracy_vs_compute.png", dpi=150)
    print(f"\nSaved selfdistilled.keras and accuracy_vs_compute.png in {output_dir}")


if __name__ == "__main__":
    define_flags()
    script.run(main)
