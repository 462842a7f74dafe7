"""The table of the accuracy benchmark's results."""

import collections
import json
import pathlib
import statistics

from absl import app
from accuracy_methods import METHODS, PRESETS
from published import published


def summarize(values: list[float]) -> str:
    """Returns mean ± standard deviation of a sample, in per cent."""
    mean = f"{100 * statistics.mean(values):.2f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {100 * statistics.stdev(values):.2f}"


def table(folder: pathlib.Path, select: bool) -> str:
    """Returns the Markdown table of the results in a folder."""
    finished = sorted(folder.glob("[!.]*.json"))  # Hidden ones were not written whole.
    cells = [json.loads(path.read_text()) for path in finished]
    if not cells:
        raise app.UsageError(f"{folder} holds no results; expected at least one.")
    rows = collections.defaultdict(list)
    for cell in cells:
        rows[cell["settings"]["method"], cell["settings"]["variant"]].append(cell)
    methods = list(METHODS)
    order = sorted(rows, key=lambda row: (methods.index(row[0]), row[1]))
    taps, model = (cells[0]["settings"][name] for name in ("taps", "model"))
    exits = [f"exit_{i + 1}" for i in range(taps)]
    columns = [*exits, "final", "ensemble"]
    key = "validation_accuracy" if select else "test_accuracy"
    heads = [
        "method",
        *(name.replace("_", " ") for name in columns),
        "seeds",
        "training time ÷ plain's",
        f"published, {model}",
    ]
    lines = [heads, ["---"] * len(heads)]
    for row in order:
        found = [cell[key] for cell in rows[row]]
        line = [".".join(filter(None, row))]
        for name in columns:
            values = [accuracy[name] for accuracy in found if name in accuracy]
            line.append(summarize(values) if values else "–")
        line.append(str(len(found)))
        line.append(_time_ratio(rows[row], rows.get(("plain", ""))))
        lines.append([*line, "–" if row[1] else published(row[0], model)])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{_caption(cells, select)}\n\n{text}\n\n{_made_by(cells, select)}\n"


def _time_ratio(cells, plain):
    if not plain:
        return "–"
    # The processor's time does not count what else ran; an accelerator's has no such.
    clock = "seconds" if cells[0]["machine"]["accelerators"] else "cpu_seconds"
    means = [statistics.mean(cell[clock] for cell in row) for row in (cells, plain)]
    return f"{means[0] / means[1]:.2f}"


def _caption(cells, select):
    kind = "held-out training images" if select else "test images"
    settings = cells[0]["settings"]
    images = settings["train_examples"] or ("45,000" if select else "50,000")
    return (
        f"Accuracy on CIFAR-100's {kind} in per cent, mean ± standard deviation of a "
        f"sample over seeds: {settings['model']}, width multiplier "
        f"{settings['width_multiplier']}, {images} training images, "
        f"{settings['epochs']} epochs. A network is evaluated once, after its last "
        "epoch. Training time: of the processor, or, on an accelerator, by the clock; "
        "that of kd holds its teacher's training. Published: full width, "
        "all images, 200 epochs, PyTorch."
    )


def _made_by(cells, select):
    settings = [cell["settings"] for cell in cells]
    model = (
        ""
        if settings[0]["model"] == PRESETS[settings[0]["preset"]].model
        else (f" --model={settings[0]['model']}")
    )
    seeds = collections.defaultdict(list)
    for s in settings:
        fields = json.dumps(s["fields"]) if s["variant"] else ""
        seeds[s["backend"], s["variant"], fields, s["method"]].append(s["seed"])
    commands = collections.defaultdict(list)  # Methods that one command trains.
    for row in sorted(seeds, key=lambda row: (row[:3], list(METHODS).index(row[3]))):
        commands[*row[:3], tuple(sorted(seeds[row]))].append(row[3])
    lines = [
        f"`KERAS_BACKEND={backend} python benchmarks/accuracy.py --preset="
        f"{settings[0]['preset']}{model}{' --select' if select else ''} "
        f"--methods={','.join(methods)} --seeds={','.join(map(str, its_seeds))}"
        + (f" --variant={variant} --recipe_fields='{fields}'`" if variant else "`")
        for (backend, variant, fields, its_seeds), methods in commands.items()
    ]
    for key in ("versions", "machine"):
        for text in sorted({json.dumps(cell[key]) for cell in cells}):
            values = json.loads(text)
            shown = (f"{name} {value}" for name, value in values.items() if value)
            lines.append(", ".join(shown))
    return "  \n".join(lines)
