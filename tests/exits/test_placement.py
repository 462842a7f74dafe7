"""Where taps are placed when only their number is given."""

import copy
import itertools
import pickle

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.exits.block_ends import block_ends
from keras_selfdistill.exits.placement import Tap, node_costs
from keras_selfdistill.exits.suggestion import SuggestedTaps
from keras_selfdistill.graph.ends.base_end import find_base_end
from keras_selfdistill.graph.flatten import flatten
from tests.conftest import small_base

pytestmark = pytest.mark.once


def ends_of(base):
    feature = find_base_end(base).feature
    return block_ends(flatten(base), feature, node_costs(base))


def by_trying_all(ends, exits):
    """The documented rule, applied to every choice there is."""

    def badness(choice):
        shares = np.array([end.macs_ratio for end in choice])
        targets = np.arange(1, exits + 1) / (exits + 1)
        sizes = [end.tensor.shape[1:-1] for end in choice]
        pairs = sum(a == b for a, b in itertools.pairwise(sizes))
        return np.abs(shares - targets).sum() + pairs * 0.5 / (exits + 1)

    return [end.name for end in min(itertools.combinations(ends, exits), key=badness)]


def stack(*filters_and_strides):
    """A plain stack; every convolution is a block."""
    inputs = x = keras.Input((16, 16, 4))
    for i, (filters, stride) in enumerate(filters_and_strides):
        x = layers.Conv2D(filters, 3, stride, padding="same", name=f"conv_{i}")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


def cells(count):
    """Cells that each read the two cells before, as in NASNet."""
    inputs = keras.Input((8, 8, 4), name="image")
    before = x = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    for i in range(count):
        left = layers.Conv2D(4, 3, padding="same", name=f"left_{i}")(before)
        right = layers.Conv2D(4, 3, padding="same", name=f"right_{i}")(x)
        inner = layers.Add(name=f"inner_{i}")([left, right])
        before, x = x, layers.Concatenate(name=f"cell_{i}")([before, inner, right])
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, name="top")(x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@pytest.mark.parametrize("exits", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "widths",
    [
        [(4, 1)] * 8,
        [(4, 1), (8, 2), (8, 1), (8, 1), (8, 1), (16, 2), (16, 1), (16, 1), (16, 2)],
        [(16, 1), (16, 1), (4, 2), (4, 1), (4, 1), (32, 2), (32, 1), (32, 1)],
        [(2, 1), (4, 2), (32, 2), (32, 1), (32, 1), (32, 1), (32, 1), (32, 1)],
    ],
)
def test_no_choice_is_better(widths, exits):
    base = stack(*widths)
    assert ksd.suggest_taps(base, exits).names == by_trying_all(ends_of(base), exits)


def test_a_near_stage_border_parts_two_taps_of_one_resolution():
    # Eight equal blocks; the third and the fifth lie nearest to a third and to two.
    base = stack((4, 1), (4, 1), (4, 1), (4, 1), (4, 1), (8, 2), (4, 1), (8, 1))
    sizes = [tap.shape[1] for tap in ksd.suggest_taps(base, 2)]
    assert sizes == [16, 8]
    # Here the border is far: both stay where their shares are nearest.
    base = stack(*[(4, 1)] * 11, (4, 2))
    near = ksd.suggest_taps(base, 2)
    assert [tap.shape[1] for tap in near] == [16, 16]
    assert [tap.macs_ratio for tap in near] == pytest.approx([1 / 3, 2 / 3], abs=0.05)


def test_cells_that_read_two_cells_end_where_two_tensors_are_read():
    base = cells(6)
    names = [end.name for end in ends_of(base)]
    assert [name for name in names if name.startswith("cell")] == [
        f"cell_{i}" for i in range(6)
    ]
    assert not [name for name in names if name.startswith(("left", "right", "inner"))]
    model = ksd.SelfDistiller(base, 3, "byot")
    assert all(name.startswith("cell") for name in model.taps)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype("float32")
    expected = model.predict(images, verbose=0)
    for name in model.exit_names:
        alone = model.exit_model(name).predict(images, verbose=0)
        np.testing.assert_allclose(alone, expected[name], atol=1e-6)


def test_the_residual_of_a_large_block_is_no_end():
    """Only a place where branches join may hand on two tensors."""
    names = [end.name for end in ends_of(small_base())]
    assert names == ["stem_relu", "out_1"]


def test_a_side_branch_is_not_tapped():
    image, table = keras.Input((8, 8, 3)), keras.Input((4,))
    x = layers.Conv2D(8, 3, padding="same", name="image_1")(image)
    x = layers.Conv2D(8, 3, padding="same", name="image_2")(x)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, strides=2)(x))
    side = layers.Dense(8, name="table_2")(layers.Dense(8, name="table_1")(table))
    base = keras.Model(
        [image, table],
        layers.Dense(3, activation="softmax")(layers.Concatenate()([x, side])),
    )
    names = [end.name for end in ends_of(base)]
    assert names[:2] == ["image_1", "image_2"]
    assert not [name for name in names if name.startswith("table")]


