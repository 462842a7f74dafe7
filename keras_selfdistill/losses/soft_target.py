"""Soft-target losses: divergences of a student's logits from a teacher's."""

import keras
from keras import ops

from keras_selfdistill.utils.config import PACKAGE
from keras_selfdistill.utils.type_aliases import ConfigDict, Tensor


def soft_target_divergence(
    teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Kullback-Leibler divergence from teacher to student at a temperature, times T².

    `T² · Σ_c p_c · (log p_c − log q_c)` with `p = softmax(teacher_logits / T)` and
    `q = softmax(student_logits / T)`. The factor T² keeps the size of the gradient
    independent of T (Hinton et al., 2015, section 2.1). Both distributions are taken
    as log-softmax of the logits, so no probability is ever clipped.

    Args:
        teacher_logits: Tensor of shape `(batch, classes)`.
        student_logits: Tensor of shape `(batch, classes)`.
        temperature: Positive number, T.

    Returns:
        Tensor of shape `(batch,)`, in nats.

    Example:
        >>> import numpy as np
        >>> teacher, student = np.array([[2.0, 0.0]]), np.array([[0.0, 2.0]])
        >>> kl = soft_target_divergence(teacher, student)
        >>> print(round(float(kl[0]), 4))
        1.5232
        >>> print(float(soft_target_divergence(teacher, teacher, temperature=3.0)[0]))
        0.0
    """
    teacher = ops.log_softmax(_divided(teacher_logits, temperature), axis=-1)
    student = ops.log_softmax(_divided(student_logits, temperature), axis=-1)
    divergence = ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)
    return divergence * temperature**2


def soft_target_crossentropy(
    teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Crossentropy of the student under the teacher's distribution at a temperature.

    `−Σ_c p_c · log q_c` with `p = softmax(teacher_logits / T)` and
    `q = softmax(student_logits / T)`. Its gradient for the student is that of the
    Kullback-Leibler divergence; it has no factor T² (authors' code of *Self-
    Distillation: Towards Efficient and Compact Neural Networks*, TPAMI 2021).

    Args:
        teacher_logits: Tensor of shape `(batch, classes)`.
        student_logits: Tensor of shape `(batch, classes)`.
        temperature: Positive number, T.

    Returns:
        Tensor of shape `(batch,)`, in nats.

    Example:
        >>> import numpy as np
        >>> even = np.array([[1.0, 1.0]])
        >>> print(round(float(soft_target_crossentropy(even, even)[0]), 4))
        0.6931
    """
    teacher = ops.softmax(_divided(teacher_logits, temperature), axis=-1)
    student = ops.log_softmax(_divided(student_logits, temperature), axis=-1)
    return -ops.sum(teacher * student, axis=-1)


def binary_soft_target_divergence(
    teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Mean over labels of the binary divergence from teacher to student, times T².

    For every label `T² · [p · log(p / q) + (1 − p) · log((1 − p) / (1 − q))]` with
    `p = σ(teacher_logits / T)` and `q = σ(student_logits / T)`, from log-sigmoids of
    the logits, so that nothing is clipped. The mean over labels matches Keras' binary
    crossentropy.

    Args:
        teacher_logits: Tensor of shape `(batch, labels)`.
        student_logits: Tensor of shape `(batch, labels)`.
        temperature: Positive number, T.

    Returns:
        Tensor of shape `(batch,)`, in nats.

    Example:
        >>> import numpy as np
        >>> teacher, student = np.array([[2.0]]), np.array([[0.0]])
        >>> print(round(float(binary_soft_target_divergence(teacher, student)[0]), 4))
        0.3278
    """
    teacher = _divided(teacher_logits, temperature)
    student = _divided(student_logits, temperature)
    yes = ops.log_sigmoid(teacher) - ops.log_sigmoid(student)
    no = ops.log_sigmoid(-teacher) - ops.log_sigmoid(-student)
    divergence = ops.sigmoid(teacher) * yes + ops.sigmoid(-teacher) * no
    return ops.mean(divergence, axis=-1) * temperature**2


def _divided(logits: Tensor, temperature: float) -> Tensor:
    """Return logits over the temperature, in float32 at least."""
    if keras.backend.standardize_dtype(logits.dtype) in ("float16", "bfloat16"):
        logits = ops.cast(logits, "float32")
    return ops.divide(logits, temperature)


@keras.saving.register_keras_serializable(package=PACKAGE)
class SoftTargetLoss(keras.losses.Loss):
    """`soft_target_divergence` as a Keras loss on `(teacher_logits, student_logits)`.

    Args:
        temperature: Positive number, T.
        reduction: Reduction over the batch, as in every Keras loss.
        name: Name of the loss.

    Example:
        >>> import numpy as np
        >>> loss = SoftTargetLoss(temperature=1.0)
        >>> print(round(float(loss(np.array([[2.0, 0.0]]), np.array([[0.0, 2.0]]))), 4))
        1.5232
    """

    def __init__(
        self,
        temperature: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "soft_target_loss",
    ) -> None:
        super().__init__(name=name, reduction=reduction)
        self.temperature = temperature

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the divergence of each sample, shape `(batch,)`."""
        return soft_target_divergence(y_true, y_pred, temperature=self.temperature)

    def get_config(self) -> ConfigDict:
        """Return the arguments that make an equal loss."""
        return {**super().get_config(), "temperature": self.temperature}


@keras.saving.register_keras_serializable(package=PACKAGE)
class SoftTargetCrossentropy(SoftTargetLoss):
    """`soft_target_crossentropy` on `(teacher_logits, student_logits)`.

    Args:
        temperature: Positive number, T.
        reduction: Reduction over the batch, as in every Keras loss.
        name: Name of the loss.

    Example:
        >>> import numpy as np
        >>> even = np.array([[1.0, 1.0]])
        >>> print(round(float(SoftTargetCrossentropy(temperature=3.0)(even, even)), 4))
        0.6931
    """

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the crossentropy of each sample, shape `(batch,)`."""
        return soft_target_crossentropy(y_true, y_pred, temperature=self.temperature)


@keras.saving.register_keras_serializable(package=PACKAGE)
class BinarySoftTargetLoss(SoftTargetLoss):
    """`binary_soft_target_divergence` on `(teacher_logits, student_logits)`.

    Args:
        temperature: Positive number, T.
        reduction: Reduction over the batch, as in every Keras loss.
        name: Name of the loss.

    Example:
        >>> import numpy as np
        >>> loss = BinarySoftTargetLoss()
        >>> print(round(float(loss(np.array([[2.0]]), np.array([[0.0]]))), 4))
        0.3278
    """

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the divergence of each sample, shape `(batch,)`."""
        return binary_soft_target_divergence(
            y_true, y_pred, temperature=self.temperature
        )
