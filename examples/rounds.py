r"""Born-again training: every round's network teaches the next one.

    python examples/rounds.py --train_examples=200 --rounds=6
    python examples/rounds.py --data=cifar100 --data_dir=~/tensorflow_datasets \
        --train_examples=10000 --width_multiplier=0.25 --epochs=30 --rounds=4

Round 1 trains a network with self-distilled exits on labels. Each later round trains
the same network from new random weights, again on labels and with exits, but with the
`final_model()` of the round before as external teacher (Furlanello et al. 2018). After
every round, two numbers of the final exit on test images: its accuracy, and the
effective rank of its features, the exponential of the entropy of the normalised
singular values of the centred feature matrix (Roy and Vetterli 2007). It is r if the
features spread evenly over r directions.

What to expect: Mobahi, Farajtabar and Bartlett (2020) show for kernel regression that
every round of self-distillation regularises more, and in one way: the number of basis
functions that the solution uses shrinks from round to round. So gains come first, from
less overfitting, and collapse comes later, from underfitting. Their later rounds see
the earlier round's predictions alone; here the labels stay, with weight 1 beside
`--external_weight`, which keeps the network from collapse for long. The effective rank
may fall well before the accuracy does. Nor are features of a deep network fixed, as a
kernel's are: the theory promises nothing here, and whatever comes out is printed.

A difference of one or two standard errors says nothing, nor does a single seed: repeat
with other `--seed`s before believing it. The standard error printed is that of a share
of so many test images; what another seed changes comes on top.

Writes to `--output_dir`: `round_<i>.keras`, the final model of each round;
`flags.json`; `results.json`; and `rounds.png`. The same command again keeps the
finished rounds and goes on with the next, also with more `--rounds`.
"""

import shared.quiet  # noqa: F401  # isort: skip  (first: it imports Keras)

import math
import pathlib
from typing import Any

import keras
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

# Where things lie, and how far to go, may change between the parts of one run.
CHANGEABLE = ("data_dir", "output_dir", "rounds")


def define_flags() -> None:
    """Defines the command line."""
    image_flags.define()
    image_flags.define_network(sorted(ksd.networks.NETWORKS))
    image_flags.define_training(list(ksd.recipes.RECIPES), augmentation.KEEP_LABELS)
    flags.DEFINE_integer("rounds", 4, "Rounds in all.", lower_bound=1)
    flags.DEFINE_integer("taps", 2, "Exits before the final one.", lower_bound=1)
    flags.DEFINE_float(
        "external_weight",
        1.0,
        "Weight, in every exit, of what the round before teaches; in the final exit, "
        "labels have weight 1.",
        lower_bound=0.0,
    )
    flags.DEFINE_float(
        "temperature",
        3.0,
        "Temperature of all soft targets, the teacher's too.",
        lower_bound=0.1,
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "Seed of the split of digits; round i draws weights and batches from seed + i.",
        lower_bound=0,
    )
    flags.DEFINE_string("output_dir", "runs/rounds", "Folder of this run's files.")


def effective_rank(features: np.ndarray) -> float:
    """Returns the exponential of the entropy of the normalised singular values.

    Args:
        features: Shape (samples, width). Their mean is subtracted.

    Returns:
        From 1 to the smaller of width and samples - 1; 0 if all rows are equal.
    """
    features = np.asarray(features, "float64")
    values = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    # What rounding leaves of singular values that are zero; NumPy's matrix_rank too
    # counts only those above it.
    rounding = np.abs(features).max() * max(features.shape) * np.finfo("float64").eps
    values = values[values > rounding]
    if not len(values):
        return 0.0
    shares = values / values.sum()
    return math.exp(-np.sum(shares * np.log(shares)))


def feature_model(model: keras.Model) -> keras.Model:
    """Returns the part of a classifier before its last dense layer."""
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    if not dense:
        raise ValueError(
            f"Received model {model.name!r} without a keras.layers.Dense; expected a "
            "classifier that ends in one, whose input is the feature."
        )
    return keras.Model(model.inputs, dense[-1].input)


def standard_error(accuracy: float, count: int) -> float:
    """Returns the standard deviation of a share of `count` independent samples."""
    return math.sqrt(accuracy * (1 - accuracy) / count)


def build_wrapper(
    teacher: keras.Model | None, images: image_sets.Images
) -> ksd.SelfDistiller:
    """Returns an untrained, compiled wrapper, taught from outside if there is one."""
    recipe = ksd.recipes.RECIPES[FLAGS.recipe](
        temperature=FLAGS.temperature, external_weight=FLAGS.external_weight
    )
    base = image_sets.build_base(FLAGS.data, FLAGS.model, FLAGS.width_multiplier)
    wrapper = ksd.SelfDistiller(base, FLAGS.taps, recipe, teacher=teacher)
    image_sets.prepare(wrapper, images, FLAGS)
    return wrapper


