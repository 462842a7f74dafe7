"""Chained sections are the whole network, and hold each of its layers once."""

import collections

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.early_exit.section_models import cut_sections, section_costs
from keras_selfdistill.graph.ends.pre_activation import PreActivation
from keras_selfdistill.graph.nodes import graph_nodes, producer
from tests.conftest import small_base, to_numpy

FAMILIES = [
    ("ConvNeXtTiny", 32),
    ("DenseNet121", 32),
    ("EfficientNetB0", 32),
    ("EfficientNetV2B0", 32),
    pytest.param("InceptionResNetV2", 75, marks=pytest.mark.long),
    ("InceptionV3", 75),
    ("MobileNet", 32),
    ("MobileNetV2", 32),
    ("MobileNetV3Small", 32),
    pytest.param("NASNetMobile", 32, marks=pytest.mark.long),
    ("ResNet50", 32),
    ("ResNet50V2", 32),
    ("VGG16", 32),
    ("Xception", 71),
]


class PaddingMasked(layers.Layer):
    """Masks steps of zeros, without saying so in a name that is known."""

    def call(self, inputs):
        return inputs + 0.0

    def compute_mask(self, inputs, previous_mask=None):
        return keras.ops.any(keras.ops.not_equal(inputs, 0.0), axis=-1)


def wrap(base, taps, **kwargs):
    return ksd.SelfDistiller(base, taps, "deep_supervision", head="linear", **kwargs)


def chained(model, x):
    """Run the sections one after another; return what every exit answers."""
    sections = cut_sections(model.exit_graph)
    arrays = dict(zip(map(id, model.exit_graph.base.inputs), x, strict=True))
    alive = [
        keras.ops.convert_to_tensor(arrays[id(tensor)]) for tensor in sections[0].inputs
    ]
    found = {}
    for section in sections:
        outputs = section(alive, training=False)
        alive = outputs["alive"]
        found[section.exit_name] = outputs
    assert alive == []
    return found


def check(model, *x):
    """Compare the sections with the network that training runs."""
    structure = keras.tree.pack_sequence_as(model.exit_graph.inputs, list(x))
    expected = model.exit_graph.training_network(structure, training=False)["exits"]
    found = chained(model, x)
    assert list(found) == model.exit_names
    for name, outputs in found.items():
        for kind in ("output", "logits"):
            np.testing.assert_allclose(
                to_numpy(outputs[kind]), to_numpy(expected[name][kind]), atol=1e-6
            )


def calls(sections):
    """How often the sections call each operation."""
    return collections.Counter(
        id(node.operation)
        for section in sections
        for node in graph_nodes(section._function.inputs, section._function.outputs)
        if node.input_tensors and not set(node.outputs) & set(section.inputs)
    )


def images(size, rows=2):
    return np.random.default_rng(0).random((rows, size, size, 3), "float32")


@pytest.mark.once
@pytest.mark.parametrize(("name", "size"), FAMILIES)
def test_every_family_of_applications(name, size):
    keras.utils.set_random_seed(3)
    kwargs = {"include_preprocessing": False} if "V3Small" in name else {}
    make = getattr(keras.applications, name)
    base = make(weights=None, input_shape=(size, size, 3), classes=10, **kwargs)
    try:
        model = wrap(base, 3)
    except ValueError:  # No point where one tensor alone is alive.
        taps = [layer.name for layer in base.layers if "concat" in layer.name]
        model = wrap(base, [taps[len(taps) // 3], taps[2 * len(taps) // 3]])
    check(model, images(size))
    sections = cut_sections(model.exit_graph)
    network = model.exit_graph.training_network
    found = calls(sections)
    assert set(found.values()) == {1}
    # The base's last layer is inside of one that runs it in front of its activation.
    parts = [
        id(layer.layer if isinstance(layer, PreActivation) else layer)
        for section in sections
        for layer in section.parts
    ]
    assert len(parts) == len(set(parts))
    # ConvNeXt nests models, whose layers stand in their place.
    own = {
        id(layer)
        for layer in [*base._flatten_layers(), *model.layers]
        if not isinstance(layer, (layers.InputLayer, keras.Model))
    }
    assert own <= set(parts)
    assert sum(section.count_params() for section in sections) == network.count_params()


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "taps"),
    [("DenseNet121", ["conv2_block3_1_relu"]), ("NASNetMobile", ["normal_concat_2"])],
)
def test_several_tensors_are_alive_at_a_cut(name, taps):
    make = getattr(keras.applications, name)
    base = make(weights=None, input_shape=(32, 32, 3), classes=10)
    model = wrap(base, taps)
    assert len(cut_sections(model.exit_graph)[1].inputs) > 1
    check(model, images(32))


def u_net():
    inputs = keras.Input((16, 16, 3), name="image")
    skips, x = [], inputs
    for i, width in enumerate((4, 8)):
        x = layers.Conv2D(width, 3, padding="same", activation="relu", name=f"down{i}")(
            x
        )
        skips.append(x)
        x = layers.MaxPooling2D(name=f"pool{i}")(x)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="middle")(x)
    for i, skip in enumerate(reversed(skips)):
        x = layers.UpSampling2D(name=f"up{i}")(x)
        x = layers.Concatenate(name=f"join{i}")([x, skip])
        x = layers.Conv2D(4, 3, padding="same", activation="relu", name=f"back{i}")(x)
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, layers.Dense(5, "softmax", name="answer")(x))


