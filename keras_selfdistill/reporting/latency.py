"""`pick_exit`: the deepest exit within a latency budget on this machine."""

import dataclasses
from collections.abc import Sequence

import keras

from keras_selfdistill.costs.latency import median_milliseconds, model_call
from keras_selfdistill.evaluation.sample_batch import one_batch
from keras_selfdistill.training.distiller import SelfDistiller
from keras_selfdistill.utils.type_aliases import Data


@dataclasses.dataclass(frozen=True)
class Latency:
    """Latency of the model of one exit.

    Args:
        name: Name of the exit.
        milliseconds: Median time of a call in milliseconds.
        fits: Whether the latency is within the budget.
    """

    name: str
    milliseconds: float
    fits: bool


@dataclasses.dataclass(frozen=True)
class Picked:
    """The deepest exit within the latency budget, and the latencies of all exits.

    Args:
        name: Name of the exit.
        model: The `exit_model` of the exit.
        table: Latencies of all exits, shallow to deep.
    """

    name: str
    model: keras.Model
    table: tuple[Latency, ...]

    def __str__(self) -> str:
        """Return the name of the exit and the table of latencies."""
        return f"{self.name} of\n{_text(self.table)}"


def pick_exit(
    model: SelfDistiller, max_latency_ms: float, sample: Data, *, repeats: int = 20
) -> Picked:
    """Measure the latency of every exit and return the deepest within a budget.

    The latency is the time of a compiled call (PyTorch: an eager call) after warm-up,
    from an input array to an output array. Measurements of the exits are interleaved.

    Args:
        model: A `SelfDistiller`.
        max_latency_ms: Latency budget: largest median time of a call in milliseconds.
        sample: One batch of the size used in deployment, e.g. `x[:1]`; a tuple or dict
            of arrays for several inputs.
        repeats: Number of measurements per exit.

    Returns:
        The chosen exit, its model, and the latencies of all exits.

    Raises:
        ValueError: No exit is fast enough (the message has the latencies), or an
            argument is out of range.

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
            f"{max_latency_ms}. Measured:\n{_text(table)}\nIncrease the budget, tap "
            "shallower layers, or use a cheaper head, such as head='linear'."
        )
    return Picked(fitting[-1], model.exit_model(fitting[-1]), table)


def _measured(model: SelfDistiller, sample: Data, repeats: int) -> dict[str, float]:
    """Return the median latency of every exit in milliseconds."""
    base = model.exit_graph.base
    arrays = one_batch(base, sample)
    by_input = dict(zip(map(id, base.inputs), arrays, strict=True))
    calls = {}
    for name in model.exit_names:
        part = model.exit_model(name)
        arrays = [by_input[id(tensor)] for tensor in part.inputs]
        calls[name] = model_call(part, arrays)
    return median_milliseconds(calls, repeats)


def _text(table: Sequence[Latency]) -> str:
    return "\n".join(
        f"  {row.name:10} {row.milliseconds:9.3f} ms{'' if row.fits else '  too slow'}"
        for row in table
    )
