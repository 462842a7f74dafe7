"""Rows of arrays and tensors of any backend, on their own device."""

import functools
import itertools
from collections.abc import Callable, Sequence

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


def gather_rows(
    tensors: Sequence[Tensor], rows: Sequence[np.ndarray], size: int
) -> Tensor:
    """Return rows of several arrays or tensors as one, on their own device.

    On JAX they are gathered on the host if its memory is the device's. On an
    accelerator a function compiled for the sizes of a tensor and of the result gathers
    them: with few sizes of batches, few are compiled.

    Args:
        tensors: Arrays or tensors that differ in the number of rows alone.
        rows: Indices of the rows of each, at least one.
        size: Number of rows of the result. It is padded by its last row.

    Example:
        >>> arrays = [np.array([[1.0], [2.0]]), np.array([[3.0]])]
        >>> gather_rows(arrays, [np.array([1]), np.array([0])], 3).tolist()
        [[2.0], [3.0], [3.0]]
    """
    missing = size - sum(map(len, rows))
    rows = [*rows[:-1], np.append(rows[-1], np.repeat(rows[-1][-1:], missing))]
    if compiles_gathering(tensors):
        return _gather_on_device(tensors, rows, size)
    pairs = zip(tensors, rows, strict=True)
    return join_rows([take_rows(tensor, chosen) for tensor, chosen in pairs])


def compiles_gathering(tensors: Sequence[Tensor]) -> bool:
    """Return whether `gather_rows` is compiled for the sizes of tensors and results.

    Example:
        >>> compiles_gathering([np.zeros((4, 2))])
        False
    """
    on_jax = keras.backend.backend() == "jax"
    return on_jax and any(map(is_on_accelerator, tensors))


def compile_gathering(tensors: Sequence[Tensor], sizes: Sequence[int]) -> None:
    """Compile what gathers rows of tensors to some sizes, where that is needed.

    Example:
        >>> compile_gathering([np.zeros((4, 2))], [1, 2, 4])
    """
    if not compiles_gathering(tensors):
        return
    one = np.zeros(1, int)
    for tensor, size in itertools.product(tensors, sizes):
        _gather_on_device([tensor, tensor], [one, one], size)


def _gather_on_device(
    tensors: Sequence[Tensor], rows: Sequence[np.ndarray], size: int
) -> Tensor:
    """Gather rows by functions that are compiled for each pair of sizes."""
    gather, gather_more = _jax_gathers()
    result, start = None, 0
    for tensor, chosen in zip(tensors, rows, strict=True):
        end = start + len(chosen)
        indices, places = np.zeros(size, "int32"), np.zeros(size, bool)
        indices[start:end], places[start:end] = chosen[: size - start], True
        if result is None:
            result = gather(tensor, indices)
        else:
            result = gather_more(result, tensor, indices, places)
        start = end
    return result


@functools.cache
def _jax_gathers() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    import jax
    import jax.numpy as jnp

    def gather_more(
        result: Tensor, tensor: Tensor, indices: Tensor, places: Tensor
    ) -> Tensor:
        places = places.reshape(-1, *[1] * (tensor.ndim - 1))
        return jnp.where(places, tensor[indices], result)

    return jax.jit(lambda tensor, indices: tensor[indices]), jax.jit(gather_more)


def take_rows(tensor: Tensor, rows: np.ndarray) -> Tensor:
    """Return some rows of an array or tensor, on its own device but for JAX.

    On JAX the rows are gathered on the host, where a new number of rows compiles
    nothing.

    Example:
        >>> take_rows(np.array([[1.0], [2.0]]), np.array([1])).tolist()
        [[2.0]]
    """
    if len(rows) == tensor.shape[0] and (rows == np.arange(len(rows))).all():
        return tensor
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
