"""The soft-target loss of a regression: a distance between outputs."""

import keras
from keras import ops

from keras_selfdistill.utils.config import PACKAGE
from keras_selfdistill.utils.type_aliases import Tensor


def output_distance(teacher_output: Tensor, student_output: Tensor) -> Tensor:
    """Mean squared difference of two outputs, as in Keras' `MeanSquaredError`.

    `1/n · Σ_j (s_j − t_j)²`: the soft target of a regression.

    Args:
        teacher_output: Tensor of shape `(batch, n)`.
        student_output: Tensor of shape `(batch, n)`.

    Returns:
        Tensor of shape `(batch,)`.

    Example:
        >>> import numpy as np
        >>> teacher, student = np.array([[1.0, 2.0]]), np.array([[1.0, 4.0]])
        >>> print(float(output_distance(teacher, student)[0]))
        2.0
    """
    return ops.mean(ops.square(student_output - teacher_output), axis=-1)


@keras.saving.register_keras_serializable(package=PACKAGE)
class OutputDistance(keras.losses.Loss):
    """`output_distance` as a Keras loss on `(teacher_output, student_output)`.

    Args:
        reduction: Reduction over the batch, as in every Keras loss.
        name: Name of the loss.

    Example:
        >>> import numpy as np
        >>> teacher, student = np.array([[1.0, 2.0]]), np.array([[1.0, 4.0]])
        >>> print(float(OutputDistance()(teacher, student)))
        2.0
    """

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "soft_target_loss",
    ) -> None:
        super().__init__(name=name, reduction=reduction)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the distance of each sample, shape `(batch,)`."""
        return output_distance(y_true, y_pred)
