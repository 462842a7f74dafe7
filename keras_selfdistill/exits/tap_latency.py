"""Time from the input to each block end: measured here, or given as a table."""

from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

from keras_selfdistill.costs.latency import check_latencies, model_call
from keras_selfdistill.exits.block_ends import BlockEnd
from keras_selfdistill.graph.nodes import ancestors
from keras_selfdistill.utils.config import did_you_mean
from keras_selfdistill.utils.type_aliases import SymbolicTensor

BASE = "final"  # Name of the whole base in a table.


def calls_up_to(
    base: keras.Model, ends: Sequence[BlockEnd], arrays: Sequence[np.ndarray]
) -> dict[str, Callable[[], object]]:
    """Return calls that compute each block end from the input, and the base.

    Every block end is the end of a model of its own, so that what a backend fuses
    or overlaps counts as in deployment. Call this within `unrecorded`.

    Args:
        base: The flattened base.
        ends: Block ends, shallow to deep.
        arrays: A batch of the size used in deployment, one array for each input.

    Returns:
        Calls by the names of the block ends, then of `BASE`.

    Raises:
        ValueError: The base has another batch size.
    """
    _check_batch_size(base, len(arrays[0]))
    by_input = dict(zip(map(id, base.inputs), arrays, strict=True))
    tensors = {each.name: each.tensor for each in ends} | {BASE: base.outputs[0]}
    calls: dict[str, Callable[[], object]] = {}
    for name, tensor in tensors.items():
        part = _up_to(base, tensor)
        calls[name] = model_call(part, [by_input[id(each)] for each in part.inputs])
    return calls


def given_latencies(
    ends: Sequence[BlockEnd], costs: Mapping[str, float], exits: int | str
) -> dict[str, float]:
    """Return a checked table of times, shallow to deep.

    Args:
        ends: Block ends, shallow to deep.
        costs: Milliseconds from the input to some of the block ends, and of `BASE`.
        exits: Number of exits to place, or `"auto"`.

    Raises:
        ValueError: A name is unknown or missing, there are too few, or the times
            are not such.
    """
    known = [each.name for each in ends if each.name != BASE]
    unknown = [name for name in costs if name not in (*known, BASE)]
    if unknown:
        raise ValueError(
            "`costs` must hold block ends of the base. Received: "
            f"costs[{unknown[0]!r}]. Expected: names among {known}, and {BASE!r} for "
            f"the whole base.{did_you_mean(str(unknown[0]), known)}"
        )
    found = {name: costs[name] for name in (*known, BASE) if name in costs}
    needed = 1 if isinstance(exits, str) else exits
    if BASE not in found or len(found) - 1 < needed:
        raise ValueError(
            f"`costs` holds too few times for exits={exits!r}. Received: "
            f"{list(found)}. Expected: {BASE!r}, the whole base, and at least "
            f"{needed} of {known}."
        )
    check_latencies(found)
    return found


def _up_to(base: keras.Model, tensor: SymbolicTensor) -> keras.Model:
    """Return the model from the inputs that a tensor needs to its largest values.

    The whole tensor would be copied to the host, which no exit does; a sum might be
    merged into the layer before it.
    """
    needed = ancestors(tensor)
    inputs = [each for each in base.inputs if id(each) in needed]
    axes = tuple(range(1, len(tensor.shape)))
    return keras.Model(inputs, keras.ops.max(tensor, axis=axes) if axes else tensor)


def _check_batch_size(base: keras.Model, samples: int) -> None:
    fixed = {tensor.shape[0] for tensor in base.inputs} - {None, samples}
    if fixed:
        raise ValueError(
            "`sample` must have the batch size of the base. Received: "
            f"{samples} samples. Expected: {fixed.pop()}."
        )
