"""Multiply-adds against closed forms, and against the counters of PyTorch and JAX."""

import inspect
import json

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_selfdistill as ksd
from keras_selfdistill.costs import layer_rules, operation_rules
from keras_selfdistill.costs.counting import Count, model_macs
from keras_selfdistill.costs.free_operations import FREE_LAYERS, FREE_OPERATIONS
from keras_selfdistill.utils.config import is_of_keras
from tests.conftest import require_backend, run_python, small_base

ROWS, SEQUENCE = (6,), (5, 8)


def chain(shape, *stack, dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *stack])


def computed(shape, function):
    """A model that computes a function of operations, whose calls are its nodes."""
    inputs = keras.Input(shape)
    return keras.Model(inputs, function(inputs))


def on_itself(layer, shape=SEQUENCE):
    """A model that gives a layer its input twice."""
    inputs = keras.Input(shape)
    merges = isinstance(layer, (layers.Attention, layers.AdditiveAttention, layers.Dot))
    return keras.Model(inputs, layer([inputs, inputs] if merges else (inputs, inputs)))


class Pair(layers.Layer):
    """Two arguments from a pair."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, pair):
        return self.layer(*pair)


CLOSED_FORMS = {
    "dense": (lambda: chain(ROWS, layers.Dense(3)), 6 * 3),
    "einsum_dense": (
        lambda: chain(SEQUENCE, layers.EinsumDense("abc,cd->abd", (5, 3))),
        5 * 8 * 3,
    ),
    "embedding": (lambda: chain((5,), layers.Embedding(10, 3), dtype="int32"), 0),
    "conv_groups": (
        lambda: chain((6, 6, 4), layers.Conv2D(8, 3, groups=2)),
        16 * 9 * 2 * 8,
    ),
    "conv_channels_first": (
        lambda: chain((2, 9), layers.Conv1D(3, 3, data_format="channels_first")),
        7 * 3 * 2 * 3,
    ),
    "conv_3d": (lambda: chain((4, 4, 4, 2), layers.Conv3D(3, 3)), 8 * 27 * 2 * 3),
    "transposed": (
        lambda: chain((4, 4, 2), layers.Conv2DTranspose(3, 3, strides=2)),
        16 * 9 * 2 * 3,
    ),
    "depthwise": (
        lambda: chain((6, 6, 4), layers.DepthwiseConv2D(3, depth_multiplier=2)),
        16 * 9 * 8,
    ),
    "separable": (
        lambda: chain((9, 4), layers.SeparableConv1D(5, 3, depth_multiplier=2)),
        7 * (3 * 8 + 8 * 5),
    ),
    # Four projections; scores and their weighted sum.
    "multi_head_attention": (
        lambda: on_itself(Pair(layers.MultiHeadAttention(2, 4))),
        4 * 5 * 8 * 8 + 2 * 5 * 5 * 8,
    ),
    "group_query_attention": (
        lambda: on_itself(Pair(layers.GroupQueryAttention(4, 4, 2))),
        5 * 8 * (16 + 8 + 8) + 5 * 16 * 8 + 2 * 5 * 5 * 16,
    ),
    "attention": (lambda: on_itself(layers.Attention()), 2 * 5 * 5 * 8),
    "additive_attention": (
        lambda: on_itself(layers.AdditiveAttention()),
        2 * 5 * 5 * 8,
    ),
    "dot": (lambda: on_itself(layers.Dot(axes=2)), 5 * 5 * 8),
    "lstm": (lambda: chain(SEQUENCE, layers.LSTM(3)), 5 * 4 * (8 * 3 + 3 * 3)),
    "gru": (lambda: chain(SEQUENCE, layers.GRU(3)), 5 * 3 * (8 * 3 + 3 * 3)),
    "bidirectional": (
        lambda: chain(SEQUENCE, layers.Bidirectional(layers.SimpleRNN(3))),
        2 * 5 * (8 * 3 + 3 * 3),
    ),
    "cells": (
        lambda: chain(SEQUENCE, layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)])),
        5 * 4 * (8 * 3 + 3 * 3) + 5 * 3 * (3 * 2 + 2 * 2),
    ),
    "conv_lstm": (
        lambda: chain((5, 8, 8, 2), layers.ConvLSTM2D(3, 3)),
        5 * 36 * 9 * (2 + 3) * 12,
    ),
    "each_step": (
        lambda: chain(SEQUENCE, layers.TimeDistributed(layers.Dense(3))),
        5 * 8 * 3,
    ),
    "wrapper": (
        lambda: chain(ROWS, layers.SpectralNormalization(layers.Dense(3))),
        6 * 3,
    ),
    "matmul": (lambda: computed(SEQUENCE, lambda x: ops.matmul(x, ones(8, 3))), 120),
    "tensordot": (
        lambda: chain(
            SEQUENCE, layers.Lambda(lambda x: ops.tensordot(x, ones(5, 8, 3), 2))
        ),
        5 * 8 * 3,
    ),
    "einsum": (
        lambda: chain(
            SEQUENCE, layers.Lambda(lambda x: ops.einsum("...a,ab", x, ones(8, 3)))
        ),
        5 * 8 * 3,
    ),
    "convolution": (
        lambda: chain((9, 4), layers.Lambda(lambda x: ops.conv(x, ones(3, 4, 5)))),
        7 * 3 * 4 * 5,
    ),
    "depthwise_op": (
        lambda: chain(
            (9, 4), layers.Lambda(lambda x: ops.depthwise_conv(x, ones(3, 4, 2)))
        ),
        7 * 3 * 4 * 2,
    ),
    "separable_op": (
        lambda: chain(
            (9, 4),
            layers.Lambda(
                lambda x: ops.separable_conv(x, ones(3, 4, 2), ones(1, 8, 5))
            ),
        ),
        7 * (3 * 8 + 8 * 5),
    ),
    "transposed_op": (
        lambda: chain(
            (4, 2), layers.Lambda(lambda x: ops.conv_transpose(x, ones(3, 5, 2), 2))
        ),
        4 * 2 * 3 * 5,
    ),
    "attention_op": (
        lambda: chain(
            (5, 2, 3), layers.Lambda(lambda x: ops.dot_product_attention(x, x, x))
        ),
        2 * 5 * 5 * 2 * 3,
    ),
    "inner": (lambda: computed(SEQUENCE, lambda x: ops.inner(x, x)), 200),
    "outer": (lambda: chain(ROWS, layers.Lambda(lambda x: ops.outer(x, x))), 0),
    "mean": (lambda: chain(ROWS, layers.Lambda(lambda x: ops.average(x, -1))), 0),
    "weighted_mean": (
        lambda: computed(SEQUENCE, lambda x: ops.average(x, -1, weights=ones(8))),
        5 * 8,
    ),
    "cross": (lambda: chain((5, 3), layers.Lambda(lambda x: ops.cross(x, x))), 30),
    "grey": (
        lambda: chain((4, 4, 3), layers.Lambda(ops.image.rgb_to_grayscale)),
        4 * 4 * 3,
    ),
    "resampled": (lambda: chain((4, 4, 3), layers.UpSampling2D()), 0),
    "nested": (lambda: chain(ROWS, chain(ROWS, layers.Dense(3)), layers.Dense(2)), 24),
}


def ones(*shape):
    return np.ones(shape, "float32")


@pytest.mark.once
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_forms(name):
    make, expected = CLOSED_FORMS[name]
    assert model_macs(make()) == Count(expected)


class Block(layers.Layer):
    """A residual block that returns more than tensors, and may hold what is unknown."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner
        self.norm = layers.LayerNormalization()
        self.dense = layers.Dense(8, name="dense")

    def build(self, shape):
        for layer in (self.inner, self.norm, self.dense):
            layer.build(shape)

    def call(self, x, training=None):
        scores = None
        return self.dense(self.norm(self.inner(x), training=training)), scores

    def compute_output_spec(self, x, training=None):
        return keras.KerasTensor(x.shape, x.dtype)


