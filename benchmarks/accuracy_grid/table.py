"""The table of the accuracy benchmark's results."""

import collections
import json
import pathlib
import statistics

from absl import app

from accuracy_grid.frontier import BUDGETS
from accuracy_grid.methods import METHODS
from accuracy_grid.presets import PRESETS
from accuracy_grid.published import published
from shared.augmentation import STANDARD
from shared.run_folder import write


def summarize(values: list[float]) -> str:
    """Returns mean ± standard deviation of a sample, in per cent."""
    mean = f"{100 * statistics.mean(values):.2f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {100 * statistics.stdev(values):.2f}"


def table(folder: pathlib.Path, select: bool) -> str:
    """Returns the Markdown table of the results in a folder."""
    finished = sorted(folder.glob("[!.]*.json"))  # Hidden ones were never finished.
    cells = [json.loads(path.read_text()) for path in finished]
    if not cells:
        raise app.UsageError(f"{folder} holds no results; expected at least one.")
    path = folder.with_name(f"{folder.name}_time.json")
    timed = json.loads(path.read_text()) if path.exists() else None
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
        known = timed["time_over_plain"] if timed and not row[1] else {}
        line.append(f"{known[row[0]]['median']:.2f}" if row[0] in known else "–")
        lines.append([*line, "–" if row[1] else published(row[0], model)])
    parts = [_caption(cells, timed, select), _markdown(lines)]
    if any(cell.get("early_exit") for cell in cells):
        parts += _early_exit({row: rows[row] for row in order}, key)
    return "\n\n".join([*parts, _made_by(cells, timed, select)]) + "\n"


def _markdown(lines):
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _early_exit(rows, key):
    """Returns the caption and the table of early exit at shares of multiply-adds."""
    found = {
        row: [cell for cell in cells if cell.get("early_exit")]
        for row, cells in rows.items()
    }
    first = next(cell["early_exit"] for cells in found.values() for cell in cells)
    heads = ["method", *(f"{budget:.0%}" for budget in BUDGETS), "final", "seeds"]
    lines = [heads, ["---"] * len(heads)]
    for row, cells in found.items():
        line = [".".join(filter(None, row))]
        line += [_within([cell["early_exit"] for cell in cells], b) for b in BUDGETS]
        cells = cells or rows[row]
        final = summarize([cell[key]["final"] for cell in cells])
        lines.append([*line, final, str(len(cells))])
    images = "training images that no method saw"
    if key == "validation_accuracy":
        images = "of them and judged on the others, then the other way round"
    return [
        "Accuracy of early exit on the same images, within a share of the base's "
        "multiply-adds, heads included; final: all take the whole base. All exits "
        "share a threshold on the largest probability, chosen on "
        f"{first['calibrated_on']} {images}; where it is chosen, a sample takes on "
        "average at most that share. Out of reach is less than exit 1 takes.",
        _markdown(lines),
    ]


def _within(found, budget):
    """Returns a cell of that table: accuracies, or what the first exit takes."""
    if not found:
        return "–"
    reached = [each["within"][f"{budget:.0%}"] for each in found]
    if None in reached:
        return f"– (exit 1: {min(found[0]['macs_ratios'].values()):.0%})"
    return summarize([each["accuracy"] for each in reached])


def write_table(results: pathlib.Path, select: bool) -> str:
    """Writes the table of a folder of results beside it, and returns it."""
    text = table(results, select)
    write(results.with_name(f"{results.name}.md"), text.encode())
    return text


