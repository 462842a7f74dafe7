"""Pictures: compared with those in `pictures/`, and no label hides another.

After a wanted change, look at the new pictures and renew those to compare with:

    KSD_RENEW_PICTURES=1 python -m pytest -n 0 tests/visualization/test_visualization.py
"""

import itertools
import os
import pathlib
import re
import shutil
import sys
import types

import keras
import matplotlib
import numpy as np
import pytest

import keras_selfdistill as ksd
from keras_selfdistill import analysis, visualization
from keras_selfdistill.early_exit.thresholds.frontier import ExitShares, Frontier
from keras_selfdistill.visualization import style
from keras_selfdistill.visualization.anatomy import anatomy
from tests.conftest import ROOT, make_batch, small_base

pytestmark = pytest.mark.once

PICTURES = pathlib.Path(__file__).with_name("pictures")
EXITS = ["exit_1", "exit_2", "exit_3", "final"]
# Root mean square of the difference of two pictures' pixels, of 255. One version of
# matplotlib draws the same again; another may round a letter otherwise.
TOLERANCE = 2.5


def wrapper(taps=("stem_relu", "out_1"), recipe="byot", base=None, **options):
    keras.utils.set_random_seed(1)
    return ksd.SelfDistiller(base or small_base(), list(taps), recipe, **options)


def accuracy_vs_compute():
    points = {
        "exit_1": (0.33, 0.62),
        "exit_2": (0.6, 0.71),
        "exit_3": (0.63, 0.715),
        "final": (1.0, 0.75),
        "ensemble": (1.07, 0.765),
        "plain base": (1.0, 0.73),
    }
    cost = np.linspace(0.33, 1.0, 30)
    front = types.SimpleNamespace(
        macs_ratio=cost, accuracy=0.62 + 0.16 * np.sqrt(cost - 0.33)
    )
    return visualization.plot_accuracy_vs_compute(points, frontier=front)


def exit_shares():
    t = np.linspace(0.1, 1.0, 50)
    shares = np.stack([1 - t**2, t**2 - t**4, t**4 - t**8, t**8], axis=1)
    return visualization.plot_exit_shares(t, shares, EXITS, chosen=0.8)


def history(validation=True):
    epochs = 1 - np.exp(-np.arange(1, 21) / 6)
    logs = {"loss": list(2 - epochs)}
    for i, name in enumerate(["exit_1_", "exit_2_", "", "ensemble_"]):
        logs[f"{name}accuracy"] = list((0.6 + 0.05 * i) * epochs)
        if validation:
            logs[f"val_{name}accuracy"] = list((0.5 + 0.05 * i) * epochs)
    return visualization.plot_history(types.SimpleNamespace(history=logs))


def outputs(count=5, samples=400):
    random = np.random.default_rng(0)
    labels = random.integers(0, 6, samples)
    found = {}
    for i in range(count):
        logits = random.normal(size=(samples, 6)) * (1 + i)
        logits[np.arange(samples), labels] += 2 + i
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        name = [*EXITS, "ensemble"][i]
        found[name] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return found, labels


def many_exits():
    return wrapper(
        ["stem", "stem_relu", "relu_1", "out_1", "relu_2"],
        "byot",
        small_base(name="five_exits_in_two_rows"),
    )


def exit_shares_by_exit():
    t = np.linspace(0.1, 1.0, 50)
    shares = np.stack([1 - t**2, t**2 - t**4, t**4 - t**8, t**8], axis=1)
    chosen = [0.5, 0.7, np.inf]
    return visualization.plot_exit_shares(t, shares, EXITS, chosen=chosen)


def frontier():
    cost = np.linspace(0.33, 1.0, 30)
    accuracy = 0.62 + 0.16 * np.sqrt(cost - 0.33)
    found = Frontier(("exit_1",), cost[:, None], accuracy, cost, 0.74, (0.6, 0.70))
    return found.plot()


def test_other_names_that_begin_like_an_exit_are_points():
    points = {"exit_2": (0.5, 0.7), "exit_2 by labels": (0.5, 0.6), "exit_x": (1, 0.5)}
    figure = visualization.plot_accuracy_vs_compute(points)
    legend = figure.axes[0].get_legend()
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["exits", "exit_2 by labels", "exit_x"]


