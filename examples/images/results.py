"""Measures of a finished training, and the folder that is deployed."""

import dataclasses
import importlib.util
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

import keras_selfdistill as ksd
from images import batches, folder, split
from keras_selfdistill.reporting.report_result import Report
from shared import run_folder

_EXPORT = """
import shared.quiet
import sys
import keras_selfdistill as ksd
ksd.EarlyExit.load(sys.argv[1]).export(sys.argv[2])
"""


class Measured(NamedTuple):
    """What is told of a training; `numbers` can be written as JSON."""

    report: Report
    fast: ksd.EarlyExit
    chosen: str
    probabilities: dict[str, np.ndarray]
    numbers: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Goal:
    """What early exit may cost.

    Args:
        max_accuracy_drop: Largest drop of accuracy below the final exit's.
        guarantee: Confidence level at which new images drop no more.
    """

    max_accuracy_drop: float
    guarantee: float


def measure(
    model: ksd.SelfDistiller,
    plain: keras.Model,
    images: split.Split,
    load: Callable[[split.Part], batches.Whole],
    goal: Goal,
) -> Measured:
    """Measures every exit on the test images, and chooses by other ones.

    Args:
        model: The trained wrapper.
        plain: The same network, trained without exits.
        images: The split.
        load: Function that returns the batches of a part.
        goal: What early exit may cost.
    """
    test = load(images.test)
    report = ksd.report(model, test, base=plain, verbose=0)
    validated = ksd.report(model, load(images.validation), repeats=0, verbose=0)
    fast = ksd.EarlyExit(model).calibrate(
        load(images.calibration),
        max_accuracy_drop=goal.max_accuracy_drop,
        guarantee=goal.guarantee,
    )
    chosen = choose_exit(
        {name: validated[name].accuracy for name in model.exit_names},
        goal.max_accuracy_drop,
    )
    found = fast.predict(test)
    classes = np.argmax(found.predictions, axis=-1)
    probabilities = dict(model.predict(test, verbose=0))
    whole = np.argmax(probabilities["final"], axis=-1)
    numbers = {
        "rows": report.to_dict()["rows"],
        "early_exit": _early_exit(fast, found, classes == images.test.labels),
        "chosen_exit": {
            "name": chosen,
            "validation_accuracy": validated[chosen].accuracy,
            "test_accuracy": report[chosen].accuracy,
        },
        "classes": by_class(images, whole, classes),
    }
    return Measured(report, fast, chosen, probabilities, numbers)


def choose_exit(accuracies: Mapping[str, float], max_drop: float) -> str:
    """Returns the shallowest exit that is accurate enough.

    Args:
        accuracies: Accuracy of the exits, shallow to deep.
        max_drop: Largest drop below the last one's.

    Example:
        >>> choose_exit({"exit_1": 0.8, "exit_2": 0.89, "final": 0.9}, 0.01)
        'exit_2'
    """
    *_, last = accuracies.values()
    # Of two accuracies 0.01 apart, floats may be a little more.
    least = last - max_drop - 1e-9
    return next(name for name, accuracy in accuracies.items() if accuracy >= least)


def _early_exit(fast: ksd.EarlyExit, found: Any, right: np.ndarray) -> dict[str, Any]:
    calibration = fast.calibration
    return {
        "thresholds": [
            limit if np.isfinite(limit) else None for limit in calibration.thresholds
        ],
        "guarantee": calibration.guarantee,
        "accuracy_drop_bound": calibration.accuracy_drop_bound,
        "tested_on": calibration.samples,
        "test_accuracy": float(right.mean()),
        "macs_ratio": found.macs_ratio,
        "samples": {name: int((found.exits == name).sum()) for name in fast.exit_names},
    }


def by_class(
    images: split.Split, whole: np.ndarray, early: np.ndarray
) -> list[dict[str, Any]]:
    """Returns the images and the test accuracy of each class; `None` without any."""
    rows = []
    for index, name in enumerate(images.classes):
        chosen = images.test.labels == index
        any_test = bool(chosen.any())
        rows.append(
            {
                "name": name,
                **{
                    part: int((getattr(images, part).labels == index).sum())
                    for part in split.PARTS
                },
                "final": float((whole[chosen] == index).mean()) if any_test else None,
                "early_exit": (
                    float((early[chosen] == index).mean()) if any_test else None
                ),
            }
        )
    return rows


def write_models(
    measured: Measured, classes: Sequence[str], artifact: pathlib.Path
) -> str | None:
    """Writes the base, the chosen exit and early exit into a folder.

    Returns:
        Why there is no LiteRT file, or `None` if there is one.
    """
    names = "".join(f"{folder.shown(name)}\n" for name in classes)
    run_folder.write(artifact / "classes.txt", names.encode())
    model, fast = measured.fast.model, measured.fast
    run_folder.save(model.final_model(), artifact / "base.keras")
    run_folder.save(model.exit_model(measured.chosen), artifact / "chosen_exit.keras")
    fast.save(artifact / "early_exit.earlyexit")
    return _write_litert(fast, artifact / "early_exit.tflite")


def _write_litert(fast: ksd.EarlyExit, path: pathlib.Path) -> str | None:
    if importlib.util.find_spec("tensorflow") is None:
        return (
            "TensorFlow, which writes it, is not installed: install it and repeat the "
            "command"
        )
    if keras.backend.backend() == "tensorflow":
        fast.export(path)
        return None
    saved = path.with_suffix(".earlyexit")
    examples = pathlib.Path(__file__).resolve().parent.parent
    paths = [str(examples), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", _EXPORT, str(saved), str(path)],
        env={
            **os.environ,
            "KERAS_BACKEND": "tensorflow",
            # The memory there is this process'.
            "CUDA_VISIBLE_DEVICES": "-1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"TensorFlow could not write {path}:\n{done.stderr}")
    return None


def sizes(artifact: pathlib.Path) -> dict[str, int]:
    """Returns the size in bytes of every file of a folder."""
    files = (path for path in artifact.iterdir() if path.is_file())
    return {path.name: path.stat().st_size for path in files}


def draw(
    measured: Measured,
    histories: Mapping[str, list[dict[str, float]]],
    labels: np.ndarray,
    artifact: pathlib.Path,
) -> None:
    """Draws the network, its exits, its training and its reliability, as PNG files.

    Args:
        measured: The measures.
        histories: Logs of the wrapper's phases, by epoch.
        labels: Labels of the test images.
        artifact: Folder to write to.
    """
    show = ksd.visualization
    *_, last = histories.values()
    logs = {name: [row[name] for row in last] for name in last[0] if name != "epoch"}
    figures = {
        "network": show.plot_model(measured.fast.model),
        "accuracy": measured.report.plot(),
        "training": show.plot_history(logs),
        "reliability": show.plot_reliability(measured.probabilities, labels),
        "exit_shares": measured.fast.exit_shares().plot(),
    }
    for name, figure in figures.items():
        path = artifact / "pictures" / f"{name}.png"
        with run_folder.replacing(path) as temporary:
            figure.savefig(temporary, dpi=150, format="png")
