"""VGG."""

from keras import layers

from keras_selfdistill.networks.blocks import conv_bn_relu
from keras_selfdistill.networks.builder import Tensor, Width, network


@network
def vgg19_bn(inputs: Tensor, width: Width) -> Tensor:
    """VGG-19 with batch normalization (Simonyan & Zisserman, arXiv 1409.1556).

    Sixteen 3x3 convolutions in stages of 2, 2, 4, 4, 4, each stage closed by a 2x2
    max-pool, and one dense layer in place of the three for ImageNet. Arguments as in
    `resnet18`; the smallest input is 32x32.
    """
    x = inputs
    stages = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
    for i, (channels, depth) in enumerate(stages, start=1):
        for j in range(1, depth + 1):
            x = conv_bn_relu(x, width(channels), 3, f"stage{i}_block{j}")
        x = layers.MaxPooling2D(name=f"stage{i}_pool")(x)
    return x
