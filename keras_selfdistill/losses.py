"""Distillation losses: pure per-sample functions and the Keras losses around them.

Every function returns one value per sample, so that Keras' reduction applies:
sample weights, masks and the number of replicas scale a distillation term exactly
as they scale the label loss.
"""

import keras
from keras import ops

from keras_selfdistill.config import PACKAGE


def soft_target_divergence(teacher_logits, student_logits, *, temperature=1.0):
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


def soft_target_crossentropy(teacher_logits, student_logits, *, temperature=1.0):
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


def binary_soft_target_divergence(teacher_logits, student_logits, *, temperature=1.0):
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


def output_distance(teacher_output, student_output):
    """Mean squared difference of two outputs, as Keras takes it of a label.

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


def hint_distance(teacher_feature, student_feature):
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


def hint_norm(teacher_feature, student_feature):
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


def _divided(logits, temperature):
    """Return logits over the temperature, in float32 at least."""
    if keras.backend.standardize_dtype(logits.dtype) in ("float16", "bfloat16"):
        logits = ops.cast(logits, "float32")
    return ops.divide(logits, temperature)


@keras.saving.register_keras_serializable(package=PACKAGE)
class SoftTargetLoss(keras.losses.Loss):
    """`soft_target_divergence` as a Keras loss on `(teacher_logits, student_logits)`.

    Args:
        temperature: Positive number, T.
        reduction: As in every Keras loss.
        name: Name of the loss.

    Example:
        >>> import numpy as np
        >>> loss = SoftTargetLoss(temperature=1.0)
        >>> print(round(float(loss(np.array([[2.0, 0.0]]), np.array([[0.0, 2.0]]))), 4))
        1.5232
    """

    def __init__(
        self,
        temperature=1.0,
        reduction="sum_over_batch_size",
        name="soft_target_loss",
    ):
        super().__init__(name=name, reduction=reduction)
        self.temperature = temperature

    def call(self, y_true, y_pred):
        """Return the divergence of each sample, shape `(batch,)`."""
        return soft_target_divergence(y_true, y_pred, temperature=self.temperature)

    def get_config(self):
        """Return the arguments that make an equal loss."""
        return {**super().get_config(), "temperature": self.temperature}


@keras.saving.register_keras_serializable(package=PACKAGE)
class HintLoss(keras.losses.Loss):
    """`hint_distance` as a Keras loss on `(teacher_feature, student_feature)`.

    Args:
        reduction: As in every Keras loss.
        name: Name of the loss.

    Example:
        >>> import numpy as np
        >>> print(float(HintLoss()(np.array([[1.0, 2.0]]), np.array([[0.0, 0.0]]))))
        5.0
    """

    def __init__(self, reduction="sum_over_batch_size", name="hint_loss"):
        super().__init__(name=name, reduction=reduction)

    def call(self, y_true, y_pred):
        """Return the squared distance of each sample, shape `(batch,)`."""
        return hint_distance(y_true, y_pred)


@keras.saving.register_keras_serializable(package=PACKAGE)
class SoftTargetCrossentropy(SoftTargetLoss):
    """`soft_target_crossentropy` on `(teacher_logits, student_logits)`.

    Args:
        temperature: Positive number, T.
        reduction: As in every Keras loss.
        name: Name of the loss.

    Example:
        >>> import numpy as np
        >>> even = np.array([[1.0, 1.0]])
        >>> print(round(float(SoftTargetCrossentropy(temperature=3.0)(even, even)), 4))
        0.6931
    """

    def call(self, y_true, y_pred):
        """Return the crossentropy of each sample, shape `(batch,)`."""
        return soft_target_crossentropy(y_true, y_pred, temperature=self.temperature)


@keras.saving.register_keras_serializable(package=PACKAGE)
class BinarySoftTargetLoss(SoftTargetLoss):
    """`binary_soft_target_divergence` on `(teacher_logits, student_logits)`.

    Args:
        temperature: Positive number, T.
        reduction: As in every Keras loss.
        name: Name of the loss.

    Example:
        >>> import numpy as np
        >>> loss = BinarySoftTargetLoss()
        >>> print(round(float(loss(np.array([[2.0]]), np.array([[0.0]]))), 4))
        0.3278
    """

    def call(self, y_true, y_pred):
        """Return the divergence of each sample, shape `(batch,)`."""
        return binary_soft_target_divergence(
            y_true, y_pred, temperature=self.temperature
        )


@keras.saving.register_keras_serializable(package=PACKAGE)
class OutputDistance(keras.losses.Loss):
    """`output_distance` as a Keras loss on `(teacher_output, student_output)`.

    Args:
        reduction: As in every Keras loss.
        name: Name of the loss.

    Example:
        >>> import numpy as np
        >>> teacher, student = np.array([[1.0, 2.0]]), np.array([[1.0, 4.0]])
        >>> print(float(OutputDistance()(teacher, student)))
        2.0
    """

    def __init__(self, reduction="sum_over_batch_size", name="soft_target_loss"):
        super().__init__(name=name, reduction=reduction)

    def call(self, y_true, y_pred):
        """Return the distance of each sample, shape `(batch,)`."""
        return output_distance(y_true, y_pred)


@keras.saving.register_keras_serializable(package=PACKAGE)
class HintNormLoss(HintLoss):
    """`hint_norm` as a Keras loss on `(teacher_feature, student_feature)`.

    Args:
        reduction: As in every Keras loss.
        name: Name of the loss.

    Example:
        >>> import numpy as np
        >>> print(float(HintNormLoss()(np.array([[3.0, 0.0]]), np.array([[0.0, 4.0]]))))
        5.0
    """

    def call(self, y_true, y_pred):
        """Return the norm of each sample's difference, shape `(batch,)`."""
        return hint_norm(y_true, y_pred)