FIGURES = {
    "exit_shares_by_exit": exit_shares_by_exit,
    "frontier": frontier,
    "accuracy_vs_compute": accuracy_vs_compute,
    "exit_shares": exit_shares,
    "history": history,
    "history_of_training": lambda: history(validation=False),
    "reliability": lambda: visualization.plot_reliability(*outputs()),
    "model": lambda: visualization.plot_model(wrapper()),
    "model_in_rows": lambda: visualization.plot_model(many_exits()),
    "model_dense": lambda: visualization.plot_model(
        wrapper(recipe=ksd.recipes.TESKD(teacher="dense"), taps=["out_1", "relu_2"])
    ),
    "flat_minima": lambda: analysis.FlatMinima(
        np.array([0.0, 0.01, 0.02]),
        {
            "plain": np.array([[0.7, 0.7], [0.6, 0.65], [0.2, 0.4]]),
            "byot": np.array([[0.72, 0.72], [0.7, 0.71], [0.5, 0.6]]),
        },
        relative=False,
    ).plot(),
    "gradients": lambda: analysis.Gradients(
        tuple(f"conv_{i}" for i in range(12)),
        {"plain": 0.01 * 0.8 ** np.arange(12), "byot": 0.02 * 0.7 ** np.arange(12)},
    ).plot(),
    "features": lambda: analysis.Features(
        (*EXITS, "plain"),
        np.array([4.0, 3.0, 2.0, 1.5, 1.6]),
        np.array([2.0, 2.0, 2.0, 2.5, 2.4]),
        np.array([0.4, 0.5, 0.6, 0.7, 1.0]),
    ).plot(),
    "predictions": lambda: analysis.compare_predictions(*outputs(4)).plot(),
}


def two_exits_apart():
    """Of `EXITS`, and a report's picture; where exits are not the first ones drawn."""
    points = {"exit_2": (0.6, 0.71), "final": (1.0, 0.75), "plain": (1.0, 0.73)}
    return visualization.plot_accuracy_vs_compute(points)


# Looked at by the library alone: the same functions with other names.
MORE = {
    "two_exits": two_exits_apart,
    "noise_on_exits": lambda: analysis.FlatMinima(
        np.array([0.0, 0.1]),
        {name: np.array([[0.7], [0.5]]) for name in ["exit_2", "ensemble", "final"]},
        relative=True,
    ).plot(),
    "gradients_of_exits": lambda: analysis.Gradients(
        ("a", "b"), {name: np.array([1.0, 2.0]) for name in ["plain", "exit_3"]}
    ).plot(),
    "report": lambda: ksd.report(wrapper(), make_batch(), repeats=0, verbose=0).plot(),
    "shares": lambda: ExitShares(
        ("exit_2", "ensemble"), np.array([0.0, 1.0]), np.eye(2), (0.5,)
    ).plot(),
}


@pytest.mark.parametrize("name", FIGURES)
def test_pictures_are_those_that_were_looked_at(name, tmp_path, monkeypatch):
    from matplotlib.testing.compare import compare_images

    boxes = {}
    draw = matplotlib.text.Text.draw

    def note(text, renderer, *args, **kwargs):
        if text.get_visible() and text.get_text().strip():
            boxes[text] = text.get_window_extent(renderer)
        draw(text, renderer, *args, **kwargs)

    monkeypatch.setattr(matplotlib.text.Text, "draw", note)
    expected, actual = PICTURES / f"{name}.png", tmp_path / "actual.png"
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["font.family"] = "DejaVu Sans"  # Comes with matplotlib.
        figure = FIGURES[name]()
        boxes.clear()
        figure.savefig(actual, dpi=60)
    assert figure.get_figwidth() <= 8  # 800 pixels, by default.
    check_text(figure.get_size_inches() * 60, boxes)
    if os.environ.get("KSD_RENEW_PICTURES"):
        shutil.copy(actual, expected)
    difference = compare_images(expected, actual, TOLERANCE)
    assert difference is None, difference


def test_the_documentation_shows_a_picture_of_every_plot():
    page = (ROOT / "docs" / "how_to" / "pictures.md").read_text()
    shown = set(re.findall(r"/pictures/(\w+)\.png\)", page))
    variants = r"_(by_exit|of_training|in_rows|dense)$"
    assert shown == {re.sub(variants, "", name) for name in FIGURES}


def looks_in(figure):
    """Yield (name, colour, marker or `None`) of all that a picture names."""
    to_hex = matplotlib.colors.to_hex
    for ax in figure.axes:
        for line in ax.lines:
            if (
                line.get_linestyle() == "--" and ": " in line.get_label()
            ):  # A threshold.
                yield line.get_label().split(": ")[0], to_hex(line.get_color()), None
            elif line.get_marker() != "None":
                yield line.get_label(), to_hex(line.get_color()), line.get_marker()
        for area in ax.collections:
            if not area.get_label().startswith("_"):
                yield area.get_label(), to_hex(area.get_facecolor()[0]), None
        names = [text.get_text() for text in ax.get_yticklabels()]
        for bars in ax.containers:
            if len(bars) == len(names):
                for name, bar in zip(names, bars, strict=True):
                    yield name, to_hex(bar.get_facecolor()), None


