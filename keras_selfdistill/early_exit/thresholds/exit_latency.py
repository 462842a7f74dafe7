"""Time from the input to the prediction of each exit: measured here, or given."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from keras_selfdistill.costs.latency import (
    check_latencies,
    check_mapping,
    cumulative,
    median_milliseconds,
)
from keras_selfdistill.early_exit.cascade import Cascade
from keras_selfdistill.utils.type_aliases import Data


def measured_latencies(
    cascade: Cascade, names: Sequence[str], arrays: Sequence[np.ndarray]
) -> dict[str, float]:
    """Return the median time of a batch whose samples all exit at the same exit.

    What is measured is what `EarlyExit.predict` does: the sections up to the exit, and
    the scores on the way. As samples that go on are gathered into full batches, the
    mean over samples of these times is the time of a batch.

    Args:
        cascade: The sections.
        names: Names of the exits, shallow to deep.
        arrays: A batch of the size used in deployment, one array for each input.

    Returns:
        Milliseconds by exit; never decreasing.
    """

    def call(exit_index: int) -> Callable[[], object]:
        passed = len(names) - 1 - exit_index
        thresholds = [np.inf] * exit_index + [-np.inf] * passed
        return lambda: cascade.predict(
            list(arrays), None, None, thresholds=thresholds, batch_size=len(arrays[0])
        )

    calls = {name: call(index) for index, name in enumerate(names)}
    return cumulative(median_milliseconds(calls))


def given_latencies(costs: Mapping[str, float], names: Sequence[str]) -> np.ndarray:
    """Return a checked table of times by exit, shape `(exits,)`.

    Args:
        costs: Milliseconds from the input to the prediction of each exit, for a batch.
        names: Names of the exits, shallow to deep.

    Raises:
        TypeError: It is not a mapping.
        ValueError: The names are not those of the exits, or the times are not such.

    Example:
        >>> given_latencies({"final": 2.5, "exit_1": 1}, ["exit_1", "final"]).tolist()
        [1.0, 2.5]
    """
    check_mapping(costs, "exit_1")
    if set(costs) != set(names):
        raise ValueError(
            "`costs` must hold the time of every exit. Received: "
            f"{sorted(map(str, costs))}. Expected: {list(names)}."
        )
    check_latencies({name: costs[name] for name in names})
    return np.array([costs[name] for name in names], "float64")


def check_given(
    sample: Data, costs: Mapping[str, float] | None, budget_ms: float | None
) -> None:
    """Check that latencies are measured or given, and only for a budget of latency.

    Args:
        sample: Batch to measure with, if any.
        costs: Table measured elsewhere, if any.
        budget_ms: Goal of the calibration, if it is latency.

    Raises:
        ValueError: Both are given, or one without a budget.
    """
    given = [
        name
        for name, value in (("sample", sample), ("costs", costs))
        if value is not None
    ]
    if len(given) > 1 or (given and budget_ms is None):
        raise ValueError(
            "Latency is measured, or given as a table, for a budget of it. Received: "
            f"{' and '.join(given)} with latency_budget_ms={budget_ms}. Expected: "
            "latency_budget_ms= with one of sample= and costs=."
        )
