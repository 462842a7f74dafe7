r"""What self-distillation changes inside a network: the papers' analyses, on one page.

    python examples/analysis.py --data=digits
    python examples/analysis.py --data_dir=~/tensorflow_datasets \
        --train_examples=10000 --width_multiplier=0.25 --epochs=30
    python examples/analysis.py --data_dir=~/tensorflow_datasets \
        --train_examples=10000 \
        --plain_model=runs/analysis/plain.keras \
        --distilled_model=runs/analysis/distilled.keras

Trains a network plainly and, from the same initial weights, with self-distilled
exits; or takes both from files, of the same `--data`, `--train_examples` and
`--seed`. Then:

* flat minima: accuracy under Gaussian noise on the weights,
* gradients by depth: how much of them reaches the shallow layers,
* discriminating features: scatter and a linear probe, by exit,
* predictions: what each exit gets right that others do not.

`--output_dir` gets `analysis.html`, one file with tables and pictures, and the
networks, `plain.keras` and `distilled.keras`; they replace files of these names.

One training of each kind is an illustration: its differences may be those of two seeds.
A network trained for a few epochs is not the papers' either.
"""

import shared.quiet  # noqa: F401  # isort: skip  (first: it imports Keras)

import pathlib
from collections.abc import Sequence

import keras
import numpy as np
from absl import app, flags, logging

import keras_selfdistill as ksd
from shared import (
    analysis_page,
    augmentation,
    image_flags,
    image_sets,
    run_folder,
    script,
)

FLAGS = flags.FLAGS

# Flags that say nothing of networks from files.
OF_TRAINING = [
    "model",
    "width_multiplier",
    "epochs",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "recipe",
    "augmentation",
    "taps",
]


def define_flags() -> None:
    """Defines the command line."""
    image_flags.define("cifar100")
    image_flags.define_network(sorted(ksd.networks.NETWORKS))
    image_flags.define_training(list(ksd.recipes.RECIPES), augmentation.KEEP_LABELS)
    flags.DEFINE_string("plain_model", None, "File of a plain network: no training.")
    flags.DEFINE_string("distilled_model", None, "File of a wrapper: no training.")
    flags.DEFINE_integer(
        "taps",
        None,
        "Exits before the final one. Default: 3; 2 for digits, whose network has no "
        "more places.",
        1,
    )
    flags.DEFINE_integer(
        "images", 2000, "Training and test images to analyse, drawn at random.", 1
    )
    flags.DEFINE_list(
        "noise",
        ["0", "0.005", "0.01", "0.015", "0.02", "0.025", "0.03"],
        "Standard deviations of the noise on the weights.",
    )
    flags.DEFINE_integer("noise_repeats", 5, "Draws of each size of noise.", 1)
    flags.DEFINE_integer(
        "seed", 0, "Seed of weights, batches, drawn images and noise.", 0
    )
    flags.DEFINE_string("output_dir", "runs/analysis", "Folder of this run's files.")


def train(
    images: image_sets.Images, train_sample: analysis_page.Sample
) -> analysis_page.Trained:
    """Trains both networks from the same initial weights."""
    keras.utils.set_random_seed(FLAGS.seed)
    plain, base = (
        image_sets.build_base(FLAGS.data, FLAGS.model, FLAGS.width_multiplier)
        for _ in range(2)
    )
    base.set_weights(plain.get_weights())
    model = ksd.SelfDistiller(base, FLAGS.taps, FLAGS.recipe)
    both = {"plain": plain, "distilled": model}
    for each in both.values():
        image_sets.prepare(each, images, FLAGS)
    gradients = ksd.analysis.gradients_by_depth(both, *train_sample)
    histories = [image_sets.train(each, images, FLAGS) for each in both.values()]
    return analysis_page.Trained(plain, model, histories[-1], gradients)


def load(images: image_sets.Images) -> analysis_page.Trained:
    """Returns the networks of the files that were given."""
    plain, model = (
        ksd.load_model(pathlib.Path(path).expanduser())
        for path in (FLAGS.plain_model, FLAGS.distilled_model)
    )
    if not isinstance(model, ksd.SelfDistiller):
        raise app.UsageError(
            f"Received --distilled_model={FLAGS.distilled_model} with a model of type "
            f"{type(model).__name__}; expected a saved SelfDistiller."
        )
    for each in (plain, model):  # Their gradients need a loss.
        image_sets.prepare(each, images, FLAGS)
    return analysis_page.Trained(plain, model)


def samples(
    images: image_sets.Images,
) -> tuple[analysis_page.Sample, analysis_page.Sample]:
    """Returns some of the training and of the test images, not augmented."""
    random = np.random.default_rng(FLAGS.seed)
    found = []
    for x, y in (images.train, images.test):
        indices = random.permutation(len(x))[: FLAGS.images]
        x, y = x[indices], y[indices]
        if x.dtype == "uint8":
            from shared import cifar100

            x = cifar100.normalize(x)
        found.append(analysis_page.Sample(x, y))
    return found[0], found[1]


def main(argv: Sequence[str]) -> None:
    """Trains or loads both networks, analyses them, and writes the page."""
    if len(argv) > 1:
        raise app.UsageError(f"Received {argv[1:]}; expected flags only: --name=value.")
    if (FLAGS.plain_model is None) != (FLAGS.distilled_model is None):
        raise app.UsageError(
            "Received one of --plain_model and --distilled_model; expected both or "
            "neither."
        )
    try:
        noise = [float(scale) for scale in FLAGS.noise]
    except ValueError:
        raise app.UsageError(
            f"Received --noise={','.join(FLAGS.noise)}; expected numbers, separated by "
            "commas."
        ) from None
    if FLAGS.taps is None:
        FLAGS.taps = 2 if FLAGS.data == "digits" else 3
    image_sets.check_augmentation(FLAGS)
    image_sets.quiet_tensorflow()
    folder = pathlib.Path(FLAGS.output_dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    images = image_sets.load(
        FLAGS.data, FLAGS.data_dir, train_examples=FLAGS.train_examples, seed=FLAGS.seed
    )
    train_sample, test = samples(images)
    if FLAGS.plain_model is None:
        trained = train(images, train_sample)
        run_folder.save(trained.plain, folder / "plain.keras")
        run_folder.save(trained.distilled, folder / "distilled.keras")
    else:
        trained = load(images)
    hidden = ["data_dir", "output_dir"]
    if FLAGS.plain_model is None:
        hidden += ["plain_model", "distilled_model"]
    else:
        hidden += OF_TRAINING
    text = analysis_page.render(
        trained,
        train_sample,
        test,
        noise=noise,
        repeats=FLAGS.noise_repeats,
        seed=FLAGS.seed,
        settings=run_folder.own_settings("noise_repeats", without=hidden),
    )
    run_folder.write(folder / "analysis.html", text.encode())
    print(f"Wrote {folder / 'analysis.html'}")


if __name__ == "__main__":
    define_flags()
    FLAGS.set_default("verbosity", logging.INFO)
    script.run(main)