def plot_functions():
    """Return the code of every public function or method that draws."""
    found = {getattr(visualization, name).__code__ for name in visualization.__all__}
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("keras_selfdistill."):
            for each in vars(module).values():
                if isinstance(each, type) and "plot" in vars(each):
                    found.add(each.plot.__code__)
    return found


def test_a_name_looks_the_same_in_all_pictures():
    called, colors, markers = set(), {}, {}
    sys.setprofile(lambda frame, event, _: called.add(frame.f_code))
    try:
        figures = {name: draw() for name, draw in (FIGURES | MORE).items()}
    finally:
        sys.setprofile(None)
    assert plot_functions() <= called
    assert {each.co_name for each in called} >= {"plot", "plot_history"}
    for picture, figure in figures.items():
        for name, color, marker in looks_in(figure):
            colors.setdefault(name, {}).setdefault(color, picture)
            if marker:
                markers.setdefault(name, {}).setdefault(marker, picture)
    names = [*EXITS, "ensemble", "plain", "chosen"]
    for name in names:
        assert len(colors[name]) == 1, colors[name]
        assert len(markers[name]) == 1, markers[name]
    distinct = {(*colors[name], *markers[name]) for name in names}
    assert len(distinct) == len(names)


def check_text(size, boxes):
    """No text hides another, is cut off or too small."""
    assert len(boxes) > 6
    for one, other in itertools.combinations(boxes, 2):
        assert not boxes[one].padded(-1).overlaps(boxes[other].padded(-1)), (one, other)
    for text, box in boxes.items():
        assert text.get_fontsize() >= 8
        assert (box.min >= -1).all(), text
        assert (box.max <= size + 1).all(), text


def test_nothing_is_left_to_pyplot():
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams), plt.get_fignums()
    figure = history()
    assert (dict(matplotlib.rcParams), plt.get_fignums()) == before
    assert figure._repr_png_()[:4] == b"\x89PNG"  # What notebooks show.


def test_every_plot_takes_axes_and_no_path():
    functions = plot_functions()
    assert len(functions) >= 12
    for code in functions:
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        assert arguments[-1] == "ax", code  # By name alone.
        assert code.co_kwonlyargcount, code
        assert not {"path", "file", "filename", "figure"} & {*arguments}, code


# One axes or several, and what draws on them.
GIVEN = {
    "history": (1, visualization.plot_history, {"accuracy": [0.1, 0.2]}),
    "model": (1, lambda ax: visualization.plot_model(wrapper(), ax=ax)),
    "exit_shares": (
        1,
        visualization.plot_exit_shares,
        [0, 1],
        [[1, 0], [0, 1]],
        ["exit_1", "ensemble"],
    ),
    "compute": (1, visualization.plot_accuracy_vs_compute, {"final": (1.0, 0.5)}),
    "reliability": (5, visualization.plot_reliability, *outputs()),
    "front": (
        1,
        Frontier(("exit_1",), np.eye(2)[:1], np.ones(1), np.ones(1), 0.7).plot,
    ),
    "shares": (1, ExitShares(("a", "b"), np.array([0, 1]), np.eye(2)).plot),
    "minima": (
        1,
        analysis.FlatMinima(np.ones(2), {"a": np.eye(2)}, relative=False).plot,
    ),
    "gradients": (1, analysis.Gradients(("a", "b"), {"plain": np.ones(2)}).plot),
    "features": (2, analysis.Features(("final",), *np.ones((3, 1))).plot),
    "predictions": (1, analysis.compare_predictions(*outputs(2)).plot),
    "report": (1, lambda ax: small_report().plot(ax=ax)),
}


def small_report():
    return ksd.report(wrapper(), make_batch(), repeats=0, verbose=0)


def test_pictures_on_given_axes():
    called = set()
    for name, (count, draw, *arguments) in GIVEN.items():
        figure = matplotlib.figure.Figure()
        axes = figure.subplots(1, count)
        sys.setprofile(lambda frame, event, _: called.add(frame.f_code))
        try:
            assert draw(*arguments, ax=axes) is figure, name
        finally:
            sys.setprofile(None)
        assert figure.axes == [*np.ravel(axes)], name
        assert all(ax.has_data() for ax in figure.axes), name
        if count > 1:
            with pytest.raises(ValueError, match=rf"axes.*Received: 1.*{count}"):
                draw(*arguments, ax=figure.axes[0])
    assert plot_functions() <= called


