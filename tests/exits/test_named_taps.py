"""Layers named as taps: what is returned, and every error about a name."""

import keras
import pytest
from keras import layers

from keras_selfdistill.exits.named_taps import named_taps
from keras_selfdistill.graph.ends.base_end import find_base_end
from keras_selfdistill.graph.flatten import flatten

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def flat():
    """A nested model in front; then branches, a layer called twice, and an end."""
    inner_input = keras.Input((4,), name="inner_input")
    inner_output = layers.Dense(4, name="z")(inner_input)
    inner_output = layers.Dense(4, name="first")(inner_output)
    inner_output = layers.Dense(4, name="second")(inner_output)
    inner = keras.Model(inner_input, inner_output, name="inner")
    inputs = keras.Input((4,), name="x")
    x = inner(inputs)
    left = layers.Dense(4, name="left")(x)
    right = layers.Dense(4, name="right")(x)
    x = layers.Add(name="joined")([left, right])
    shared = layers.Dense(4, name="shared")
    x = shared(shared(x))
    x = layers.Dense(4, name="deep")(x)
    x = layers.Dense(4, name="feature")(x)
    outputs = layers.Dense(3, activation="softmax", name="answers")(x)
    return flatten(keras.Model(inputs, outputs, name="outer"))


@pytest.fixture(scope="module")
def taps(flat):
    feature = find_base_end(flat.model).feature
    return lambda *names: named_taps(flat, feature, names)


def test_taps_are_the_outputs_of_their_layers(flat, taps):
    names = ["inner/first", "inner/second", "joined", "shared@1", "shared@2", "deep"]
    found = taps(*names)
    assert list(found) == names
    assert all(found[name] is flat.calls[name] for name in names)
    assert taps() == {}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["deep", "deep"], r"named once.*\['deep'\] are repeated"),
        (["shared"], r"called 2 times.*\['shared@1', 'shared@2'\]"),
        (["inner"], "at one of its layers.*Expected, e.g., 'inner/second'"),
        (["second"], "Did you mean 'inner/second'"),
        (["z"], "Did you mean 'inner/z'"),  # Too short to be like it.
        (["jioned"], "Did you mean 'joined'"),
        (["nothing_like_it"], r"'backbone/layer'\. List all names"),
        (["feature"], "'feature' of model 'outer', which does not lead"),
        (["answers"], "'answers' of model 'outer', which does not lead"),
        (["deep", "joined"], "'deep' before 'joined', which is shallower"),
        (["left", "right"], "'left' and 'right', which are on parallel"),
        (["left", "joined", "inner/first"], "'joined' before 'inner/first'"),
    ],
)
def test_wrong_names_are_refused(taps, names, message):
    with pytest.raises(ValueError, match=message):
        taps(*names)


def test_a_layer_is_no_name(taps):
    with pytest.raises(
        TypeError, match=r"Received: 3 of type int\. Expected: the layer's"
    ):
        taps(3)
