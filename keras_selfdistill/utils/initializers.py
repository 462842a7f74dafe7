"""Initial weights as in the code of *Be Your Own Teacher* and its journal version."""

import math

import keras
from keras import initializers


def initialize_as_papers(model: keras.Model) -> keras.Model:
    """Draw the weights of a network anew, as BYOT's and its journal version's codes do.

    Convolutions: normal with variance 2 / fan-out (He et al., arXiv 1502.01852,
    equation 14), not truncated. Dense layers: kernel and bias uniform within
    ±1/√(inputs), PyTorch's own. The layers keep these initializers in their config.

    Args:
        model: Functional model of convolutions and dense layers.

    Returns:
        The model.

    Example:
        >>> model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(4)])
        >>> weights = initialize_as_papers(model).layers[0].get_weights()
        >>> all(abs(each).max() <= 0.1 for each in weights)
        True
    """
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            layer.kernel_initializer = initializers.VarianceScaling(
                2.0, mode="fan_out", distribution="untruncated_normal"
            )
        elif isinstance(layer, keras.layers.Dense):
            limit = 1.0 / math.sqrt(layer.kernel.shape[0])
            layer.kernel_initializer = initializers.RandomUniform(-limit, limit)
            layer.bias_initializer = initializers.RandomUniform(-limit, limit)
            layer.bias.assign(layer.bias_initializer(layer.bias.shape))
        else:
            continue
        layer.kernel.assign(layer.kernel_initializer(layer.kernel.shape))
    return model
