"""Draw `accuracy.svg`: what exits cost and how often they are right, on CIFAR-100.

Means over the seeds whose results are in `benchmarks/results/cpu`.

python docs/draw_accuracy.py
"""

import collections
import io
import json
import pathlib
import statistics

import matplotlib
from dark_mode import with_dark_mode
from matplotlib.figure import Figure

import keras_selfdistill as ksd

FOLDER = pathlib.Path(__file__).parent
RESULTS = FOLDER.parent / "benchmarks" / "results" / "cpu"


def accuracies(method: str) -> dict[str, float]:
    """Return the mean accuracy of each exit, in per cent, over a method's seeds."""
    found = collections.defaultdict(list)
    for path in sorted(RESULTS.glob(f"{method}-seed*.json")):
        for name, value in json.loads(path.read_text())["test_accuracy"].items():
            found[name].append(100 * value)
    return {name: statistics.mean(values) for name, values in found.items()}


def points() -> dict[str, tuple[float, float]]:
    """Return the share of the base's multiply-adds and the accuracy, by name."""
    base = ksd.networks.resnet18(width_multiplier=0.375)
    recipe = ksd.recipes.SeparableBYOT()
    costs = ksd.profile(ksd.SelfDistiller(base, 3, recipe, head=recipe.head))
    found = accuracies("separable_byot")
    return {
        **{name: (cost.macs_ratio, found[name] / 100) for name, cost in costs.items()},
        "trained plainly": (1.0, accuracies("plain")["final"] / 100),
    }


def described(found: dict[str, tuple[float, float]]) -> str:
    """Return the points in words: the picture holds them, so that a test can read."""
    return "; ".join(f"{n}: {s:.1%}, {a:.2%}" for n, (s, a) in found.items())


if __name__ == "__main__":
    shown = points()
    # Text as text, and the same file each time.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "accuracy"}):
        axes = Figure(figsize=(8, 3.8), layout="constrained").add_subplot()
        figure = ksd.visualization.plot_accuracy_vs_compute(shown, ax=axes)
        axes.set_ylabel("accuracy on test images")
        drawn = io.StringIO()
        figure.savefig(
            drawn,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Description": described(shown)},
        )
    picture = with_dark_mode(drawn.getvalue())
    (FOLDER / "accuracy.svg").write_text(picture, encoding="utf-8")
    print(described(shown))
