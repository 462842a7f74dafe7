"""The README.md of a run, from its numbers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PICTURES = {
    "accuracy": "Accuracy over multiply-adds",
    "exit_shares": "Where the calibration images exit, by threshold",
    "network": "The network, its taps and heads",
    "reliability": "How far to trust the probabilities of each exit, on test images",
    "training": "The last phase of the training",
}


def render(results: Mapping[str, Any]) -> str:
    """Returns the text, of what `results.json` holds."""
    flags = results["flags"]
    parts = [
        f"# {flags['model']} on {len(results['classes'])} classes",
        _training(results),
        "## Accuracy on the test images",
        _exits(results),
        "## Early exit",
        _early_exit(results),
        "## Files",
        _files(results),
        "## Classes",
        _classes(results),
        "## Pictures",
        *(f"![{text}](pictures/{name}.png)" for name, text in PICTURES.items()),
        "## How this was made",
        _table(["", ""], [[key, value] for key, value in _circumstances(results)]),
    ]
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(_cell(value) for value in line) + " |" for line in lines
    )


def _cell(value: object) -> str:
    """Returns a text that cannot end its cell, also the name of a strange folder."""
    text = str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())


def percent(value: float | None) -> str:
    """Returns a share as the tables show it.

    Example:
        >>> percent(0.1234), percent(None)
        ('12.34%', '–')
    """
    return "–" if value is None else f"{value:.2%}"


def _training(results: Mapping[str, Any]) -> str:
    lines = []
    for name, phases in results["phases"].items():
        told = ", then ".join(
            f"{phase['epochs']} epochs of {phase['name']} (best: {phase['best']})"
            for phase in phases
        )
        lines.append(f"* {name}: {told}")
    return "\n".join(lines)


def _exits(results: Mapping[str, Any]) -> str:
    rows = [
        [
            row["name"],
            percent(row["accuracy"]),
            percent(row["calibration_error"]),
            percent(row["macs_ratio"]),
            f"{row['milliseconds']:.2f}",
        ]
        for row in results["rows"]
    ]
    early = results["early_exit"]
    accuracy, ratio = percent(early["test_accuracy"]), percent(early["macs_ratio"])
    rows.append(["early exit", accuracy, "–", ratio, "–"])
    header = ["", "accuracy", "ECE", "multiply-adds", "ms"]
    tested = sum(row["test"] for row in results["classes"])
    return (
        f"{_table(header, rows)}\n\nOn {tested} images that nothing was trained on or "
        "chosen by. `final` is the deployed base, `plain base` the same network "
        "trained without exits. ECE is the expected calibration error, ms the median "
        "time of one image on the machine below. One training of each: small "
        "differences may be those of two seeds."
    )


def _early_exit(results: Mapping[str, Any]) -> str:
    early = results["early_exit"]
    shares = early["samples"]
    total = sum(shares.values())
    told = ", ".join(f"{name} {count / total:.1%}" for name, count in shares.items())
    if all(limit is None for limit in early["thresholds"]):
        return (
            f"None is guaranteed: {early['tested_on']} images to test on are too few "
            f"for a drop of at most {percent(early['accuracy_drop_bound'])} at "
            f"{early['guarantee']:.0%} confidence, so all images use the final exit. "
            "Raise `--held_out`, `--max_accuracy_drop`, or add images."
        )
    limits = ", ".join(
        "never" if limit is None else f"{limit:.4f}" for limit in early["thresholds"]
    )
    return (
        f"With {early['guarantee']:.0%} confidence, early exit is at most "
        f"{percent(early['accuracy_drop_bound'])} less accurate than the final exit on "
        f"new images from where these came from (tested on {early['tested_on']} images "
        f"for that alone).\n\nThresholds of confidence: {limits}. Of the test images "
        f"exit: {told}."
    )


def _files(results: Mapping[str, Any]) -> str:
    height, width = results["image_size"]
    chosen = results["chosen_exit"]
    about = {
        "base.keras": "the trained network, at the cost of the plain one",
        "chosen_exit.keras": f"`{chosen['name']}`, the shallowest exit within "
        f"{percent(results['flags']['max_accuracy_drop'])} of the final one on the "
        f"validation images: {percent(chosen['test_accuracy'])} on the test images",
        "early_exit.earlyexit": "`ksd.EarlyExit.load` reads it",
        "early_exit.tflite": results["no_litert"]
        or "LiteRT, with early exit in the graph; one image a call",
        "classes.txt": "the classes' names, in the order of the predictions",
    }
    rows = [
        [f"`{name}`", text, _size(results["bytes"].get(name))]
        for name, text in about.items()
    ]
    return (
        f"{_table(['file', '', 'size'], rows)}\n\nAll take RGB images of {height}×"
        f"{width} pixels from 0 to 255, float32; the network's preprocessing is in "
        "them. The measures are those of the largest centred window, resized by "
        "Pillow's bilinear filter."
    )


def _size(count: int | None) -> str:
    return "not written" if count is None else f"{count / 1e6:.2f} MB"


def _classes(results: Mapping[str, Any]) -> str:
    header = ["class", "train", "validation", "calibration", "test"]
    rows = [
        [row[key] for key in ["name", *header[1:]]]
        + [percent(row["final"]), percent(row["early_exit"])]
        for row in results["classes"]
    ]
    return _table([*header, "final", "early exit"], rows)


def _circumstances(results: Mapping[str, Any]) -> list[tuple[str, object]]:
    flags = {f"`--{name}`": value for name, value in results["flags"].items()}
    flags.pop("`--backend`")
    return [
        *flags.items(),
        *results["versions"].items(),
        ("machine", results["machine"]),
    ]
