"""The means of several logs in one variable."""

from collections.abc import Mapping, Sequence

import keras
import numpy as np
from keras import ops

from keras_selfdistill.utils.type_aliases import Tensor


class RunningMeans:
    """Means that ignore values on request, and are NaN without any value.

    Means of its own for each loss would be two variables each, a dozen small operations
    in a step, and on JAX two more buffers of its state.

    Args:
        names: Names of the means.

    Attributes:
        metrics: Mapping of the names to the means as Keras metrics, the first of which
            owns the variable of all.

    Example:
        >>> means = RunningMeans(["loss", "label_loss"])
        >>> means.add({"loss": 2.0, "label_loss": 1.0}, counted=True)
        >>> means.add({"loss": float("nan")}, counted=False)
        >>> [float(metric.result()) for metric in means.metrics.values()]
        [2.0, 1.0]
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.metrics = {
            name: RunningMean(self, i, name) for i, name in enumerate(names)
        }
        if names:
            # Row 0 has the sums of values, row 1 those of weights.
            self._sums = self.metrics[names[0]].add_variable(
                shape=(2, len(names)), initializer="zeros", name="sums"
            )

    def add(
        self,
        values: Mapping[str, Tensor],
        *,
        counted: Tensor | bool,
        weight: Tensor | float = 1.0,
    ) -> None:
        """Add a value to some of the means.

        Args:
            values: Mapping of names to scalars.
            counted: Boolean scalar; if false, the values are ignored.
            weight: Weight of the values.
        """
        dtype = self._sums.dtype
        given = np.array([[name in values for name in self.metrics]], dtype)
        new = ops.stack(
            [ops.cast(values.get(name, 0.0), dtype) for name in self.metrics]
        )
        added = ops.concatenate([new[None], given]) * ops.cast(weight, dtype)
        if counted is not True:
            added = ops.where(counted, added, 0.0)
        self._sums.assign_add(added)

    def result(self, index: int) -> Tensor:
        """Return one mean."""
        sums = ops.convert_to_tensor(self._sums)
        return sums[0, index] / sums[1, index]

    def reset(self, index: int) -> None:
        """Set one mean back."""
        others = np.arange(len(self.metrics)) != index
        sums = ops.convert_to_tensor(self._sums)  # JAX's `where` takes no variables.
        self._sums.assign(ops.where(others, sums, 0.0))


class RunningMean(keras.Metric):
    """One of several `RunningMeans` as a Keras metric.

    Args:
        means: All means, which has this one at `index`.
        index: Place of this one.
        name: Name of this one.
    """

    def __init__(self, means: RunningMeans, index: int, name: str) -> None:
        super().__init__(name=name)
        self._means, self._index = means, index

    def update_state(self, value: Tensor, sample_weight: Tensor | float = 1.0) -> None:
        """Add a scalar to this mean alone."""
        self._means.add({self.name: value}, counted=True, weight=sample_weight)

    def result(self) -> Tensor:
        """Return the mean."""
        return self._means.result(self._index)

    def reset_state(self) -> None:
        """Set this mean back, and no other."""
        self._means.reset(self._index)
