"""Batch normalisation with PyTorch's fused kernel.

On PyTorch, Keras computes it as a chain of elementwise operations, each of which writes
a tensor as large as the activations, forward and backward. PyTorch has one kernel for
the whole chain; benchmarks/train_step.py measures the difference.
"""

from collections.abc import Iterable

import keras

from keras_selfdistill.utils.type_aliases import Tensor


def use_fused_kernels(layers: Iterable[keras.Layer]) -> None:
    """Make all batch normalisation among layers train with PyTorch's kernel.

    Subclasses, layers whose `call` was replaced, and those that compute something else
    (renormalised, or synchronised between replicas) stay as they are.

    Args:
        layers: Layers of any kind, changed in place.

    Example:
        >>> layer = keras.layers.BatchNormalization()
        >>> use_fused_kernels([layer, keras.layers.ReLU()])
        >>> layer(keras.ops.ones((4, 8, 8, 2)), training=True).shape[-1]
        2
    """
    for layer in layers:
        if (
            type(layer) is keras.layers.BatchNormalization
            and "call" not in vars(layer)
            and not (layer.renorm or layer.synchronized)
        ):
            use_fused_kernel(layer)


def use_fused_kernel(
    layer: keras.layers.BatchNormalization,
) -> keras.layers.BatchNormalization:
    """Make a batch normalisation layer train with PyTorch's kernel, on that backend.

    The layer stays a plain `keras.layers.BatchNormalization`: it is saved and loaded as
    one. Keras' own operations compute the same result on other backends, in inference,
    and where a mask leaves positions out or a batch is empty.

    Args:
        layer: A `keras.layers.BatchNormalization` that normalises one axis.

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
        kept = mask is not None or symbolic or inputs.numel() == 0
        if kept or not (training and layer.trainable):
            return keras_call(inputs, training=training, mask=mask)
        dtype = torch.promote_types(inputs.dtype, torch.float32)
        gamma = layer.gamma.value.to(dtype) if layer.scale else None
        beta = layer.beta.value.to(dtype) if layer.center else None
        # The kernel reads channels as the second axis, in memory of any order.
        outputs, mean, inverse_deviation = torch.native_batch_norm(
            torch.movedim(inputs.to(dtype), layer.axis, 1),
            gamma,
            beta,
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
            before = moving.value.to(dtype)
            moving.assign(before * layer.momentum + batch * (1.0 - layer.momentum))
        outputs = torch.movedim(outputs, 1, layer.axis)
        # Inputs may be whole numbers, which are not cast in front of a layer.
        return keras.ops.cast(outputs, layer.compute_dtype)

    layer.call = call
    return layer
