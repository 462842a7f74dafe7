"""Processes of `torch.distributed` that train together."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import keras

from keras_selfdistill.utils.type_aliases import Tensor

if TYPE_CHECKING:
    import torch


def is_process_group(value: object) -> bool:
    """Return whether a value is a group of processes; always false off PyTorch.

    Example:
        >>> is_process_group("WORLD")
        False
    """
    if keras.backend.backend() != "torch":
        return False
    import torch

    return isinstance(value, torch.distributed.ProcessGroup)


def true_in_all(
    conditions: Sequence[Tensor], group: "torch.distributed.ProcessGroup"
) -> list[Tensor]:
    """Return of each condition whether it is true in all processes, on PyTorch.

    Args:
        conditions: Boolean scalars, as many in every process.
        group: The processes, all of which call this.
    """
    import torch

    found = torch.stack(list(conditions)).to(torch.int32)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN, group)
    return list(found.bool())
