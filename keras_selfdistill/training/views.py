"""Views of a batch: what a recipe shows the network beside the batch itself."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_selfdistill.recipes.base import Recipe
from keras_selfdistill.utils.keras_internals import mask_of, set_mask
from keras_selfdistill.utils.type_aliases import Tensor, TensorStructure


def checked_views(
    recipe: Recipe, inputs: TensorStructure, training: bool
) -> Sequence[TensorStructure]:
    """Return the views of a batch; raise a `ValueError` if they do not fit together."""
    # `train_on_batch` brings arrays on PyTorch.
    tensors = keras.tree.map_structure(
        lambda each: (
            ops.convert_to_tensor(each) if isinstance(each, np.ndarray) else each
        ),
        inputs,
    )
    views = recipe.views(tensors, training=training)
    expected = _shapes(inputs)
    if not isinstance(views, (list, tuple)) or not views:
        received = repr(views)
    else:
        others = [each for each in map(_shapes, views) if not _fit(each, expected)]
        received = f"a view of shapes {others[0]}" if others else ""
    if received:
        raise ValueError(
            f"{type(recipe).__name__}.views must return views like the batch. "
            f"Received: {received}. Expected: a list whose elements have the inputs' "
            f"structure and shapes {expected}, the batch itself first."
        )
    return views


def _shapes(inputs: TensorStructure) -> list[tuple[int | None, ...]]:
    return [tuple(each.shape) for each in keras.tree.flatten(inputs)]


def _fit(
    shapes: list[tuple[int | None, ...]], expected: list[tuple[int | None, ...]]
) -> bool:
    """Return whether shapes are the same as far as they are known."""
    return [*map(len, shapes)] == [*map(len, expected)] and all(
        None in sizes or len({*sizes}) == 1
        for pair in zip(shapes, expected, strict=True)
        for sizes in zip(*pair, strict=True)
    )


def as_one_batch(views: Sequence[TensorStructure]) -> TensorStructure:
    """Return views of a batch as one batch: all views of a sample, then of the next.

    In this order, devices that share a batch need no samples of each other.
    """
    if len(views) == 1:
        return views[0]

    def join(*tensors: Tensor) -> Tensor:
        stacked = ops.stack(tensors, axis=1)
        return ops.reshape(stacked, (-1, *ops.shape(stacked)[2:]))

    return keras.tree.map_structure(join, *views)


def views_of(tensors: TensorStructure, views: int) -> TensorStructure:
    """Return the tensors of `as_one_batch` with shape `(batch, views, …)`."""
    return keras.tree.map_structure(
        lambda each: ops.reshape(each, (-1, views, *ops.shape(each)[1:])), tensors
    )


def first_view(tensors: TensorStructure, views: int) -> TensorStructure:
    """Return the tensors of the first view, with their masks."""

    def first(tensor: Tensor) -> Tensor:
        found, mask = views_of(tensor, views)[:, 0], mask_of(tensor)
        if mask is not None:
            set_mask(found, views_of(mask, views)[:, 0])
        return found

    return keras.tree.map_structure(first, tensors)
