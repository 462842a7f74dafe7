"""KerasHub's backbones with random weights: transformers over words and images."""

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from tests.conftest import miss

pytestmark = pytest.mark.long
SIZES = {"num_layers": 4, "num_heads": 2, "hidden_dim": 16}
WORDS = {"vocabulary_size": 50, "intermediate_dim": 32, "max_sequence_length": 12}
RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.integers(1, 50, (8, 12))
MASK = (np.arange(12) < RANDOM.integers(4, 13, (8, 1))).astype("int32")
TEXT = {"token_ids": TOKENS, "padding_mask": MASK, "segment_ids": 0 * TOKENS}
IMAGES = RANDOM.normal(size=(8, 16, 16, 3)).astype("float32")
LABELS = np.arange(8) % 3


@pytest.fixture(scope="module")
def hub():
    try:
        import keras_hub
    except ImportError as error:
        miss(f"keras-hub cannot be imported: {error}")
    return keras_hub.models


def bert(hub):
    return hub.BertTextClassifier(
        hub.BertBackbone(name="backbone", **SIZES, **WORDS),
        num_classes=3,
        preprocessor=None,
        activation="softmax",
        dropout=0.0,
    )


def vit(hub):
    backbone = hub.ViTBackbone(
        image_shape=(16, 16, 3), patch_size=4, mlp_dim=32, name="backbone", **SIZES
    )
    return hub.ViTImageClassifier(
        backbone, num_classes=3, preprocessor=None, activation="softmax"
    )


def resnet(hub):
    backbone = hub.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[2, 2],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(16, 16, 3),
        name="backbone",
    )
    return hub.ResNetImageClassifier(
        backbone, num_classes=3, preprocessor=None, activation="softmax"
    )


MODELS = {
    # name: (model, taps, data)
    "bert": (
        bert,
        ["backbone/transformer_layer_0", "backbone/transformer_layer_2"],
        TEXT,
    ),
    "vit": (
        vit,
        [
            "backbone/vit_encoder/transformer_block_1",
            "backbone/vit_encoder/transformer_block_3",
        ],
        IMAGES,
    ),
    "resnet": (
        resnet,
        ["backbone/stack0_block0_out", "backbone/stack1_block0_out"],
        IMAGES,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_classifier_is_wrapped_trained_and_cut_off(hub, name, tmp_path):
    make, taps, x = MODELS[name]
    keras.utils.set_random_seed(0)
    base = make(hub)
    expected = base.predict(x, verbose=0)
    model = ksd.SelfDistiller(base, taps, "byot")
    np.testing.assert_allclose(
        model.predict(x, verbose=0)["final"], expected, rtol=1e-5
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(x, LABELS, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    predictions = model.predict(x, verbose=0)
    for exit_name in model.exit_names:
        alone = model.exit_model(exit_name).predict(x, verbose=0)
        np.testing.assert_allclose(alone, predictions[exit_name], rtol=1e-4, atol=1e-6)
    assert model.exit_model("exit_1").count_params() < base.count_params()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0)["exit_1"], predictions["exit_1"], rtol=1e-5
    )


@pytest.mark.parametrize("name", MODELS)
def test_exits_are_placed_behind_blocks(hub, name):
    make, taps, _ = MODELS[name]
    base = make(hub)
    assert ksd.suggest_taps(base, 2).names == taps
    assert ksd.SelfDistiller(base, 2, "byot").taps == taps


def test_a_bare_backbone_gets_classes(hub):
    backbone = hub.ResNetBackbone(**resnet(hub).backbone.get_config())
    model = ksd.SelfDistiller(backbone, 2, "byot", classes=3)
    model.compile("sgd", "sparse_categorical_crossentropy")
    assert np.isfinite(model.fit(IMAGES, LABELS, verbose=0).history["loss"]).all()


def test_padded_words_change_no_exit(hub):
    model = ksd.SelfDistiller(bert(hub), MODELS["bert"][1], "byot")
    other = np.where(MASK, TOKENS, (TOKENS + 7) % 50)
    predictions = model.predict(TEXT, verbose=0)
    for exit_name, prediction in model.predict(
        {**TEXT, "token_ids": other}, verbose=0
    ).items():
        np.testing.assert_allclose(
            prediction, predictions[exit_name], rtol=1e-4, atol=1e-6
        )


def test_words_exit_early(hub):
    model = ksd.SelfDistiller(bert(hub), MODELS["bert"][1], "byot")
    predictions = model.predict(TEXT, verbose=0)
    half = float(np.median(predictions["exit_1"].max(axis=-1)))
    result = ksd.EarlyExit(model, thresholds=half).predict(TEXT)
    assert len(set(result.exits)) > 1
    for row, exit_name in enumerate(result.exits):
        np.testing.assert_allclose(
            result.predictions[row], predictions[exit_name][row], rtol=1e-4, atol=1e-6
        )
    calibrated = ksd.EarlyExit(model)
    twice = {name: np.tile(each, (2, 1)) for name, each in TEXT.items()}
    calibrated.calibrate(twice, np.tile(LABELS, 2), macs_budget=0.8)
    assert calibrated.predict(TEXT).macs_ratio <= 0.8
