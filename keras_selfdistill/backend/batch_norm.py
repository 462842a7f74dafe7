"""Batch normalisation by PyTorch's own kernel.

Keras computes it on PyTorch as a chain of elementwise operations, each of which writes
a tensor as large as the activations, forward and backward. PyTorch has one kernel for
the whole chain (benchmarks/train_step.py shows what it saves).
"""

import keras


def use_fused_kernel(layer):
    """Let a batch normalisation layer train by PyTorch's kernel, on that backend.

    The layer stays what it is, a `keras.layers.BatchNormalization`: it saves and loads
    as one, and with the same result trains by Keras' own operations elsewhere.

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

    def call(inputs, training=None, mask=None):
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