@pytest.mark.once
def test_skips_pass_through_the_sections_of_a_u_net():
    model = wrap(u_net(), ["pool0", "middle", "back0"])
    check(model, images(16))
    alive = [
        [producer(tensor).operation.name for tensor in section.inputs]
        for section in cut_sections(model.exit_graph)
    ]
    assert alive == [
        ["image"],
        ["down0", "pool0"],
        ["down0", "down1", "middle"],
        ["down0", "back0"],
    ]


def two_inputs(structure):
    image, table = keras.Input((8, 8, 3), name="image"), keras.Input((4,), name="table")
    x = layers.Conv2D(4, 3, name="tap")(image)
    x = layers.Conv2D(4, 3, name="second")(x)
    x = layers.GlobalAveragePooling2D(name="average")(x)
    x = layers.Concatenate(name="join")([x, layers.Dense(3, name="rows")(table)])
    outputs = layers.Dense(3, "softmax", name="answer")(x)
    inputs = {
        "list": [image, table],
        "swapped": [table, image],
        "dict": {"table": table, "image": image},
    }
    return keras.Model(inputs[structure], outputs)


@pytest.mark.parametrize("structure", ["list", "swapped", "dict"])
def test_an_input_that_is_read_late_waits(structure):
    base = two_inputs(structure)
    model = wrap(base, ["tap", "second"])
    by_name = {"image": images(8), "table": np.ones((2, 4), "float32")}
    check(model, *(by_name[tensor.name] for tensor in base.inputs))
    sections = cut_sections(model.exit_graph)
    assert [len(section.inputs) for section in sections] == [2, 2, 2]
    assert "rows" in {layer.name for layer in sections[-1].parts}


def test_a_layer_called_on_both_sides_of_a_cut():
    inputs = keras.Input((8, 8, 4))
    shared = layers.Conv2D(4, 3, padding="same", activation="relu", name="shared")
    x = shared(inputs)
    x = layers.Conv2D(4, 3, padding="same", name="tap")(x)
    x = layers.Conv2D(4, 3, padding="same")(shared(x) + x)
    x = layers.GlobalAveragePooling2D()(shared(x))
    model = wrap(keras.Model(inputs, layers.Dense(3, "softmax")(x)), ["tap"])
    check(model, np.random.default_rng(0).random((2, 8, 8, 4), "float32"))
    found = calls(cut_sections(model.exit_graph))
    assert found.pop(id(shared)) == 3
    assert set(found.values()) == {1}


@pytest.mark.once
@pytest.mark.parametrize("activation", ["softmax", None])
def test_the_costs_of_the_sections_add_up(activation):
    model = ksd.SelfDistiller(small_base(activation), ["stem_relu", "out_1"], "byot")
    counts = section_costs(model.exit_graph, ["output"])
    cost = ksd.profile(model)
    assert not any(count.unknown for count in counts)
    assert counts[0].macs == cost["exit_1"].macs
    total = sum(count.macs for count in counts)
    assert total == cost["ensemble"].macs


@pytest.mark.once
def test_cutting_leaves_the_layers_as_they_were():
    model = wrap(small_base(), ["stem_relu", "out_1"])
    before = [len(layer._inbound_nodes) for layer in model.layers]
    cut_sections(model.exit_graph)
    assert [len(layer._inbound_nodes) for layer in model.layers] == before


def test_tensors_keep_their_dtype_across_a_cut(mixed_precision):
    mixed_precision("mixed_bfloat16")
    model = wrap(small_base(), ["stem_relu", "out_1"])
    check(model, images(8))
    dtypes = [section.inputs[0].dtype for section in cut_sections(model.exit_graph)]
    assert dtypes == ["float32", "bfloat16", "bfloat16"]


