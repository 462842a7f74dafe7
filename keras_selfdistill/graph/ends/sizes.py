"""Sizes of a random batch on which a base's last layers are tried."""

from collections.abc import Sequence

from keras_selfdistill.graph.ends.run import BATCH_SIZE, Run
from keras_selfdistill.utils.type_aliases import SymbolicTensor

_UNKNOWN_SIZE = 16  # Of any unknown axis but the batch.
# Elements of all tensors of a run, which a config can make any number: of a batch, and
# of a single sample where fewer positions do not do, as behind a reshape of an image.
_FEW_ELEMENTS, _MOST_ELEMENTS = 1 << 26, 1 << 28


def batch_shapes(
    inputs: Sequence[SymbolicTensor], runs: Sequence[Run]
) -> list[list[int]]:
    """Return a shape for each input with which the runs are not too long.

    If the tensors would be too large, the axes of positions are shortened, or else one
    sample is all.

    Args:
        inputs: Symbolic inputs of all runs.
        runs: What is to be run on the batch.

    Raises:
        ValueError: There are no such shapes.

    Example:
        >>> import keras
        >>> inputs = [keras.Input((None, 4))]
        >>> runs = [Run(keras.Function(inputs, keras.layers.ReLU()(inputs[0])))]
        >>> batch_shapes(inputs, runs)
        [[2, 16, 4]]
    """
    full = [
        [
            each.shape[0] or BATCH_SIZE,
            *(size or _UNKNOWN_SIZE for size in each.shape[1:]),
        ]
        for each in inputs
    ]
    if max(run.known_elements() for run in runs) <= _FEW_ELEMENTS:
        return full
    short = [
        [min(each[0], BATCH_SIZE)]
        + [min(size, _UNKNOWN_SIZE) for size in each[1:-1]]
        + each[1:][-1:]
        for each in full
    ]
    single = [
        [tensor.shape[0] or 1, *each[1:]]
        for tensor, each in zip(inputs, full, strict=True)
    ]
    cause = None
    few, most = _FEW_ELEMENTS, _MOST_ELEMENTS
    for shapes, limit in ((full, few), (short, few), (single, most)):
        try:
            if max(run.count_elements(shapes) for run in runs) <= limit:
                return shapes
        # A user's layers may raise anything on unexpected sizes.
        except Exception as error:
            cause = error
    raise ValueError(
        "The last layers of the base are too large to be tried on a random batch. "
        f"Received: inputs of shapes {[tuple(each.shape) for each in inputs]}. "
        f"Expected: at most {_MOST_ELEMENTS} elements of all tensors from there to the "
        "output, or layers that run on fewer positions, too."
    ) from cause
