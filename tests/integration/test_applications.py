"""One network of every family of keras.applications: wrap, train a step, cut off."""

import re

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from keras_selfdistill.costs.counting import model_macs

pytestmark = [pytest.mark.once, pytest.mark.long]

# name: (image size, options, what the taps' names are like)
FAMILIES = {
    "ConvNeXtTiny": (32, {}, r"add(_\d+)?|convnext_tiny_downsampling_block_\d/.*"),
    "DenseNet121": (32, {}, r"conv\d_block\d+_concat|pool\d_pool"),
    "EfficientNetB0": (32, {}, r"block\d[a-z]_(add|project_bn)"),
    "EfficientNetV2B0": (32, {}, r"block\d[a-z]_(add|project_(bn|activation))"),
    "InceptionV3": (75, {}, r"mixed\d+|activation(_\d+)?"),
    "MobileNet": (32, {"alpha": 0.25}, r"conv_pw_\d+_relu"),
    "MobileNetV2": (32, {"alpha": 0.35}, r"block_\d+_(add|project_BN)"),
    "MobileNetV3Small": (96, {}, r"expanded_conv(_\d+)?_(add|project_bn)"),
    "NASNetMobile": (32, {}, r"normal_concat_\d+|reduction_concat_\w+"),
    "ResNet50": (32, {}, r"conv\d_block\d_out"),
    "ResNet50V2": (32, {}, r"conv\d_block\d_out"),
    "VGG16": (32, {}, r"block\d_(conv\d|pool)"),
    "Xception": (71, {}, r"add(_\d+)?|block\d+_\w+"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_wrapped_trained_and_cut_off(name):
    size, options, endings = FAMILIES[name]
    keras.utils.set_random_seed(0)
    base = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=10, **options
    )
    model = ksd.SelfDistiller(base, 3, "byot")
    assert all(re.fullmatch(endings, tap) for tap in model.taps), model.taps
    shares = [tap.macs_ratio for tap in ksd.suggest_taps(base)]
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.75], atol=0.125)

    model.compile(
        # Batch normalisation of few samples on maps of one pixel: steep gradients.
        keras.optimizers.SGD(1e-5),
        loss="sparse_categorical_crossentropy",
        run_eagerly=keras.backend.backend() != "jax",
    )
    images = np.random.default_rng(0).random((8, size, size, 3), "float32")
    before = [weight.copy() for weight in base.get_weights()]
    logs = model.train_on_batch(images, np.arange(8), return_dict=True)
    assert np.isfinite(logs["loss"])
    after = base.get_weights()
    assert any((a != b).any() for a, b in zip(after, before, strict=True))

    together = model(images, training=False)
    for exit_name in model.exit_names:
        alone = model.exit_model(exit_name)(images, training=False)
        difference = keras.ops.max(keras.ops.abs(alone - together[exit_name]))
        assert float(difference) < 1e-6
    assert model_macs(model.exit_model("exit_1"))[0] < (model_macs(base)[0])
