"""Sizes of a random batch on which a base's last layers are tried."""

from collections.abc import Sequence

from keras_selfdistill.graph.ends.run import BATCH_SIZE, Run
from keras_selfdistill.utils.type_aliases import SymbolicTensor

_UNKNOWN_SIZE = 16  # Of any unknown axis but the batch.
# Numbers in all inputs, outputs and in between; a config can ask for any sizes.
_MOST_NUMBERS = 1 << 26


def batch_shapes(
    inputs: Sequence[SymbolicTensor], runs: Sequence[Run]
) -> list[list[int]]:
    """Return a shape for each input with which the runs are not too long.

    If all tensors together would be too large, the axes of positions are shortened.

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
    if sum(run.known_numbers() for run in runs) <= _MOST_NUMBERS:
        return full
    short = [
        [min(each[0], BATCH_SIZE)]
        + [min(size, _UNKNOWN_SIZE) for size in each[1:-1]]
        + each[1:][-1:]
        for each in full
    ]
    cause = None
    for shapes in (full, short):
        try:
            if sum(run.count_numbers(shapes) for run in runs) <= _MOST_NUMBERS:
                return shapes
        # A user's layers may raise anything on unexpected sizes.
        except Exception as error:
            cause = error
    raise ValueError(
        "The last layers of the base are too large to be tried on a random batch. "
        f"Received: inputs of shapes {[tuple(each.shape) for each in inputs]}. "
        f"Expected: at most {_MOST_NUMBERS} numbers in all tensors from there to the "
        "output, or layers that run on fewer positions, too."
    ) from cause
