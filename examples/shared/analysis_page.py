"""The page that `analysis.py` writes, section by section."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

import keras_selfdistill as ksd
from shared import environment, html_page


class Sample(NamedTuple):
    """Some images as models take them, and their classes."""

    x: np.ndarray
    y: np.ndarray


class Trained(NamedTuple):
    """What is compared, both compiled, and what is known of its training."""

    plain: keras.Model
    distilled: ksd.SelfDistiller
    history: keras.callbacks.History | None = None
    first_gradients: Any = None


def describe_exits(
    page: html_page.Page, trained: Trained, outputs: dict[str, Any], test: Sample
) -> None:
    """Writes what was trained, how accurate it is and what it costs."""
    model = trained.distilled
    page.heading("The network and its exits")
    page.picture(ksd.visualization.plot_model(model), "sections, taps, heads and exits")
    compared = ksd.analysis.compare_predictions(outputs, test.y)
    accuracy = dict(zip(compared.names, compared.accuracy, strict=True))
    costs = ksd.profile(model)
    points = {name: (c.macs_ratio, accuracy[name]) for name, c in costs.items()}
    points["plain"] = (1.0, accuracy["plain"])
    frontier = None
    if model.has_early_exits:
        fast = ksd.EarlyExit(model).calibrate(*test, max_accuracy_drop=0.0)
        frontier = fast.frontier()
    page.picture(
        ksd.visualization.plot_accuracy_vs_compute(points, frontier=frontier),
        "accuracy against compute",
    )
    rows = [[name, f"{a:.2%}", f"{share:.1%}"] for name, (share, a) in points.items()]
    page.table(["", "accuracy", "multiply-adds"], rows)
    if frontier is not None:
        page.text(
            "Early exit is shown with thresholds chosen on the same test images, so it "
            "is a little too good."
        )
        page.picture(fast.exit_shares().plot(), "where images exit, by threshold")
    if trained.history is not None:
        page.picture(
            ksd.visualization.plot_history(trained.history), "training curves by exit"
        )
    exits = {name: values for name, values in outputs.items() if name != "plain"}
    page.text(
        "Bars: accuracy of the predictions with that confidence score, darker where "
        "there are more."
    )
    page.picture(
        ksd.visualization.plot_reliability(exits, test.y), "reliability of every exit"
    )


def analyse_minima(
    page: html_page.Page, trained: Trained, sample: Sample, **options: Any
) -> None:
    """Writes flat minima; `options` are those of `flat_minima`."""
    found = ksd.analysis.flat_minima(
        {"plain": trained.plain, "distilled": trained.distilled.final_model()},
        *sample,
        **options,
    )
    page.heading("Flat minima")
    page.text(
        "Accuracy on training images while Gaussian noise is on all weights. A network "
        "that keeps its accuracy lies in a flatter minimum."
    )
    page.picture(found.plot(), "accuracy under noise on the weights")
    means = {name: values.mean(axis=1) for name, values in found.accuracy.items()}
    rows = [
        [f"{scale:g}", *(f"{values[i]:.1%}" for values in means.values())]
        for i, scale in enumerate(found.scales)
    ]
    page.table(["noise", *means], rows)


def analyse_gradients(page: html_page.Page, trained: Trained, sample: Sample) -> None:
    """Writes gradients by depth."""
    page.heading("Gradients by depth")
    page.text(
        "Mean magnitude of the loss's gradient in each layer, in training mode on "
        "training images. The losses of the exits add to it in the layers before them."
    )
    moments = {
        "before training": trained.first_gradients,
        "after training": ksd.analysis.gradients_by_depth(
            {"plain": trained.plain, "distilled": trained.distilled}, *sample
        ),
    }
    for moment, gradients in moments.items():
        if gradients is None:
            continue
        page.text(f"{moment.capitalize()}:")
        page.picture(gradients.plot(), f"gradients by depth, {moment}")
        columns = zip(*gradients.magnitude.values(), strict=True)
        rows = [
            [place, *(f"{value:.3e}" for value in values)]
            for place, values in zip(gradients.places, columns, strict=True)
        ]
        page.table(["layer", *gradients.magnitude], rows)


def analyse_features(
    page: html_page.Page, trained: Trained, train_sample: Sample, test: Sample
) -> None:
    """Writes discriminating features."""
    # A wrapper of the plain network, not trained, knows where its feature is.
    ends = ksd.SelfDistiller(trained.plain, 1, "deep_supervision")
    train_features, test_features = (
        ksd.analysis.exit_features(trained.distilled, each.x)
        | {"plain": ksd.analysis.exit_features(ends, each.x)["final"]}
        for each in (train_sample, test)
    )
    found = ksd.analysis.discriminating_features(
        train_features, train_sample.y, test_features, test.y
    )
    page.heading("Discriminating features")
    page.text(
        f"Scatter on {len(test.y):,} test images; a linear probe trained on the "
        f"features of {len(train_sample.y):,} training images."
    )
    page.picture(found.plot(), "linear probe and scatter by exit")
    columns = (found.names, found.within, found.between, found.ratio)
    rows = [
        [name, f"{within:.3f}", f"{between:.3f}", f"{ratio:.3f}", f"{accuracy:.1%}"]
        for name, within, between, ratio, accuracy in zip(
            *columns, found.probe_accuracy, strict=True
        )
    ]
    header = ["", "within classes", "between", "between / within", "probe"]
    page.table(header, rows)


def analyse_predictions(
    page: html_page.Page, outputs: dict[str, Any], test: Sample
) -> None:
    """Writes what each exit gets right that others do not."""
    found = ksd.analysis.compare_predictions(outputs, test.y)
    page.heading("What each exit gets right that others do not")
    page.text(
        "A cell: share of the test images that the exit of the row gets right and that "
        f"of the column wrong. All are right on {found.all_right:.1%}; at least one is "
        f"on {found.any_right:.1%}."
    )
    page.picture(found.plot(), "who is right where another is wrong")
    rows = zip(found.names, found.accuracy, found.alone, strict=True)
    page.table(
        ["", "accuracy", "right alone"],
        [[name, f"{right:.2%}", f"{alone:.2%}"] for name, right, alone in rows],
    )


def render(
    trained: Trained,
    train_sample: Sample,
    test: Sample,
    *,
    noise: Sequence[float],
    repeats: int,
    seed: int,
    settings: Mapping[str, Any],
) -> str:
    """Returns the page of all analyses.

    Args:
        trained: What is compared.
        train_sample: Training images to analyse, with their classes.
        test: Test images to analyse, with their classes.
        noise: Standard deviations of the noise on the weights.
        repeats: Draws of each size of noise.
        seed: Seed of the noise.
        settings: What the page says of how it was made.
    """
    page = html_page.Page("What self-distillation changes")
    model = trained.distilled
    exits = dict(model.predict(test.x, batch_size=256, verbose=0))
    others = {"ensemble": model.ensemble_model(), "plain": trained.plain}
    outputs = exits | {
        name: each.predict(test.x, batch_size=256, verbose=0)
        for name, each in others.items()
    }
    page.text(
        f"A plain network and one distilled by {model.recipe}, one training of each: "
        "differences may be those of two seeds."
    )
    describe_exits(page, trained, outputs, test)
    analyse_minima(
        page, trained, train_sample, scales=noise, repeats=repeats, seed=seed
    )
    analyse_gradients(page, trained, train_sample)
    analyse_features(page, trained, train_sample, test)
    analyse_predictions(page, exits, test)
    page.heading("How this was made")
    given = {**settings, **environment.versions(), "machine": environment.machine()}
    page.table(["", ""], [[key, str(value)] for key, value in given.items()])
    return page.render()