def test_runs_that_users_name_look_like_no_exit():
    names = [f"run {number}" for number in range(8)]
    looks = style.series_styles(names)
    assert len({(look.color, look.marker) for look in looks.values()}) == len(names)
    exits = [*(f"exit_{number}" for number in range(1, 7)), "final", "ensemble"]
    pinned = style.exit_styles([*exits, "plain"]).values()
    assert not {look.color for look in looks.values()} & {s.color for s in pinned}
    assert style.exit_styles(["ensemble"])["ensemble"].marker not in {
        look.marker for look in looks.values()
    }


def test_the_package_imports_matplotlib_only_to_draw(monkeypatch):
    for path in (ROOT / "keras_selfdistill").rglob("*.py"):
        found = re.search(r"^\s*(from|import) matplotlib", path.read_text(), re.M)
        assert not found, path
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install matplotlib.*extra `plot`"):
        history()


def test_exits_keep_their_looks_apart():
    names = [*(f"exit_{i:02d}" for i in range(1, 12)), "final", "ensemble", "plain"]
    styles = style.exit_styles(names)
    assert list(styles) == names
    assert len({look.color for look in styles.values()}) == len(names)
    pairs = {(look.marker, look.line) for look in styles.values()}
    assert len(pairs) >= 10


def test_history_names_what_it_holds():
    with pytest.raises(ValueError, match=r"metric='acuracy'.*Did you mean 'accuracy'"):
        visualization.plot_history({"accuracy": [0.5]}, "acuracy")


def test_a_reliability_diagram_against_the_definition():
    found, labels = outputs(1)
    probabilities = found["exit_1"]
    error = 0.0
    for low in np.arange(15) / 15:
        confidence = probabilities.max(axis=1)
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            right = (probabilities.argmax(axis=1) == labels)[inside].mean()
            error += inside.mean() * abs(right - confidence[inside].mean())
    (panel,) = visualization.plot_reliability(found, labels).axes
    with pytest.raises(ValueError, match="smallest value nan"):
        visualization.plot_reliability({"nan": np.nan * probabilities}, labels)
    assert panel.get_title() == f"exit_1\nECE {100 * error:.1f} %"
    with pytest.raises(ValueError, match=r"needs probabilities.*softmax"):
        visualization.plot_reliability({"final": np.log(probabilities)}, labels)
    with pytest.raises(ValueError, match=r"needs a label.*\(400, 6\).*\(399,\)"):
        visualization.plot_reliability(found, labels[:-1])
    (same,) = visualization.plot_reliability(found, np.eye(6)[labels]).axes
    assert same.get_title() == panel.get_title()


def test_who_teaches_is_drawn_of_a_recipe_with_a_schedule():
    alpha = keras.optimizers.schedules.PolynomialDecay(0.3, 10, 0.0)
    found = anatomy(wrapper(recipe=ksd.recipes.BYOT(alpha=alpha)))
    assert [part.teachers for part in found.parts] == [("final",)] * 2 + [()]


def test_a_loss_of_keras_distillation_teaches_every_exit():
    loss = keras.distillation.FeatureDistillation("mse")
    model = wrapper(recipe="deep_supervision", distillation_losses=[loss])
    assert model.distillation_losses == [loss]
    taught = [part.teachers for part in anatomy(model).parts]
    assert taught == [("final",)] * 2 + [()]


def test_an_input_that_the_base_does_not_use_is_drawn_and_counted():
    used, unused = keras.Input((4,), name="used"), keras.Input((3,), name="unused")
    x = keras.layers.Dense(5, "relu", name="tap")(used)
    outputs = keras.layers.Dense(2, "softmax")(keras.layers.Dense(6, "relu")(x))
    base = keras.Model([used, unused], outputs)
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
    found = anatomy(model)
    assert [part.section for part in found.parts] == [4 * 5, 5 * 6 + 6 * 2]
    assert [part.head for part in found.parts] == [5 * 6 + 6 * 2, 0]
    visualization.plot_model(model)
    sections = {row.name: row.section for row in ksd.profile(model).layers}
    assert sections["unused"] == sections["used"] == "exit_1"


@pytest.mark.parametrize("recipe", ["byot", "deep_supervision"])
def test_parts_cost_what_the_exits_cost(recipe):
    model = wrapper(recipe=recipe)
    found = anatomy(model)
    costs = ksd.profile(model)
    before = 0
    for part in found.parts:
        before += part.section
        assert before + part.head == costs[part.exit_name].macs
    assert found.macs == costs["final"].macs
    taught = [part.teachers for part in found.parts]
    assert taught == ([("final",)] * 2 + [()] if recipe == "byot" else [()] * 3)
