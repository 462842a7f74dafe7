"""Pick the deepest exit that answers in time on this machine."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from keras_selfdistill.backend.compiled import CompiledModel
from keras_selfdistill.backend.tensors import to_numpy
from keras_selfdistill.evaluation.data_adapter import DataAdapter

WARM_UP = 2  # Rounds before the clock runs: they compile.


@dataclasses.dataclass(frozen=True)
class Latency:
    """How long one exit's model took.

    Args:
        name: The exit.
        milliseconds: Median time of a call.
        fits: Whether that is within the budget.
    """

    name: str
    milliseconds: float
    fits: bool


@dataclasses.dataclass(frozen=True)
class Picked:
    """The deepest exit that fits, and what was measured.

    Args:
        name: The exit.
        model: Its `exit_model`.
        table: What was measured, shallow to deep.
    """

    name: str
    model: keras.Model
    table: tuple[Latency, ...]

    def __str__(self):
        """Return the choice and the table."""
        return f"{self.name} of\n{_text(self.table)}"


def pick_exit(
    model: Any, max_latency_ms: float, sample: Any, *, repeats: int = 20
) -> Picked:
    """Measure every exit's model on this machine and return the deepest that fits.

    Measured is a compiled call (of PyTorch: a call) with the sample as an array, up to
    the answer as an array, warm; the exits take turns.

    Args:
        model: A `SelfDistiller`.
        max_latency_ms: Largest median time of a call, in milliseconds.
        sample: One batch, as it will be served, e.g. `x[:1]`; a tuple or dict of
            arrays for several inputs.
        repeats: How many times each exit is measured.

    Raises:
        ValueError: No exit is fast enough; the error holds the table. Or an argument
            does not fit.

    Example:
        `ksd.pick_exit(model, max_latency_ms=5, sample=x[:1]).model.save("e.keras")`
    """
    if not max_latency_ms > 0 or repeats < 1:
        raise ValueError(
            "`max_latency_ms` must be above 0 and `repeats` at least 1. Received: "
            f"max_latency_ms={max_latency_ms!r}, repeats={repeats!r}."
        )
    table = tuple(
        Latency(name, milliseconds, milliseconds <= max_latency_ms)
        for name, milliseconds in _measured(model, sample, repeats).items()
    )
    fitting = [row.name for row in table if row.fits]
    if not fitting:
        raise ValueError(
            f"No exit is fast enough on this machine. Received: max_latency_ms="
            f"{max_latency_ms}. Measured:\n{_text(table)}\nAllow more time, tap "
            "earlier, or take a lighter head, such as head='linear'."
        )
    return Picked(fitting[-1], model.exit_model(fitting[-1]), table)


def _measured(model, sample, repeats):
    """Return the median time of every exit in milliseconds."""
    base = model._graph.base
    ((arrays, _),) = DataAdapter(base).batches(sample)
    by_input = dict(zip(map(id, base.inputs), arrays, strict=True))
    calls = {}
    for name in model.exit_names:
        part = model.exit_model(name)
        calls[name] = (part, [by_input[id(tensor)] for tensor in part.inputs])
    return median_milliseconds(calls, repeats)


def median_milliseconds(
    calls: Mapping[str, tuple[keras.Model, Sequence[Any]]],
    repeats: int,
    after_round: Callable[[int], Any] = lambda number: None,
) -> dict[str, float]:
    """Return the median time of a call of each of some models, which take turns.

    A call is compiled (of PyTorch: not), warm, and goes from arrays to an array.

    Args:
        calls: By name, a functional model of one output and an array for each of its
            inputs.
        repeats: How many times each is measured.
        after_round: Called with the number of rounds done, of `repeats + WARM_UP`.
    """
    compiled = {
        name: CompiledModel(keras.Model(list(model.inputs), model.outputs[0]))
        for name, (model, _) in calls.items()
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeats + WARM_UP):
        for name, call in compiled.items():
            start = time.perf_counter()
            to_numpy(call(calls[name][1]))
            if round_ >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - start))
        after_round(round_ + 1)
    return {name: statistics.median(values) for name, values in times.items()}


def _text(table):
    return "\n".join(
        f"  {row.name:10} {row.milliseconds:9.3f} ms{'' if row.fits else '  too slow'}"
        for row in table
    )
