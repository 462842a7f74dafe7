"""Whether all values of many tensors are finite, in few kernels."""

from collections.abc import Iterable

import keras
from keras import ops

from keras_selfdistill.utils.type_aliases import Tensor


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Return whether all values of all tensors are finite, as a boolean scalar.

    Checks the sum of each tensor, which takes one pass: a sum with NaN or infinity is
    not finite. Nor is a sum beyond the range of float32, but useful gradients are far
    below it. Most tensors of a network are short vectors, which are joined and summed
    at once; PyTorch sums the magnitudes of all tensors in one call.

    Args:
        tensors: Tensors of any shape and dtype; integers are always finite.

    Example:
        >>> import numpy as np
        >>> bool(all_finite([np.ones(3), np.array([np.inf, -np.inf])]))
        False
    """
    floating = [
        ops.cast(tensor, "float32")
        for tensor in tensors
        if "float" in keras.backend.standardize_dtype(tensor.dtype)
    ]
    if not floating:
        return ops.isfinite(0.0)
    if keras.backend.backend() == "torch":
        import torch

        return torch.isfinite(torch.nn.utils.get_total_norm(floating, 1.0))
    vectors = [tensor for tensor in floating if len(tensor.shape) == 1]
    others = [ops.sum(tensor) for tensor in floating if len(tensor.shape) != 1]
    joined = ops.concatenate([*vectors, *([ops.stack(others)] if others else [])])
    if keras.backend.backend() == "jax":
        import jax

        # Else XLA would again sum vector by vector.
        joined = jax.lax.optimization_barrier(joined)
    return ops.isfinite(ops.sum(joined))
