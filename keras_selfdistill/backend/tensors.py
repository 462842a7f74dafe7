"""Rows of arrays and tensors of any backend, on their own device."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_selfdistill.utils.type_aliases import Tensor


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Return a tensor of any of the backends as an array, without a copy if possible.

    Example:
        >>> to_numpy(keras.ops.ones((2,))).tolist()
        [1.0, 1.0]
    """
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        # NumPy has no bfloat16; TensorFlow and JAX bring their own.
        return (tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy()
    return tensor.numpy() if hasattr(tensor, "numpy") else np.asarray(tensor)


def is_on_accelerator(tensor: Tensor) -> bool:
    """Return whether a tensor lies in other memory than the host's.

    Example:
        >>> is_on_accelerator(np.ones((2,)))
        False
    """
    if isinstance(tensor, np.ndarray):
        return False
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return "CPU" not in tensor.device
    if backend == "jax":
        return any(device.platform != "cpu" for device in tensor.devices())
    return bool(tensor.device.type != "cpu")


def fetch_rows(tensors: Sequence[Tensor], rows: Sequence[np.ndarray]) -> np.ndarray:
    """Return rows of several matrices as one array.

    From an accelerator they come in one transfer; on JAX in one for each matrix, all at
    the same time, because gathering them would compile for every number of rows.

    Args:
        tensors: Arrays or tensors of shape `(..., columns)`.
        rows: Indices of the rows of each.

    Example:
        >>> fetch_rows([np.array([[1.0], [2.0]]), np.zeros((1, 1))], [[1], [0]])
        array([[2.],
               [0.]])
    """
    if any(map(is_on_accelerator, tensors)):
        if keras.backend.backend() != "jax":
            chosen = [take_rows(*each) for each in zip(tensors, rows, strict=True)]
            # In mixed precision the base's own output may be of another dtype.
            return to_numpy(
                join_rows([keras.ops.cast(each, "float32") for each in chosen])
            )
        for tensor in tensors:
            tensor.copy_to_host_async()
    return np.concatenate(
        [to_numpy(tensor)[chosen] for tensor, chosen in zip(tensors, rows, strict=True)]
    )


def take_rows(tensor: Tensor, rows: np.ndarray) -> Tensor:
    """Return some rows of an array or tensor, on its own device.

    On JAX the rows are gathered on the host, where a new number of rows compiles
    nothing.

    Example:
        >>> take_rows(np.array([[1.0], [2.0]]), np.array([1])).tolist()
        [[2.0]]
    """
    backend = keras.backend.backend()
    if isinstance(tensor, np.ndarray) or backend == "jax":
        return np.asarray(tensor)[rows]
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.gather(tensor, rows)
    import torch

    with torch.inference_mode():
        return tensor.index_select(0, torch.from_numpy(rows).to(tensor.device))


def join_rows(tensors: Sequence[Tensor]) -> Tensor:
    """Return the rows of several arrays or tensors as one.

    Example:
        >>> join_rows([np.ones((1, 2)), np.ones((2, 2))]).shape
        (3, 2)
    """
    if len(tensors) == 1:
        return tensors[0]
    backend = keras.backend.backend()
    if backend == "jax" or isinstance(tensors[0], np.ndarray):
        return np.concatenate([np.asarray(tensor) for tensor in tensors])
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.concat(tensors, axis=0)
    import torch

    with torch.inference_mode():
        return torch.cat(list(tensors))
