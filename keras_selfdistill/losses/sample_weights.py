"""Sample weights of losses whose positions differ."""

from keras import ops

from keras_selfdistill.utils.type_aliases import Tensor


def copy_weights(sample_weight: Tensor | None) -> Tensor | None:
    """Return a copy of sample weights for one loss.

    With a mask or an ignored class, a Keras loss multiplies the weights in place. On
    PyTorch this changes those of the next exit, of the metrics and of the user.
    """
    return None if sample_weight is None else ops.copy(sample_weight)


def weights_at_positions(
    sample_weight: Tensor | None, feature: Tensor
) -> Tensor | None:
    """Return sample weights at the positions of a feature, which may be coarser.

    Each position of the feature gets the mean weight of the output positions that it
    is upsampled to.

    Args:
        sample_weight: Weights of shape `(batch,)` or `(batch, *positions)`, or `None`.
        feature: Feature of shape `(batch, *positions, width)`.

    Raises:
        ValueError: The output positions are not a multiple of the feature's.

    Example:
        >>> import numpy as np
        >>> weight = np.array([[1.0, 3.0, 0.0, 0.0]])
        >>> found = weights_at_positions(weight, np.ones((1, 2, 8)))
        >>> print(ops.convert_to_numpy(found))
        [[2. 0.]]
    """
    positions = len(feature.shape) - 2
    if sample_weight is None or not positions:
        return sample_weight
    if len(sample_weight.shape) == positions + 2:
        sample_weight = ops.squeeze(sample_weight, axis=-1)
    fine, coarse = tuple(sample_weight.shape)[1:], tuple(feature.shape)[1:-1]
    if len(fine) != positions or fine == coarse or 1 in fine:
        return sample_weight  # One for each sample, or already one for each position.
    known = [pair for pair in zip(fine, coarse, strict=True) if None not in pair]
    if any(size % own for size, own in known):
        raise ValueError(
            "The hint loss cannot weight positions. Received: sample weights of shape "
            f"{tuple(sample_weight.shape)} and features of shape "
            f"{tuple(feature.shape)}. Expected: positions that are a multiple of the "
            "features', weights of shape (batch,), or a recipe without hint."
        )
    batch, *fine = ops.shape(sample_weight)
    split = [batch]
    for size, own in zip(fine, ops.shape(feature)[1:-1], strict=True):
        split += [own, size // own]
    blocks = ops.reshape(sample_weight, split)
    return ops.mean(blocks, axis=tuple(range(2, 2 * positions + 1, 2)))
