r"""Search a recipe's constants on held-out images; judge them once on the test images.

    python examples/tune.py --trials=8
    python examples/tune.py --data=cifar100 --data_dir=~/tensorflow_datasets \
        --train_examples=10000 --width_multiplier=0.25 --epochs=30 --trials=20

KerasTuner draws `--trials` sets of constants (`alpha`, `temperature` and the other
weights of `--recipe`) and trains a wrapper with each, for the same epochs and from the
same seed. It keeps the one whose exit `--judged_by` is the most accurate on images held
out of the training set: after the last epoch, not after the best. Test images take no
part. Then the recipe's own constants and the chosen ones train on all training images,
and each of the two networks sees the test images once.

What to expect: the best of several held-out accuracies is too optimistic, the more so
the fewer images are held out, so the gain on test images is smaller, and often within
the standard error that is printed. Repeat it with another `--seed`.

Writes to `--output_dir`: `search/`, KerasTuner's own record of the trials; `own.keras`
and `chosen.keras`, the two wrappers; `flags.json` and `results.json`. The same command
again goes on after the last finished trial, also with more `--trials`.
"""

import shared.quiet  # noqa: F401  # isort: skip  (first: it imports Keras)

import dataclasses
import math
import pathlib
from typing import Any

import keras
import keras_tuner
import numpy as np
from absl import app, flags, logging

import keras_selfdistill as ksd
from shared import (
    augmentation,
    environment,
    image_flags,
    image_sets,
    run_folder,
    script,
)

FLAGS = flags.FLAGS
CHANGEABLE = ("data_dir", "output_dir", "trials")

# From where to where constants are searched; those that are not here keep their value.
RANGES = {
    "alpha": (0.05, 0.9),
    "exit_weight": (0.1, 1.0),
    "label_weight": (0.05, 0.9),
    "past_weight": (0.1, 0.9),
    "regularization": (0.01, 0.5),
    "soft_target_weight": (0.1, 1.5),
    "temperature": (1.0, 8.0),
}
# Times the recipe's own weight of hints, which depends on their loss.
HINTS = 0.01, 100.0


def define_flags() -> None:
    """Defines the command line."""
    image_flags.define()
    image_flags.define_network(sorted(ksd.networks.NETWORKS))
    image_flags.define_training(list(ksd.recipes.RECIPES), augmentation.KEEP_LABELS)
    flags.DEFINE_integer("trials", 8, "Sets of constants to try.", lower_bound=1)
    flags.DEFINE_float(
        "held_out",
        0.2,
        "Share of the training images that trials are judged on.",
        lower_bound=0.05,
        upper_bound=0.5,
    )
    flags.DEFINE_string(
        "judged_by", "final", "Exit to choose by: exit_1, …, final or ensemble."
    )
    flags.DEFINE_integer("taps", 2, "Exits before the final one.", lower_bound=1)
    flags.DEFINE_integer(
        "seed", 0, "Of the splits, constants, weights and batches.", lower_bound=0
    )
    flags.DEFINE_string("output_dir", "runs/tune", "Folder of this run's files.")


def search_space(recipe: ksd.recipes.Recipe) -> keras_tuner.HyperParameters:
    """Returns the constants to search, with the recipe's own as defaults."""
    space = keras_tuner.HyperParameters()
    for field in dataclasses.fields(recipe):
        own = getattr(recipe, field.name)
        if field.name in RANGES:
            low, high = RANGES[field.name]
            space.Float(field.name, min(low, own), high, default=own)
        elif field.name == "hint_weight" and own:  # Not by a factor of 0.
            low, high = (own * factor for factor in HINTS)
            space.Float(field.name, low, high, sampling="log", default=own)
    return space


def hold_out(images: image_sets.Images, share: float, seed: int) -> image_sets.Images:
    """Returns the training images in two parts; the second takes the place of tests."""
    inputs, labels = images.train
    order = np.random.default_rng(seed).permutation(len(labels))
    held, kept = np.split(order, [round(share * len(order))])
    judged = inputs[held]
    if images.name == "cifar100":
        from shared import cifar100

        judged = cifar100.normalize(judged)
    return image_sets.Images(
        images.name, (inputs[kept], labels[kept]), (judged, labels[held])
    )


def train(recipe: ksd.recipes.Recipe, images: image_sets.Images) -> ksd.SelfDistiller:
    """Returns a wrapper that was trained on the training images."""
    keras.utils.set_random_seed(FLAGS.seed)
    base = image_sets.build_base(FLAGS.data, FLAGS.model, FLAGS.width_multiplier)
    wrapper = ksd.SelfDistiller(base, FLAGS.taps, recipe)
    image_sets.prepare(wrapper, images, FLAGS)
    image_sets.train(wrapper, images, FLAGS)
    return wrapper


def accuracy(wrapper: ksd.SelfDistiller, images: image_sets.Images) -> float:
    """Returns the accuracy of the exit to choose by, on the images to judge by."""
    logs = wrapper.evaluate(*images.test, batch_size=256, verbose=0, return_dict=True)
    exit_ = FLAGS.judged_by
    return logs["accuracy" if exit_ == "final" else f"{exit_}_accuracy"]


