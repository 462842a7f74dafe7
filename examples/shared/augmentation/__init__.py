"""Training batches of CIFAR-100, augmented as in the field.

`batches` crops and mirrors, on the host or where the network trains; `policies` changes
single images (AutoAugment, TrivialAugment, Cutout), `mixing` pairs of them (mixup,
CutMix); `choice` builds what the names of a flag ask for.
"""

from shared.augmentation.batches import (
    AUGMENTED,
    Augmented,
    AugmentedOnDevice,
    Draw,
    crop,
    default_place,
    draw_crops,
)
from shared.augmentation.choice import (
    KEEP_LABELS,
    NAMES,
    STANDARD,
    build,
    chosen,
    mixes_labels,
    place_of,
)
from shared.augmentation.mixing import Mixing, one_hot

__all__ = [
    "AUGMENTED",
    "KEEP_LABELS",
    "NAMES",
    "Augmented",
    "AugmentedOnDevice",
    "Draw",
    "STANDARD",
    "Mixing",
    "build",
    "chosen",
    "crop",
    "default_place",
    "draw_crops",
    "mixes_labels",
    "one_hot",
    "place_of",
]