def test_taps_lie_where_there_are_positions():
    """In VGG, block ends follow behind the last map: dense layers on a flat vector."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="conv_1")(inputs)
    x = layers.Conv2D(4, 3, strides=4, padding="same", name="conv_2")(x)
    x = layers.Dense(64, name="fc_1")(layers.Flatten()(x))
    x = layers.Dense(64, name="fc_2")(x)
    base = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    assert ksd.suggest_taps(base, 2).names == ["conv_1", "conv_2"]
    with pytest.raises(ValueError, match="at most 2"):
        ksd.suggest_taps(base, 3)


def test_the_number_of_exits_follows_the_resolutions():
    resnet = ksd.networks.resnet18(width_multiplier=0.125)
    stage_ends = [f"stage{i}_block2_out" for i in (1, 2, 3)]
    assert ksd.suggest_taps(resnet, "auto").names == stage_ends
    assert ksd.SelfDistiller(resnet, "auto", "byot").taps == stage_ends
    vgg = ksd.networks.vgg19_bn(width_multiplier=0.125)  # 32, 16, 8, 4, 2 pixels.
    assert len(ksd.suggest_taps(vgg, "auto")) == 4
    assert len(ksd.suggest_taps(stack(*[(4, 1)] * 8), "auto")) == 3
    assert len(ksd.suggest_taps(stack(*[(4, 1)] * 3), "auto")) == 2


def test_a_suggestion_is_a_table_and_can_be_passed_on(base):
    taps = ksd.suggest_taps(base, exits=2)
    stem = 8 * 8 * 27 * 8
    block = 2 * 8 * 8 * 72 * 8
    rest = 4 * 4 * (72 * 16 + 144 * 16 + 8 * 16) + 16 * 4
    assert taps == (
        Tap("stem_relu", (None, 8, 8, 8), stem / (stem + block + rest)),
        Tap("out_1", (None, 8, 8, 8), (stem + block) / (stem + block + rest)),
    )
    assert str(taps).splitlines() == [
        "tap        output shape     MACs ratio",
        "stem_relu  (None, 8, 8, 8)        9.5%",
        "out_1      (None, 8, 8, 8)       60.4%",
    ]
    assert ksd.SelfDistiller(base, taps, "byot").taps == taps.names
    edited = [*taps[:1], "out_1"]
    assert ksd.SelfDistiller(base, edited, "byot").taps == taps.names
    assert str(SuggestedTaps()).startswith("tap ")
    for copied in (copy.copy(taps), pickle.loads(pickle.dumps(taps))):
        assert (copied, copied.heads, str(copied)) == (taps, taps.heads, str(taps))


@pytest.mark.long
def test_the_choice_is_the_same_each_time():
    def choice():
        keras.backend.clear_session()
        base = keras.applications.NASNetMobile(
            weights=None, input_shape=(32, 32, 3), classes=10
        )
        return ksd.suggest_taps(base, 4)

    first = choice()
    assert first == choice()


@pytest.mark.parametrize("exits", [None, 2.0, True, "3", ["out_1"]])
def test_a_number_of_no_kind(base, exits):
    with pytest.raises(TypeError, match="'auto'"):
        ksd.suggest_taps(base, exits)


@pytest.mark.parametrize(("exits", "words"), [(0, "at least one"), (9, "at most 2")])
def test_a_number_out_of_range(base, exits, words):
    with pytest.raises(ValueError, match=words):
        ksd.suggest_taps(base, exits)


def test_no_model():
    with pytest.raises(TypeError, match="functional"):
        ksd.suggest_taps("resnet18")