class Search(keras_tuner.RandomSearch):
    """A random search that trains every trial in the same way, to the end."""

    def run_trial(self, trial: Any, images: image_sets.Images) -> dict[str, float]:
        """Returns the held-out accuracy of one set of constants."""
        recipe = ksd.recipes.RECIPES[FLAGS.recipe](**trial.hyperparameters.values)
        try:
            return {"accuracy": accuracy(train(recipe, images), images)}
        except FloatingPointError as error:  # Training diverged.
            logging.warning("%s: %s", recipe, error)
            return {"accuracy": 0.0}


def search(images: image_sets.Images, folder: pathlib.Path) -> list[dict[str, Any]]:
    """Runs the trials that are missing; returns all, the best first."""
    tuner = Search(
        objective=keras_tuner.Objective("accuracy", "max"),
        hyperparameters=search_space(ksd.recipes.RECIPES[FLAGS.recipe]()),
        max_trials=FLAGS.trials,
        seed=FLAGS.seed + 1,  # KerasTuner reads 0 as none.
        max_consecutive_failed_trials=1,  # An error would come again.
        directory=folder,
        project_name="search",
    )
    tuner.search(images)
    trials = tuner.oracle.get_best_trials(len(tuner.oracle.trials))
    # They come from disk in any order: of two equal ones the earlier is the first.
    trials.sort(key=lambda trial: (-trial.score, int(trial.trial_id)))
    return [
        {"constants": trial.hyperparameters.values, "held_out_accuracy": trial.score}
        for trial in trials
    ]


def judge(
    recipes: dict[str, ksd.recipes.Recipe],
    images: image_sets.Images,
    folder: pathlib.Path,
) -> dict[str, dict[str, Any]]:
    """Trains on all training images, and returns accuracies on the test images."""
    rows = {}
    for name, recipe in recipes.items():
        path = folder / f"{name}.keras"
        if not (path.exists() and is_made_by(recipe, path)):
            run_folder.save(train(recipe, images), path)
        found = accuracy(ksd.load_model(path), images)
        error = math.sqrt(found * (1 - found) / len(images.test[1]))
        rows[name] = {"test_accuracy": found, "standard_error": error}
    return rows


def is_made_by(recipe: ksd.recipes.Recipe, path: pathlib.Path) -> bool:
    """Returns whether an earlier part of the run chose the same constants."""
    return ksd.load_model(path).recipe == recipe


def table(trials: list[dict[str, Any]], rows: dict[str, dict[str, Any]]) -> str:
    """Returns constants and accuracies as text."""
    own = search_space(ksd.recipes.RECIPES[FLAGS.recipe]()).values
    columns = {"own": own, "chosen": trials[0]["constants"]}
    lines = [f"{'':20}{'own':>12}{'chosen':>12}"]
    lines += [
        f"{name:20}{columns['own'][name]:12.3g}{columns['chosen'][name]:12.3g}"
        for name in own
    ]
    for label, key in (("test accuracy", "test_accuracy"), ("±", "standard_error")):
        found = "".join(f"{rows[name][key]:12.2%}" for name in columns)
        lines.append(f"{label:20}{found}")
    best, worst = (trials[end]["held_out_accuracy"] for end in (0, -1))
    return "\n".join(lines) + (
        f"\n\nAccuracy of {FLAGS.judged_by}. Held-out, of {len(trials)} trials: best "
        f"{best:.2%}, worst {worst:.2%}; the best of several is too optimistic."
    )


def main(argv: list[str]) -> None:
    """Searches, or goes on, and prints what came out."""
    if len(argv) > 1:
        raise app.UsageError(f"Received {argv[1:]}; expected flags only: --name=value.")
    exits = [f"exit_{i + 1}" for i in range(FLAGS.taps)] + ["final", "ensemble"]
    if FLAGS.judged_by not in exits:
        raise app.UsageError(
            f"Received --judged_by={FLAGS.judged_by}; expected one of "
            f"{', '.join(exits)}."
        )
    image_sets.check_augmentation(FLAGS)
    image_sets.quiet_tensorflow()
    settings = run_folder.own_settings("judged_by", without=CHANGEABLE)
    folder = run_folder.begin(FLAGS.output_dir, settings, kept="search/oracle.json")
    images = image_sets.load(
        FLAGS.data, FLAGS.data_dir, train_examples=FLAGS.train_examples, seed=FLAGS.seed
    )
    trials = search(hold_out(images, FLAGS.held_out, FLAGS.seed), folder)
    recipe = ksd.recipes.RECIPES[FLAGS.recipe]
    recipes = {"own": recipe(), "chosen": recipe(**trials[0]["constants"])}
    rows = judge(recipes, images, folder)
    found = {
        "judged_by": FLAGS.judged_by,
        "trials": trials,
        **rows,
        "flags": settings,
        "versions": environment.versions(),
        "machine": environment.machine(),
    }
    run_folder.write_json(folder / "results.json", found)
    print(f"\n{table(trials, rows)}")
    print(f"Saved own.keras, chosen.keras and results.json in {folder}")


if __name__ == "__main__":
    define_flags()
    FLAGS.set_default("verbosity", logging.INFO)
    script.run(main)