def _caption(cells, timed, select):
    kind = "held-out training images" if select else "test images"
    settings = cells[0]["settings"]
    images = settings["train_examples"] or ("45,000" if select else "50,000")
    in_paper = settings["schedule"] == "paper"
    epochs = "" if in_paper else f"{settings['epochs']} epochs, "
    caption = (
        f"Accuracy on CIFAR-100's {kind} in per cent, mean ± standard deviation of a "
        f"sample over seeds: {settings['model']}, width multiplier "
        f"{settings['width_multiplier']}, {images} training images, "
        f"{epochs}{settings['dtype']}. A network is evaluated "
        "once, after its last epoch. Published: full width, all images, 200 epochs, "
        "PyTorch; the papers' public codes keep the epoch that is best on the test "
        "images."
    )
    names = settings.get("augmentation", [STANDARD])
    if in_paper:
        caption += _paper_trainings(cells)
    elif names != [STANDARD]:
        caption += f" Images are cropped, mirrored, and changed by {', '.join(names)}."
    if timed:
        clock = "clock" if timed["machine"]["accelerators"] else "processor"
        caption += (
            f" Training time: of a step, by the {clock}, median of "
            f"{timed['settings']['rounds']} interleaved rounds; that of kd holds its "
            "teacher's training."
        )
    taught = [cell for cell in cells if "teacher_accuracy" in cell]
    if taught:
        found = summarize([cell["teacher_accuracy"] for cell in taught])
        caption += f" The teacher of kd, {taught[0]['settings']['teacher']}: {found}."
    return caption


def _paper_trainings(cells):
    """Returns one sentence for each way to train, and names the methods."""
    methods = collections.defaultdict(set)
    for cell in cells:
        paper = json.dumps(cell["settings"]["paper_training"])
        methods[paper].add(cell["settings"]["method"])
    text = " Methods are trained as by the public code of a paper."
    for paper, names in sorted(methods.items()):
        paper = json.loads(paper)
        momentum = "Nesterov" if paper["nesterov"] else "plain"
        text += (
            f" {', '.join(sorted(names, key=list(METHODS).index))} ({paper['code']}): "
            f"{paper['epochs']} epochs, rate ÷10 after "
            f"{', '.join(map(str, paper['divided_after']))}, {momentum} momentum, "
            f"{' and '.join(paper['augmentation'])} augmentation, crops over "
            f"{paper['crop_fill']}, initial weights {paper['initial_weights']}."
        )
    return text


def _made_by(cells, timed, select):
    settings = [cell["settings"] for cell in cells]
    preset, model = (settings[0][name] for name in ("preset", "model"))
    shared = f" --preset={preset}"
    if model != PRESETS[preset].model:
        shared += f" --model={model}"
    if settings[0]["schedule"] == "paper":
        shared += " --schedule=paper"
    elif (names := settings[0].get("augmentation", [STANDARD])) != [STANDARD]:
        shared += f" --augmentation={','.join(names)}"
    seeds = collections.defaultdict(list)
    for s in settings:
        fields = json.dumps(s["fields"]) if s["variant"] else ""
        seeds[s["backend"], s["variant"], fields, s["method"]].append(s["seed"])
    commands = collections.defaultdict(list)  # Methods that one command trains.
    for row in sorted(seeds, key=lambda row: (row[:3], list(METHODS).index(row[3]))):
        commands[*row[:3], tuple(sorted(seeds[row]))].append(row[3])
    lines = [
        f"`KERAS_BACKEND={backend} python benchmarks/accuracy.py{shared}"
        f"{' --select' if select else ''} "
        f"--methods={','.join(methods)} --seeds={','.join(map(str, its_seeds))}"
        + (f" --variant={variant} --recipe_fields='{fields}'`" if variant else "`")
        for (backend, variant, fields, its_seeds), methods in commands.items()
    ]
    if timed:
        backend = timed["settings"]["backend"]
        lines.append(
            f"`KERAS_BACKEND={backend} python benchmarks/accuracy_time.py{shared}`"
        )
    sources = [*cells, timed] if timed else cells
    for key in ("versions", "machine"):
        for text in sorted({json.dumps(each[key]) for each in sources}):
            values = json.loads(text)
            shown = (f"{name} {value}" for name, value in values.items() if value)
            lines.append(", ".join(shown))
    return "  \n".join(lines)
