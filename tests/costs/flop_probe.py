"""Count the multiply-adds of networks by the backend's own counter; prints JSON.

    KERAS_BACKEND=torch python -m tests.costs.flop_probe

PyTorch: `FlopCounterMode` of a forward pass, which counts matrix products, convolutions
and attention as two operations for each multiply-add. JAX: XLA's `cost_analysis` of
every matrix product and convolution of the traced forward pass, each by itself: of the
whole program it would also count activations, normalisation and what XLA rewrites. XLA
leaves out products with padding, all other counters do not: the padding is written into
the convolution's input. A scanned body counts once a step; layers whose loop would run
a step more, to learn what it returns, are unrolled.
"""

import json
import math

import keras
import numpy as np
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.costs.counting import model_macs


def application(name, size, **options):
    make = getattr(keras.applications, name)
    return make(weights=None, input_shape=(size, size, 3), classes=10, **options)


def u_net():
    inputs = keras.Input((32, 32, 3))
    skip = layers.Conv2D(16, 3, padding="same")(inputs)
    x = layers.Conv2D(32, 3, strides=2, padding="same")(skip)
    x = layers.Conv2DTranspose(16, 3, strides=2, padding="same")(x)
    x = layers.Concatenate()([x, skip])
    return keras.Model(inputs, layers.Conv2D(2, 1, activation="softmax")(x))


def video():
    inputs = keras.Input((8, 16, 16, 3))
    x = layers.Conv3D(8, 3, padding="same")(inputs)
    x = layers.Conv3DTranspose(4, 2, strides=2)(x)
    x = layers.ConvLSTM2D(4, 3, padding="same", unroll=True)(x)
    return keras.Model(inputs, layers.Dense(5)(layers.Flatten()(x)))


def words():
    inputs = keras.Input((20,), dtype="int32")
    x = layers.Embedding(50, 16)(inputs)
    x = layers.Bidirectional(layers.LSTM(12, return_sequences=True))(x)
    x = layers.TimeDistributed(layers.Dense(8))(x)
    return keras.Model(inputs, layers.Dense(5)(layers.GRU(6)(x)))


def sound():
    inputs = keras.Input((64, 2))
    x = layers.Conv1D(16, 5, strides=2, padding="same")(inputs)
    x = layers.SeparableConv1D(16, 3)(x)
    x = layers.Conv1D(16, 3, groups=4)(x)
    x = layers.DepthwiseConv1D(3, depth_multiplier=2)(x)
    x = layers.Conv1DTranspose(8, 3, strides=2)(x)
    return keras.Model(inputs, layers.Dense(5)(layers.SimpleRNN(6, unroll=True)(x)))


def transformer():
    inputs = keras.Input((24,), dtype="int32")
    x = layers.Embedding(50, 32)(inputs)
    x = layers.MultiHeadAttention(4, 8)(x, x)
    x = layers.GroupQueryAttention(8, 4, 2)(x, x)
    x = layers.EinsumDense("abc,cd->abd", output_shape=(24, 48))(x)
    x = layers.Attention()([x, x])
    return keras.Model(inputs, layers.Dense(5)(layers.Flatten()(x)))


SIZES = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16}
WORDS = {"vocabulary_size": 50, "intermediate_dim": 32, "max_sequence_length": 12}


def bert():
    import keras_hub

    return of_fixed_length(keras_hub.models.BertBackbone(**SIZES, **WORDS), 12)


def gpt2():
    import keras_hub

    return of_fixed_length(keras_hub.models.GPT2Backbone(**SIZES, **WORDS), 12)


def of_fixed_length(backbone, length):
    inputs = {
        name: keras.Input((length,), dtype=tensor.dtype, name=name)
        for name, tensor in backbone.input.items()
    }
    return keras.Model(inputs, backbone(inputs))


def vit():
    import keras_hub

    return keras_hub.models.ViTBackbone(
        image_shape=(16, 16, 3), patch_size=4, mlp_dim=32, **SIZES
    )


NETWORKS = {
    "resnet18": lambda: ksd.networks.resnet18(width_multiplier=0.25, classes=10),
    "MobileNetV2": lambda: application("MobileNetV2", 64),
    "EfficientNetB0": lambda: application("EfficientNetB0", 64),
    "ConvNeXtTiny": lambda: application("ConvNeXtTiny", 32),
    "VGG16": lambda: application("VGG16", 32),
    "u_net": u_net,
    "video": video,
    "words": words,
    "sound": sound,
    "transformer": transformer,
    "bert": bert,
    "gpt2": gpt2,
    "vit": vit,
}


def arrays_for(model):
    return keras.tree.map_structure(
        lambda tensor: np.ones((1, *tensor.shape[1:]), tensor.dtype), model.input
    )


def by_torch(model):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    x = arrays_for(model)
    counter = FlopCounterMode(display=False)
    # The counter does not know the fused attention of CPUs.
    by_products = sdpa_kernel(SDPBackend.MATH)
    with counter, by_products:
        model(keras.tree.map_structure(keras.ops.convert_to_tensor, x))
    return counter.get_total_flops() / 2


def by_xla(model):
    import jax

    trainable = [variable.value for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]
    traced = jax.make_jaxpr(
        lambda x: model.stateless_call(trainable, others, x, training=False)[0]
    )(arrays_for(model))
    return _in_jaxpr(traced.jaxpr, {}) / 2


def _in_jaxpr(jaxpr, known):
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            key = f"{equation.params} {[each.aval for each in equation.invars]}"
            if key not in known:
                known[key] = _flops(equation)
            total += known[key]
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in keras.tree.flatten(equation.params):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += times * _in_jaxpr(inner, known)
    return total


def _flops(equation):
    import jax

    shapes = [list(each.aval.shape) for each in equation.invars]
    params = dict(equation.params)
    if equation.primitive.name == "conv_general_dilated":
        _write_out_padding(params, shapes)
    given = [
        jax.ShapeDtypeStruct(shape, each.aval.dtype)
        for shape, each in zip(shapes, equation.invars, strict=True)
    ]
    call = jax.jit(lambda *x: equation.primitive.bind(*x, **params))
    return call.lower(*given).cost_analysis()["flops"]


def _write_out_padding(params, shapes):
    """Make padding part of the input; of a transposed convolution, crop nothing."""
    numbers = params["dimension_numbers"]
    padding = list(params["padding"])
    for i, (before, after) in enumerate(padding):
        kernel = shapes[1][numbers.rhs_spec[2 + i]] - 1
        if params["lhs_dilation"][i] > 1:
            padding[i] = (kernel, kernel)
        else:
            shapes[0][numbers.lhs_spec[2 + i]] += before + after
            padding[i] = (0, 0)
    params["padding"] = tuple(padding)


def main():
    count = {"torch": by_torch, "jax": by_xla}[keras.backend.backend()]
    found = {}
    for name, make in NETWORKS.items():
        model = make()
        own = model_macs(model)
        assert not own.unknown, (name, own.unknown)
        found[name] = [own.macs, count(model)]
        assert math.isfinite(found[name][1])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
