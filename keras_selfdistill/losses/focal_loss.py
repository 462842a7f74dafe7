"""Focal crossentropies of logits; Keras' own clip the probabilities they compute.

Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017, equation 5. The values
are equal to Keras' wherever its clipping has no effect.
"""

from collections.abc import Sequence

import keras
from keras import ops

from keras_selfdistill.utils.type_aliases import Tensor


def categorical_focal_crossentropy(
    y_true: Tensor,
    logits: Tensor,
    alpha: float | Sequence[float] = 0.25,
    gamma: float = 2.0,
    label_smoothing: float = 0.0,
    axis: int = -1,
) -> Tensor:
    """Return `Σ_c −α · (1 − p_c)^γ · y_c · log p_c` with `p = softmax(logits)`.

    Args:
        y_true: One-hot labels, shape `(batch, classes)`.
        logits: Logits, shape `(batch, classes)`.
        alpha: Weight of each class, or of all classes, α.
        gamma: Focusing parameter, γ.
        label_smoothing: Share of a label that is spread evenly over all classes.
        axis: Axis of the classes.

    Example:
        >>> import numpy as np
        >>> label = np.array([[1.0, 0.0]])
        >>> found = categorical_focal_crossentropy(label, np.array([[-90.0, 0.0]]))
        >>> print(float(found[0]))
        22.5
    """
    logits = ops.convert_to_tensor(logits)
    y_true = ops.cast(y_true, logits.dtype)
    if label_smoothing:
        share = label_smoothing / logits.shape[axis]
        y_true = y_true * (1.0 - label_smoothing) + share
    log_p = ops.log_softmax(logits, axis=axis)
    focus = alpha * _power(1.0 - ops.exp(log_p), gamma)
    return ops.sum(-focus * y_true * log_p, axis=axis)


def binary_focal_crossentropy(
    y_true: Tensor,
    logits: Tensor,
    apply_class_balancing: bool = False,
    alpha: float = 0.25,
    gamma: float = 2.0,
    label_smoothing: float = 0.0,
    axis: int = -1,
) -> Tensor:
    """Return the mean over labels of `(1 − p_t)^γ` times the binary crossentropy.

    `p_t` is the probability of the label, with `p = σ(logits)`.

    Args:
        y_true: Labels of 0 and 1, shape `(batch, labels)`.
        logits: Logits, shape `(batch, labels)`.
        apply_class_balancing: Whether label 1 is weighted by α and label 0 by 1 − α.
        alpha: Weight of label 1, α.
        gamma: Focusing parameter, γ.
        label_smoothing: Share of a label that is spread evenly over 0 and 1.
        axis: Axis of the labels.

    Example:
        >>> import numpy as np
        >>> found = binary_focal_crossentropy(np.ones((1, 1)), np.full((1, 1), -90.0))
        >>> print(float(found[0]))
        90.0
    """
    logits = ops.convert_to_tensor(logits)
    y_true = ops.cast(y_true, logits.dtype)
    if label_smoothing:
        y_true = y_true * (1.0 - label_smoothing) + 0.5 * label_smoothing
    crossentropy = ops.binary_crossentropy(y_true, logits, from_logits=True)
    p = ops.sigmoid(logits)
    loss = _power(1.0 - (y_true * p + (1.0 - y_true) * (1.0 - p)), gamma) * crossentropy
    if apply_class_balancing:
        loss = (y_true * alpha + (1.0 - y_true) * (1.0 - alpha)) * loss
    return ops.mean(loss, axis=axis)


def _power(base: Tensor, gamma: float) -> Tensor:
    # Below γ = 1 the gradient at 0 is infinite.
    return ops.power(ops.maximum(base, keras.config.epsilon()), gamma)
