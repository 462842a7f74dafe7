"""The base class of heads: from a tap to a feature as wide as the base's last one."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from keras_selfdistill.graph.layout import dtype_policy
from keras_selfdistill.utils.config import Config
from keras_selfdistill.utils.type_aliases import DType, Shape, SymbolicTensor


@dataclasses.dataclass(frozen=True)
class Target:
    """The end of the base, which a head's feature has to match.

    Args:
        width: Width of the base's last feature, C.
        spatial_shape: Spatial sizes of the deepest spatial tensor, e.g. `(4, 4)`,
            `()` if the base has none.
        channels: Channels of the deepest spatial tensor.
        data_format: `"channels_last"` or `"channels_first"`: data format of that
            tensor, and of a tap if no layer before it has one.
        spatial: The deepest spatial tensor, for heads that read it.
        positions: Axes of the feature between batch and width, if the base predicts at
            each position.
        padding_mask: The base's input of this name, shape `(batch, steps)`: 1 for a
            token, 0 for padding.
    """

    width: int
    spatial_shape: tuple[int, ...]
    channels: int
    data_format: str = "channels_last"
    spatial: SymbolicTensor | None = None
    positions: Shape = ()
    padding_mask: SymbolicTensor | None = None


class Head(Config):
    """Base class of heads; subclass it as a frozen dataclass.

    Attributes:
        reads_whole_base: Whether an exit needs the whole base, so that it cannot be
            deployed without the deeper layers.
    """

    reads_whole_base: ClassVar[bool] = False

    def __call__(
        self, tap: SymbolicTensor, target: Target, *, name: str, dtype: DType = None
    ) -> SymbolicTensor:
        """Add layers named `name_...` to a symbolic tap and return the feature.

        Args:
            tap: Symbolic tensor of the base.
            target: The end of the base.
            name: Name of the exit, the prefix of the layers' names.
            dtype: Dtype policy of the layers.

        Returns:
            Symbolic tensor of shape `(batch, *target.positions, target.width)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__.")

    def features(
        self, taps: Mapping[str, SymbolicTensor], target: Target
    ) -> dict[str, SymbolicTensor]:
        """Add the heads of all exits and return their features.

        Args:
            taps: Symbolic tensors of the base by exit name, shallow to deep.
            target: The end of the base.
        """
        return {
            name: self(tap, target, name=name, dtype=dtype_policy(tap))
            for name, tap in taps.items()
        }

    def narrower(self) -> "Head | None":
        """Return a cheaper head of the same kind, `None` if there is none.

        A recipe's own head is narrowed until all exits are within the budget of 15 % of
        the base's multiply-adds, which are counted in the heads' graph.
        """
        return None