class Stack(layers.Layer):
    """Blocks that could not be called on symbolic tensors by themselves."""

    def __init__(self, *blocks, **kwargs):
        super().__init__(**kwargs)
        self.blocks = blocks

    def build(self, shape):
        for block in self.blocks:
            block.build(shape)

    def call(self, x):
        for block in self.blocks:
            x, _ = block(x)
        return x

    def compute_output_shape(self, shape):
        return shape


class Again(layers.Dense):
    """Keras' layer, and one more product."""

    def build(self, shape):
        super().build(shape)
        self.again = self.add_weight(shape=(self.units, self.units))

    def call(self, x, training=None):
        return ops.matmul(super().call(x), self.again)


class Fourier(layers.Layer):
    """Products that shapes do not tell."""

    def call(self, x):
        return ops.fft2((x, ops.zeros_like(x)))[0]


class Opaque(layers.Layer):
    """A kernel that is applied to values, not to symbolic tensors."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]))

    def call(self, x):
        return keras.ops.convert_to_tensor(
            ops.convert_to_numpy(x) @ self.kernel.numpy()
        )

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


@pytest.mark.once
def test_layers_of_layers_are_opened_and_left_as_they_were():
    blocks = [Block(layers.Dense(8), name=f"block_{i}") for i in range(2)]
    model = chain(SEQUENCE, Stack(*blocks))
    expected = model.predict(np.ones((2, 5, 8)), verbose=0)
    assert model_macs(model) == Count(4 * 5 * 8 * 8)
    for block in blocks:
        assert type(block) is Block
        assert not block.dense._inbound_nodes
        assert not block.dense._outbound_nodes
    np.testing.assert_array_equal(
        model.predict(np.ones((2, 5, 8)), verbose=0), expected
    )


@pytest.mark.once
def test_what_is_unknown_is_named_and_never_counts_as_nothing():
    stack = Stack(Block(Fourier()), Block(Opaque(name="opaque")), name="stack")
    model = chain(SEQUENCE, stack, layers.Dense(2))
    count = model_macs(model)
    assert count.macs == 2 * 5 * 8 * 8 + 5 * 8 * 2
    assert count.unknown == ("stack/fft2", "stack/opaque")
    cost = ksd.profile(model)
    assert cost["final"].unknown == count.unknown
    by_name = {row.name: row for row in cost.layers}
    assert by_name["stack"].macs is None
    text = cost.render(layers=True)
    assert "at least 720" in text
    assert "stack/opaque" in text

    @ksd.register_macs(Opaque)
    def count_opaque(layer, inputs, outputs):
        return int(np.prod(outputs[0].shape)) * inputs[0].shape[-1]

    again = model_macs(model)
    assert again.macs == count.macs + 5 * 8 * 8
    assert again.unknown == ("stack/fft2",)


@pytest.mark.once
@pytest.mark.parametrize(
    "make",
    [
        lambda: chain((400,), layers.MelSpectrogram(fft_length=64)),
        lambda: chain(
            ROWS,
            layers.Lambda(lambda x: ops.einsum("ab,bc,cd", x, ones(6, 3), ones(3, 2))),
        ),
        lambda: chain((6, 6), layers.Lambda(lambda x: ops.inv(x))),
    ],
)
def test_operations_that_shapes_do_not_tell(make):
    count = model_macs(make())
    assert count.macs == 0
    assert len(count.unknown) == 1


@pytest.mark.once
def test_rows_that_a_layer_moves_into_the_batch():
    class Split(layers.Layer):
        def call(self, x):
            return ops.reshape(x, (-1, 2))

    assert model_macs(chain((4, 3), Split(), layers.Dense(5))) == Count(60)


@pytest.mark.once
def test_a_registered_count_goes_before_all_others():
    model = chain(SEQUENCE, layers.LayerNormalization(), Again(2))
    # Twice, of which the rule of `Dense` would know one.
    assert model_macs(model) == Count(5 * 8 * 2 + 5 * 2 * 2)
    try:
        ksd.register_macs(layers.LayerNormalization)(lambda *_: 999)
        assert model_macs(model) == Count(999 + 5 * 8 * 2 + 5 * 2 * 2)
    finally:
        ksd.register_macs(layers.LayerNormalization)(lambda *_: 0)


@pytest.mark.once
def test_an_unknown_size_is_an_error():
    with pytest.raises(ValueError, match="Received: shape"):
        model_macs(chain((None, None, 3), layers.Conv2D(4, 3)))


def subclasses(kind):
    """Return all classes below a class."""
    found = set(kind.__subclasses__())
    return found.union(*map(subclasses, found))


# Operations that are not counted: it depends on more than shapes, or nobody asked.
NOT_COUNTED = {
    *("AssociativeScan", "Cond", "ForiLoop", "Map", "Scan", "Switch"),
    *("VectorizedMap", "WhileLoop"),  # They call functions.
    *("Cholesky", "CholeskyInverse", "Det", "Eig", "Eigh", "Inv", "JVP", "Logdet"),
    *("Lstsq", "LuFactor", "MatrixRank", "Pinv", "Qr", "SVD", "Slogdet", "Solve"),
    "SolveTriangular",
    *("FFT", "FFT2", "IFFT2", "IRFFT", "ISTFT", "RFFT", "STFT"),
    *("CDist", "CTCDecode", "CTCLoss", "Corrcoef", "Correlate", "ElasticTransform"),
    *("GaussianBlur", "SSIM", "SobelEdges", "Trapezoid"),
}


@pytest.mark.once
def test_every_operation_of_keras_is_free_has_a_rule_or_is_known_to_be_unknown():
    """A new operation of Keras must be looked at."""
    every = {
        kind.__name__
        for kind in subclasses(keras.Operation)
        if is_of_keras(kind) and not issubclass(kind, (keras.Layer, keras.Function))
    }
    assert len(every) > 300
    ruled = set(operation_rules._RULES)
    assert every == FREE_OPERATIONS | ruled | NOT_COUNTED
    assert not FREE_OPERATIONS & (ruled | NOT_COUNTED)
    assert not ruled & NOT_COUNTED


class Novel(keras.Operation):
    """An operation that Keras does not have yet."""

    def call(self, x):
        return x

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


@pytest.mark.once
def test_an_operation_without_a_rule_is_unknown(monkeypatch):
    monkeypatch.setattr(Novel, "__module__", "keras.ops")
    inputs = keras.Input(ROWS)
    model = keras.Model(inputs, Novel(name="new")(inputs))
    assert model_macs(model) == Count(0, ("new",))


@pytest.mark.once
def test_a_layer_that_keras_does_not_have_yet_is_traced(monkeypatch):
    model = chain(SEQUENCE, Again(2, name="again"))
    monkeypatch.setattr(Again, "__module__", "keras.layers")
    assert not layer_rules.is_free(model.layers[0])


@pytest.mark.once
def test_every_layer_of_keras_has_a_rule_is_free_or_is_traced():
    """A new layer of Keras that multiplies by a kernel must be looked at."""
    every = {
        kind
        for kind in vars(layers).values()
        if inspect.isclass(kind) and issubclass(kind, layers.Layer)
    }
    free = {kind for kind in every if kind.__name__ in FREE_LAYERS}
    assert {kind.__name__ for kind in free} == FREE_LAYERS
    traced = {
        kind.__name__
        for kind in every - free
        if layer_rules.rule.dispatch(kind) is layer_rules.rule.dispatch(object)
    }
    assert traced == {
        *("Attention", "Bidirectional", "Dot", "EinsumDense", "GroupedQueryAttention"),
        *("GRUCell", "LSTMCell", "Lambda", "MultiHeadAttention", "SimpleRNNCell"),
        *("ReversibleEmbedding", "StackedRNNCells", "Layer", "Wrapper"),
        *("MelSpectrogram", "Pipeline", "STFTSpectrogram", "SpectralNormalization"),
        # Of other frameworks: unknown.
        *("FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"),
    }
    # None of them multiplies matrices, but augmentation in training and LoRA's table.
    for kind in free - {layers.Embedding}:
        words = ("matmul", "einsum", "conv(") * (not kind.__name__.startswith("Random"))
        assert not any(word in inspect.getsource(kind) for word in words), kind


@pytest.mark.once
def test_a_profile_by_exit_section_and_layer():
    base = small_base()
    model = ksd.SelfDistiller(base, ["out_1"], "deep_supervision", head="linear")
    cost = ksd.profile(model)
    assert list(cost) == ["exit_1", "final", "ensemble"]
    stem, block_1 = 64 * 27 * 8, 2 * 64 * 72 * 8
    block_2 = 16 * 8 * 16 + 16 * 72 * 16 + 16 * 144 * 16
    head = 8 * 16 + 16 * 4
    assert cost["exit_1"].macs == stem + block_1 + head
    assert cost["final"].macs == stem + block_1 + block_2 + 16 * 4
    assert {name: each.macs for name, each in cost.sections.items()} == {
        "exit_1": stem + block_1 + head,
        "final": block_2 + 16 * 4,
    }
    parameters = [each.parameters for each in cost.sections.values()]
    assert sum(parameters) == cost["ensemble"].parameters
    rows = {row.name: row for row in cost.layers}
    assert rows["conv_2a"].macs == 16 * 72 * 16
    assert rows["conv_2a"].parameters == 72 * 16 + 16
    assert (rows["conv_2a"].section, rows["stem"].section) == ("final", "exit_1")
    assert rows["predictions"].parameters == 16 * 4 + 4
    plain = ksd.profile(base)
    assert plain["final"] == cost["final"]
    assert "conv_2a" in plain.render(layers=True)


@pytest.mark.process
@pytest.mark.long
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_counts_are_those_of_the_backends_own_counter(backend):
    """What is compared: see tests/costs/flop_probe.py."""
    require_backend(backend)
    require_backend("keras_hub")
    found = json.loads(
        run_python("-m", "tests.costs.flop_probe", backend=backend).stdout
    )
    assert len(found) >= 10
    for name, (own, theirs) in found.items():
        assert own == pytest.approx(theirs, rel=0.02), name
