"""`EarlyExitResult`: predictions, and the exit of each sample."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from keras_selfdistill.early_exit.cascade import Cascade
from keras_selfdistill.early_exit.exited import Exited
from keras_selfdistill.evaluation.data_adapter import (
    Targets,
    best_classes,
    class_indices,
    sample_weights,
)
from keras_selfdistill.training.logs.progress_bar import print_line
from keras_selfdistill.utils.table import Table, elided


@dataclasses.dataclass(frozen=True, repr=False)
class EarlyExitResult:
    """Result of `EarlyExit.predict`, with samples in the order of the input.

    Args:
        predictions: Outputs in the base's own form, shape `(samples, classes)`,
            float32.
        exits: Name of the exit of each sample, shape `(samples,)`.
        scores: Confidence score of each prediction, shape `(samples,)`.
        macs_ratio: Mean multiply-adds per sample, heads included, as a fraction of the
            base's. Above 1 if all samples reach the last exit; NaN if the cost of a
            layer is unknown.
        latency_ms: Mean of `EarlyExit.latencies_ms` over the exits of the samples: not
            the time of this call. `None` if they are not known.
    """

    predictions: np.ndarray
    exits: np.ndarray
    scores: np.ndarray
    macs_ratio: float
    latency_ms: float | None = None

    def __repr__(self) -> str:
        """Return how many samples exited where, and what that cost."""
        exits = elided(f"{name} {share}" for name, share in self._rows())
        samples = f"{len(self.exits)} samples" + (f", {exits}" if exits else "")
        return f"<EarlyExitResult of {samples}; {self._cost()}>"

    def _repr_html_(self) -> str:
        table = Table(["exit", "share of the samples"], self._rows(), [self._cost()])
        return table.html(f"EarlyExitResult of {len(self.exits)} samples")

    def _rows(self) -> list[list[str]]:
        names, counts = np.unique(self.exits, return_counts=True)
        found = sorted(zip(names.tolist(), counts, strict=True), key=_depth)
        return [[name, f"{count / len(self.exits):.1%}"] for name, count in found]

    def _cost(self) -> str:
        known = not math.isnan(self.macs_ratio)
        ratio = f"{self.macs_ratio:.1%}" if known else "an unknown share"
        latency = "" if self.latency_ms is None else f", {self.latency_ms:.3f} ms"
        return f"{ratio} of the base's multiply-adds{latency}"


class Setting(NamedTuple):
    """What samples are predicted with, at one moment.

    Args:
        cascade: The sections, and the scores of their exits.
        thresholds: Thresholds of all exits but the last.
        exit_names: Names of the exits.
        latencies: Milliseconds until the prediction of each exit, if they are known.
    """

    cascade: Cascade
    thresholds: tuple[float, ...]
    exit_names: tuple[str, ...]
    latencies: tuple[float, ...] | None

    def result(self, exited: Exited) -> EarlyExitResult:
        """Return the result for samples that have exited."""
        exits, samples = exited.exits, max(1, len(exited.exits))
        latency = None
        if self.latencies is not None:
            latency = float(np.array(self.latencies)[exits].sum()) / samples
        return EarlyExitResult(
            predictions=exited.predictions,
            exits=np.array(self.exit_names)[exits],
            scores=exited.scores,
            macs_ratio=float(self.cascade.costs[exits].sum()) / samples,
            latency_ms=latency,
        )


def result_logs(
    result: EarlyExitResult, batches: Sequence[Targets], exit_names: Sequence[str]
) -> dict[str, float]:
    """Return the accuracy, the cost, and the number of samples of each exit.

    Args:
        result: Result of `EarlyExit.predict`.
        batches: Labels and sample weights of the batches.
        exit_names: Names of the exits.

    Raises:
        ValueError: There are no samples, labels are missing or no classes, or weights
            do not match.
    """
    if not len(result.exits):
        raise ValueError(
            "Evaluation needs samples. Received: data without samples. Expected: at "
            "least one sample; a generator can be read only once."
        )
    classes = result.predictions.shape[-1]
    labels = class_indices([targets.labels for targets in batches], classes)
    weights = sample_weights(batches)
    correct = best_classes(result.predictions) == labels
    # As a weighted mean of Keras, which is 0 where all weights are.
    accuracy = (correct * weights).sum() / (weights.sum() or 1.0)
    logs = {
        "accuracy": float(accuracy),
        "macs_ratio": result.macs_ratio,
    }
    for name in exit_names:
        logs[f"{name}_samples"] = float(np.sum(result.exits == name))
    if result.latency_ms is not None:
        logs["latency_ms"] = result.latency_ms
    return logs


def print_logs(logs: Mapping[str, float]) -> None:
    """Print the logs in a line, or log it where Keras logs its progress bar."""
    shown = (
        f"{name}: {value:.0f}" if name.endswith("_samples") else f"{name}: {value:.4f}"
        for name, value in logs.items()
    )
    print_line(" - ".join(shown))


def _depth(row: tuple[str, int]) -> tuple[bool, str]:
    """Order exits: numbered ones first, then the last resort."""
    name, _ = row
    return not name.startswith("exit_"), name
