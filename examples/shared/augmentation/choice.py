"""Augmentations by name, for `--augmentation` of several programs."""

from collections.abc import Sequence

import numpy as np
from absl import app

from shared.augmentation.batches import AUGMENTED, Augmented
from shared.augmentation.mixing import MIXINGS, Mixing
from shared.augmentation.policies import POLICIES, in_turn

STANDARD = "standard"
KEEP_LABELS = (STANDARD, *POLICIES)
NAMES = (*KEEP_LABELS, *MIXINGS)
EITHER = (("autoaugment", "trivial"), ("mixup", "cutmix"))


def chosen(names: Sequence[str] | None) -> tuple[str, ...]:
    """Returns augmentations in the order in which they are done.

    Args:
        names: Some of `NAMES`; `None`: `"standard"`, crop and mirror, which come first
            whatever else is named.

    Raises:
        UsageError: A name is unknown, or two of one kind are named.
    """
    asked = {STANDARD} if names is None else {*names}
    if not asked or not asked <= {*NAMES}:
        raise app.UsageError(
            f"Received --augmentation={','.join(names or ())}; expected some of "
            f"{', '.join(NAMES)}, separated by commas."
        )
    for pair in EITHER:
        if asked >= {*pair}:
            raise app.UsageError(
                f"Received --augmentation={','.join(names or ())}; expected one of "
                f"{' and '.join(pair)}, not both."
            )
    more = tuple(name for name in NAMES if name in asked and name != STANDARD)
    return more or (STANDARD,)


def mixes_labels(names: Sequence[str]) -> bool:
    """Returns whether labels come as shares of classes, (n, 100), not as indices."""
    return not {*names}.isdisjoint(MIXINGS)


def place_of(names: Sequence[str], wanted: str) -> str:
    """Returns where images are augmented: only `"standard"` can be on the device."""
    return wanted if tuple(names) == (STANDARD,) else "host"


def build(
    names: Sequence[str],
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    place: str,
    crop_padding: int = 4,
    crop_fill: int = 0,
) -> Augmented:
    """Returns the training batches, each a pure function of (seed, epoch, index).

    Args:
        names: As `chosen` returns them.
        images: (n, 32, 32, 3), uint8.
        labels: (n,), class indices.
        batch_size: Images per batch; the last batch of an epoch may be smaller.
        seed: Non-negative integer.
        place: `"device"` or `"host"`; see `place_of`.
        crop_padding: Width of the border around an image, in pixels.
        crop_fill: Its grey level; another than black on the host alone.
    """
    if place_of(names, place) == "device" and not crop_fill:
        return AUGMENTED["device"](
            images, labels, batch_size, seed=seed, crop_padding=crop_padding
        )
    changes = [POLICIES[name] for name in names if name in POLICIES]
    mixings = [Mixing(*MIXINGS[name]) for name in names if name in MIXINGS]
    return Augmented(
        images,
        labels,
        batch_size,
        seed=seed,
        crop_padding=crop_padding,
        crop_fill=crop_fill,
        change=in_turn(changes) if changes else None,
        mix=mixings[0] if mixings else None,
    )
