"""CIFAR-size networks of the self-distillation papers, as Functional models.

They differ from `keras.applications` where small images need it: a 3x3 stem without
pooling, so a 32x32 image reaches the last stage as a 4x4 map (1x1 in VGG, 8x8 in
networks of three stages). Every block ends in a layer named `stage{i}_block{j}_out`,
every VGG stage in `stage{i}_pool`; the last two layers are `avg_pool` and
`predictions`, which stays in float32 under mixed precision.

All builders take the arguments described in `resnet18`; `NETWORKS` lists them by name.

Public: the names in `__all__`; the other modules are internal.
"""

from collections.abc import Callable

import keras

from keras_selfdistill.networks.pyramidnet import pyramidnet101_240
from keras_selfdistill.networks.resnet import (
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnext29_8,
)
from keras_selfdistill.networks.taps import stage_ends
from keras_selfdistill.networks.vgg import vgg19_bn
from keras_selfdistill.networks.wide_resnet import (
    wide_resnet20_8,
    wide_resnet28_12,
    wide_resnet44_8,
)

NETWORKS: dict[str, Callable[..., keras.Model]] = {
    each.__name__: each
    for each in (
        resnet18,
        resnet34,
        resnet50,
        resnet101,
        resnet152,
        vgg19_bn,
        wide_resnet20_8,
        wide_resnet28_12,
        wide_resnet44_8,
        resnext29_8,
        pyramidnet101_240,
    )
}

__all__ = [
    "NETWORKS",
    "pyramidnet101_240",
    "resnet101",
    "resnet152",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnext29_8",
    "stage_ends",
    "vgg19_bn",
    "wide_resnet20_8",
    "wide_resnet28_12",
    "wide_resnet44_8",
]
