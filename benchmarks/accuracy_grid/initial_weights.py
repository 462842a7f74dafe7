"""Initial weights as in the public codes of the papers, also of the exits."""

import math
from collections.abc import Iterable

import keras
from keras import initializers

FAN_OUT = "He normal by fan-out"
PYTORCH = "PyTorch's own"


def draw(layers: Iterable[keras.layers.Layer], kind: str) -> None:
    """Draws the weights of convolutions and dense layers anew.

    Args:
        layers: Layers of a base or of exits. What exits compute by dense layers without
            bias is a convolution in the papers' code.
        kind: `FAN_OUT`: convolutions normal with variance 2 / fan-out, not truncated;
            or `PYTORCH`: uniform within ±1/√fan-in. Dense layers with a bias are the
            latter in both.
    """
    for layer in layers:
        dense = isinstance(layer, keras.layers.Dense)
        if kind == PYTORCH or (dense and layer.use_bias):
            for name in ("kernel", "bias"):
                if isinstance(weight := getattr(layer, name, None), keras.Variable):
                    limit = 1 / math.sqrt(math.prod(layer.kernel.shape[:-1]))
                    uniform = initializers.RandomUniform(-limit, limit)
                    weight.assign(uniform(weight.shape))
        # A convolution over patches has fans alike, and is drawn by them already; so is
        # a depthwise one, of which PyTorch counts all channels as fan-out.
        elif isinstance(layer, keras.layers.Conv2D) or (
            dense and not layer.name.endswith("_downsample")
        ):
            normal = initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
            layer.kernel.assign(normal(layer.kernel.shape))
