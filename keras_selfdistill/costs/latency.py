"""Latency: medians of interleaved measurements, and tables measured elsewhere."""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_selfdistill.backend.compiled import CompiledModel
from keras_selfdistill.backend.tensors import to_numpy
from keras_selfdistill.utils.number_checks import is_finite_number

REPEATS = 20  # Measurements of which the median is taken.
WARM_UP = 2  # Rounds that are not timed, because they compile.


def median_milliseconds(
    calls: Mapping[str, Callable[[], object]],
    repeats: int = REPEATS,
    after_round: Callable[[int], object] = lambda number: None,
) -> dict[str, float]:
    """Return the median latency of several calls, with interleaved measurements.

    Args:
        calls: Mapping of names to functions, which return when their work is done.
        repeats: Number of measurements per call.
        after_round: Function called with the number of finished rounds, of
            `repeats + WARM_UP`.

    Returns:
        Mapping of names to milliseconds.

    Example:
        >>> list(median_milliseconds({"nothing": lambda: None}, repeats=3))
        ['nothing']
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeats + WARM_UP):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if round_ >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - start))
        after_round(round_ + 1)
    return {name: statistics.median(values) for name, values in times.items()}


def model_call(
    model: keras.Model, arrays: Sequence[np.ndarray]
) -> Callable[[], np.ndarray]:
    """Return a compiled call (PyTorch: an eager call) from arrays to an array.

    Args:
        model: Functional model with one output.
        arrays: Arrays of its inputs.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model_call(model, [np.ones((3, 4), "float32")])().shape
        (3, 2)
    """
    compiled = CompiledModel(keras.Model(list(model.inputs), model.outputs[0]))
    return lambda: to_numpy(compiled(arrays))


def cumulative(milliseconds: Mapping[str, float]) -> dict[str, float]:
    """Return measured times, shallow to deep, without decreases.

    What is deeper contains what is shallower, so only noise makes it seem faster: then
    it counts as long as the shallower.

    Example:
        >>> cumulative({"exit_1": 1.0, "exit_2": 1.5, "final": 1.4})
        {'exit_1': 1.0, 'exit_2': 1.5, 'final': 1.5}
    """
    return dict(
        zip(
            milliseconds,
            itertools.accumulate(milliseconds.values(), max),
            strict=True,
        )
    )


def check_mapping(costs: object, name: str) -> None:
    """Check that what a user gave is a mapping; its values are not looked at.

    Args:
        costs: What was given.
        name: Name that it may have, for the message.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(costs, Mapping):
        raise TypeError(
            "`costs` must map names to milliseconds. Received: "
            f"{costs!r:.80} of type {type(costs).__name__}. Expected, e.g., "
            f"costs={{{name!r}: 1.2, 'final': 3.4}}."
        )


def check_latencies(milliseconds: Mapping[str, Any]) -> None:
    """Check times given by a user, shallow to deep.

    Raises:
        ValueError: One is no number above 0, or is below that of a shallower name.
    """
    for name, value in milliseconds.items():
        if not is_finite_number(value) or not value > 0:
            raise ValueError(
                "`costs` must be milliseconds. Received: "
                f"costs[{name!r}]={value!r}. Expected: a number above 0."
            )
    for (name, value), (deeper, after) in itertools.pairwise(milliseconds.items()):
        if after < value:
            raise ValueError(
                "`costs` must not decrease with depth, because each is the whole time "
                f"from the input on. Received: {value} ms for {name!r}, but {after} "
                f"ms for {deeper!r}, which is deeper. Expected: for {deeper!r} the "
                "time of all layers up to there, not of its own section alone."
            )
