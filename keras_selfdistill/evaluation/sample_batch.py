"""One batch of samples, with which a model is measured."""

from itertools import islice

import keras
import numpy as np

from keras_selfdistill.evaluation.data_adapter import DataAdapter
from keras_selfdistill.utils.type_aliases import Data


def one_batch(base: keras.Model, sample: Data) -> list[np.ndarray]:
    """Return a sample batch as arrays, one for each input of a base.

    Args:
        base: Functional or Sequential model.
        sample: Arrays, as `DataAdapter.batches` takes them, or a dataset of one batch.

    Raises:
        ValueError: It is not one batch, is empty, or does not fit the base.
        TypeError: It is of an unknown type.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> [array.shape for array in one_batch(model, np.ones((3, 4)))]
        [(3, 4)]
    """
    found = [arrays for arrays, _ in islice(DataAdapter(base).batches(sample), 2)]
    if len(found) != 1 or not len(found[0][0]):
        counts = ("no batch", "no samples", "several batches")
        raise ValueError(
            f"`sample` must be one batch. Received: {counts[len(found)]}. Expected: "
            "a batch of the size used in deployment, such as x[:1]."
        )
    return found[0]
