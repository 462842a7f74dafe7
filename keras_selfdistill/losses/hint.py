"""Hint losses: distances between a student's and a teacher's feature."""

import keras
from keras import ops

from keras_selfdistill.utils.config import PACKAGE
from keras_selfdistill.utils.type_aliases import Tensor


def hint_distance(teacher_feature: Tensor, student_feature: Tensor) -> Tensor:
    """Squared distance between two features where either of them is positive.

    `Σ_j (s_j − t_j)²` over the units j with `s_j > 0` or `t_j > 0`. This is the
    feature loss of the public reproduction of BYOT (ICCV 2019, equation 4, which
    does not mention the mask); after a final ReLU the mask changes nothing.

    Args:
        teacher_feature: Tensor of shape `(batch, width)`.
        student_feature: Tensor of shape `(batch, width)`.

    Returns:
        Tensor of shape `(batch,)`.

    Example:
        >>> import numpy as np
        >>> teacher, student = np.array([[1.0, -1.0]]), np.array([[3.0, -2.0]])
        >>> print(float(hint_distance(teacher, student)[0]))
        4.0
    """
    active = ops.logical_or(teacher_feature > 0, student_feature > 0)
    difference = ops.square(student_feature - teacher_feature)
    return ops.sum(ops.where(active, difference, 0.0), axis=-1)


def hint_norm(teacher_feature: Tensor, student_feature: Tensor) -> Tensor:
    """L2 norm of the difference of two features.

    `√(Σ_j (s_j − t_j)²)`, the feature loss of the authors' code of *Self-Distillation:
    Towards Efficient and Compact Neural Networks* (TPAMI 2021) for one sample. Where
    the features are equal its gradient is 0.

    Args:
        teacher_feature: Tensor of shape `(batch, width)`.
        student_feature: Tensor of shape `(batch, width)`.

    Returns:
        Tensor of shape `(batch,)`.

    Example:
        >>> import numpy as np
        >>> print(float(hint_norm(np.array([[3.0, 0.0]]), np.array([[0.0, 4.0]]))[0]))
        5.0
    """
    squared = ops.sum(ops.square(student_feature - teacher_feature), axis=-1)
    # The root's gradient at 0 is infinite, also where the other branch is taken.
    apart = squared > 0
    return ops.where(apart, ops.sqrt(ops.where(apart, squared, 1.0)), 0.0)


@keras.saving.register_keras_serializable(package=PACKAGE)
class HintLoss(keras.losses.Loss):
    """`hint_distance` as a Keras loss on `(teacher_feature, student_feature)`.

    Args:
        reduction: Reduction over the batch, as in every Keras loss.
        name: Name of the loss.

    Example:
        >>> import numpy as np
        >>> print(float(HintLoss()(np.array([[1.0, 2.0]]), np.array([[0.0, 0.0]]))))
        5.0
    """

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str = "hint_loss"
    ) -> None:
        super().__init__(name=name, reduction=reduction)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the squared distance of each sample, shape `(batch,)`."""
        return hint_distance(y_true, y_pred)


@keras.saving.register_keras_serializable(package=PACKAGE)
class HintNormLoss(HintLoss):
    """`hint_norm` as a Keras loss on `(teacher_feature, student_feature)`.

    Args:
        reduction: Reduction over the batch, as in every Keras loss.
        name: Name of the loss.

    Example:
        >>> import numpy as np
        >>> print(float(HintNormLoss()(np.array([[3.0, 0.0]]), np.array([[0.0, 4.0]]))))
        5.0
    """

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the norm of each sample's difference, shape `(batch,)`."""
        return hint_norm(y_true, y_pred)
