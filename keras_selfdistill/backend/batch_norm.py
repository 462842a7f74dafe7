"""Batch normalisation with PyTorch's fused kernel.

On PyTorch, Keras computes it as a chain of elementwise operations, each of which writes
a tensor as large as the activations, forward and backward. PyTorch has one kernel for
the whole chain; benchmarks/train_step.py measures the difference.
"""

import keras

from keras_selfdistill.utils.type_aliases import Tensor


def use_fused_kernel(
    layer: keras.layers.BatchNormalization,
) -> keras.layers.BatchNormalization:
    """Make a batch normalisation layer train with PyTorch's kernel, on that backend.

    The layer stays a plain `keras.layers.BatchNormalization`: it is saved and loaded as
    one. Keras' own operations compute the same result on other backends.

    Args:
        layer: A `keras.layers.BatchNormalization` that normalises the last axis of
            tensors of shape `(rows, channels)`.

    Returns:
        The layer.

    Example:
        >>> layer = use_fused_kernel(keras.layers.BatchNormalization())
        >>> layer(keras.ops.ones((4, 2)), training=True).shape[-1]
        2
    """
    if keras.backend.backend() != "torch":
        return layer
    import torch

    keras_call = layer.call

    def call(
        inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
    ) -> Tensor:
        symbolic = isinstance(inputs, keras.KerasTensor) or inputs.is_meta
        if not (training and layer.trainable) or mask is not None or symbolic:
            return keras_call(inputs, training=training, mask=mask)
        dtype = torch.promote_types(inputs.dtype, torch.float32)
        outputs, mean, inverse_deviation = torch.native_batch_norm(
            inputs.to(dtype),
            layer.gamma.value.to(dtype),
            layer.beta.value.to(dtype),
            None,
            None,
            True,
            0.0,
            layer.epsilon,
        )
        variance = inverse_deviation.detach() ** -2 - layer.epsilon
        for moving, batch in (
            (layer.moving_mean, mean.detach()),
            (layer.moving_variance, variance),
        ):
            moving.assign(moving * layer.momentum + batch * (1.0 - layer.momentum))
        return outputs.to(inputs.dtype)

    layer.call = call
    return layer