def train_round(
    number: int, teacher: keras.Model | None, images: image_sets.Images
) -> keras.Model:
    """Trains one round from new weights and returns its final model."""
    seed = FLAGS.seed + number
    keras.utils.set_random_seed(seed)
    wrapper = build_wrapper(teacher, images)
    image_sets.train(wrapper, images, FLAGS, seed=seed)
    return wrapper.final_model()


def measure(
    number: int, model: keras.Model, images: image_sets.Images
) -> dict[str, Any]:
    """Returns the row of the table of one round."""
    accuracy = image_sets.accuracy(model, images)
    features = feature_model(model).predict(images.test[0], batch_size=256)
    return {
        "round": number,
        "accuracy": accuracy,
        "standard_error": standard_error(accuracy, len(images.test[1])),
        "effective_rank": effective_rank(features),
        "feature_width": features.shape[-1],
    }


def run_rounds(images: image_sets.Images, folder: pathlib.Path) -> list[dict[str, Any]]:
    """Trains the rounds that are missing; returns the rows of all."""
    rows, teacher = [], None
    for number in range(1, FLAGS.rounds + 1):
        path = folder / f"round_{number}.keras"
        if path.exists():
            logging.info("Round %d of %d is done.", number, FLAGS.rounds)
        else:
            logging.info("Round %d of %d.", number, FLAGS.rounds)
            run_folder.save(train_round(number, teacher, images), path)
        # From the file, so that a run that goes on is like one that never stopped.
        teacher = keras.saving.load_model(path)
        rows.append(measure(number, teacher, images))
        write_results(rows, folder)
    return rows


def settings() -> dict[str, Any]:
    """Returns what decides the result of a round: the flags and the backend."""
    return run_folder.own_settings("external_weight", without=CHANGEABLE)


def write_results(rows: list[dict[str, Any]], folder: pathlib.Path) -> None:
    """Writes `results.json`."""
    found = {
        "rounds": rows,
        "flags": settings(),
        "versions": environment.versions(),
        "machine": environment.machine(),
    }
    run_folder.write_json(folder / "results.json", found)


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the table as text, one line a round."""
    lines = ["round  accuracy  standard error  effective rank  of width"]
    lines += [
        f"{row['round']:5}  {row['accuracy']:8.2%}  {row['standard_error']:14.2%}  "
        f"{row['effective_rank']:14.2f}  {row['feature_width']:8}"
        for row in rows
    ]
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]]) -> str:
    """Returns in one sentence whether there were gains first and collapse later."""
    if len(rows) == 1:
        return "One round, which nothing taught: pass --rounds=2 or more to compare."
    first, last = rows[0], rows[-1]
    best = max(rows, key=lambda row: row["accuracy"])
    error = math.hypot(first["standard_error"], best["standard_error"])
    gain, loss = (100 * (best["accuracy"] - each["accuracy"]) for each in (first, last))
    return (
        f"Best on these test images: round {best['round']}, {gain:.2f} points above "
        f"round 1 and {loss:.2f} above the last; the standard error of such a "
        f"difference is about {100 * error:.2f} points, and the best of several is "
        f"lucky. Effective rank: {first['effective_rank']:.2f} in round 1, "
        f"{last['effective_rank']:.2f} in the last."
    )


def plot(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Saves a picture of accuracy and effective rank against rounds."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7, 6), sharex=True, layout="constrained"
    )
    rounds = [row["round"] for row in rows]
    above.errorbar(
        rounds,
        [row["accuracy"] for row in rows],
        [row["standard_error"] for row in rows],
        fmt="o-",
        color="#0072B2",
        capsize=4,
    )
    above.set_ylabel("accuracy on test images\n(± one standard error)")
    above.yaxis.set_major_formatter("{x:.2%}")
    below.plot(rounds, [row["effective_rank"] for row in rows], "s--", color="#D55E00")
    below.set_ylabel(f"effective rank of the features\n(of {rows[0]['feature_width']})")
    below.set_xlabel("round: each is taught by the one before")
    below.xaxis.get_major_locator().set_params(integer=True)
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.margins(x=0.08, y=0.15)
    content = io.BytesIO()
    figure.savefig(content, dpi=150, format="png")
    plt.close(figure)
    run_folder.write(path, content.getvalue())


def main(argv: list[str]) -> None:
    """Trains the rounds, or goes on, and prints what came out."""
    if len(argv) > 1:
        raise app.UsageError(f"Received {argv[1:]}; expected flags only: --name=value.")
    image_sets.check_augmentation(FLAGS)
    image_sets.quiet_tensorflow()
    folder = run_folder.begin(FLAGS.output_dir, settings(), kept="round_1.keras")
    images = image_sets.load(
        FLAGS.data, FLAGS.data_dir, train_examples=FLAGS.train_examples, seed=FLAGS.seed
    )
    rows = run_rounds(images, folder)
    plot(rows, folder / "rounds.png")
    print(f"\n{table(rows)}\n\n{summary(rows)}")
    print(f"Saved the rounds, results.json and rounds.png in {folder}")


if __name__ == "__main__":
    define_flags()
    FLAGS.set_default("verbosity", logging.INFO)
    script.run(main)
