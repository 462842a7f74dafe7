"""`EarlyExitResult`: predictions, and at which exit each sample got its own."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class EarlyExitResult:
    """What `EarlyExit.predict` returns, samples in the order given.

    Args:
        predictions: In the base's own form, shape `(samples, classes)`, float32.
        exits: Name of the exit that answered, shape `(samples,)`.
        scores: The criterion's score of the answer, shape `(samples,)`.
        macs_ratio: Multiply-adds spent, heads included, as a share of what the base
            alone would have spent. Above 1 where all went to the end; NaN where the
            cost of a layer is not known.
    """

    predictions: np.ndarray
    exits: np.ndarray
    scores: np.ndarray
    macs_ratio: float