@pytest.mark.once
def test_an_exit_that_reads_the_whole_base_cannot_stop_early():
    base = small_base()

    class TopDown(ksd.heads.Linear):
        def __call__(self, tap, target, *, name, dtype=None):
            pool = layers.GlobalAveragePooling2D(name=f"{name}_deep")
            deep = pool(base.get_layer("out_2").output)
            return layers.Add(name=f"{name}_add")(
                [super().__call__(tap, target, name=name, dtype=dtype), deep]
            )

    model = ksd.SelfDistiller(base, ["out_1"], "byot", head=TopDown())
    with pytest.raises(ValueError, match=r"beyond its tap(.|\n)*'out_1'"):
        cut_sections(model.exit_graph)


@pytest.mark.once
@pytest.mark.parametrize("tap", ["padded", "own"])
def test_masks_that_come_as_an_argument_are_refused(tap):
    """A section would get the tensor without its mask, and read the padding."""
    steps, mask = keras.Input((6, 5)), keras.Input((6,), dtype="bool")
    if tap == "padded":
        inputs = [steps, mask]
        x = layers.LSTM(8, return_sequences=True, name="padded")(steps, mask=mask)
    else:
        inputs = steps
        x = PaddingMasked(name="own")(steps)
    outputs = layers.Dense(3, "softmax")(layers.LSTM(8)(x))
    model = wrap(keras.Model(inputs, outputs), [tap])
    # The head of "own" reads the operations that compute its mask.
    with pytest.raises(ValueError, match=r"masks time steps|beyond its tap"):
        cut_sections(model.exit_graph)


def test_a_mask_that_ends_before_the_cut_is_no_obstacle():
    steps, mask = keras.Input((6, 5)), keras.Input((6,), dtype="bool")
    x = layers.LSTM(8, name="tap")(steps, mask=mask)
    outputs = layers.Dense(3, "softmax")(layers.Dense(8, "relu")(x))
    base = keras.Model([steps, mask], outputs)
    x = np.random.default_rng(0).normal(size=(4, 6, 5)).astype("float32")
    padded = np.arange(6) < np.array([[2], [6], [4], [3]])
    fast = ksd.EarlyExit(wrap(base, ["tap"]), thresholds=2.0).predict((x, padded))
    expected = to_numpy(base([x, padded]))
    np.testing.assert_allclose(fast.predictions, expected, atol=1e-5)


@pytest.mark.once
def test_masks_are_refused():
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True, name="words")(inputs)
    x = layers.Dense(4, name="tap")(x)
    x = layers.GlobalAveragePooling1D()(layers.Dense(4)(x))
    model = wrap(keras.Model(inputs, layers.Dense(3, "softmax")(x)), ["tap"])
    with pytest.raises(ValueError, match=r"masks time steps(.|\n)*'words'"):
        cut_sections(model.exit_graph)


def merged_batch(x):
    """Features of samples and steps in one axis, which the end takes apart."""
    rows = layers.Dense(8)(keras.ops.reshape(x, (-1, 8)))
    tap = layers.Dense(8, name="tap")(
        keras.ops.max(keras.ops.reshape(rows, (-1, 16, 8)), 1)
    )
    late = keras.ops.mean(keras.ops.reshape(layers.Dense(8)(rows), (-1, 16, 8)), 1)
    return layers.Add()([late, tap])


def steps_first(x):
    """Features whose first axis is that of the steps."""
    turned = keras.ops.transpose(layers.Dense(8)(x), (1, 0, 2))
    tap = layers.Dense(8, name="tap")(keras.ops.max(turned, 0))
    return layers.Add()([keras.ops.mean(layers.Dense(8)(turned), 0), tap])


@pytest.mark.once
@pytest.mark.parametrize("batch", [None, 16])
@pytest.mark.parametrize("features", [merged_batch, steps_first])
def test_a_cut_of_other_rows_than_the_samples_is_refused(features, batch):
    """16 rows of 256 would be taken for those of 16 samples."""
    steps = 16 if batch is None or features is merged_batch else 12
    inputs = keras.Input(batch_shape=(batch, steps, 8))
    model = wrap(keras.Model(inputs, layers.Dense(3)(features(inputs))), ["tap"])
    with pytest.raises(
        ValueError, match=r"one row for each sample.*Received.*Expected"
    ):
        cut_sections(model.exit_graph)


class Silent(layers.Layer):
    """Does not tell the size of its batch."""

    def call(self, inputs):
        return inputs * 1.0

    def compute_output_shape(self, input_shape):
        return (None, *input_shape[1:])


@pytest.mark.once
@pytest.mark.parametrize("batch", [None, 2])
def test_a_layer_need_not_tell_the_size_of_the_batch(batch):
    inputs = keras.Input(batch_shape=(batch, 8))
    tap = layers.Dense(8, name="tap")(Silent()(inputs))
    model = wrap(keras.Model(inputs, layers.Dense(3)(Silent()(tap))), ["tap"])
    assert len(cut_sections(model.exit_graph)) == 2
