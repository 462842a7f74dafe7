"""Heads of dense layers only, for taps of any rank."""

import dataclasses

import keras
from keras import layers

from keras_selfdistill.graph.layout import data_format_of
from keras_selfdistill.heads.base import Head, Target
from keras_selfdistill.heads.pieces import features_last, resize_positions
from keras_selfdistill.utils.config import PACKAGE
from keras_selfdistill.utils.keras_internals import mask_of
from keras_selfdistill.utils.type_aliases import DType, SymbolicTensor


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Head):
    """Pooling and one dense layer with ReLU: the head for taps of any rank.

    The cheapest head, and the one for bases without spatial axes. The mean excludes
    padded steps of a sequence: those of a Keras mask, or else of the base's input
    `padding_mask`, as KerasHub calls it.

    Example:
        >>> tap = keras.Input((32,))
        >>> target = Target(width=64, spatial_shape=(), channels=64)
        >>> Linear()(tap, target, name="exit_1").shape
        (None, 64)
    """

    def __call__(
        self, tap: SymbolicTensor, target: Target, *, name: str, dtype: DType = None
    ) -> SymbolicTensor:
        """Add the head to a symbolic tap of shape `(batch, ..., channels)`."""
        pools = {
            3: layers.GlobalAveragePooling1D,
            4: layers.GlobalAveragePooling2D,
            5: layers.GlobalAveragePooling3D,
        }
        x = tap
        if len(tap.shape) in pools:
            x = pools[len(tap.shape)](
                data_format=data_format_of(tap, target.data_format),
                name=f"{name}_pool",
                dtype=dtype,
            )(x, **_padding(tap, target))
        return layers.Dense(
            target.width, activation="relu", name=f"{name}_feature", dtype=dtype
        )(x)


def _padding(tap: SymbolicTensor, target: Target) -> dict[str, SymbolicTensor]:
    mask = target.padding_mask
    if mask is None or len(tap.shape) != 3 or tap.shape[1] != mask.shape[1]:
        return {}
    return {} if mask_of(tap) is not None else {"mask": mask}


@keras.saving.register_keras_serializable(package=PACKAGE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pointwise(Head):
    """A 1×1 convolution with ReLU, interpolated: for predictions at each position.

    The head for segmentation and for labels of time steps. Interpolation is bilinear.

    Raises:
        ValueError: The tap has no positions, or unknown sizes would be interpolated.

    Example:
        >>> tap = keras.Input((16, 16, 32))
        >>> target = Target(
        ...     width=8, spatial_shape=(64, 64), channels=8, positions=(64, 64))
        >>> Pointwise()(tap, target, name="exit_1").shape
        (None, 64, 64, 8)
    """

    def __call__(
        self, tap: SymbolicTensor, target: Target, *, name: str, dtype: DType = None
    ) -> SymbolicTensor:
        """Add the head to a symbolic tap of shape `(batch, ..., channels)`."""
        if len(tap.shape) != 2 + len(target.positions):
            raise ValueError(
                f"The head of {name!r} needs a tap with the positions of the output. "
                f"Received: a tap of shape {tuple(tap.shape)}. Expected: "
                f"{2 + len(target.positions)} axes."
            )
        x = layers.Dense(
            target.width, activation="relu", name=f"{name}_feature", dtype=dtype
        )(features_last(tap, target, name))
        return resize_positions(x, target.positions, f"{name}_positions")
