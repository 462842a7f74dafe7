"""The SavedModel as TensorFlow Serving reads it, and the page that says how."""

import re

import keras
import numpy as np
import pytest
from google.protobuf import text_format

import keras_selfdistill as ksd
from tests.conftest import ROOT, small_base
from tests.early_exit.test_export import check, thresholds_between
from tests.early_exit.triton_config import BatchingParameters

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="artifacts that decide are written on TensorFlow",
)
OUTPUTS = "prediction", "exit", "score"
PAGE = ROOT / "docs" / "how_to" / "triton.md"


def test_a_saved_model_is_served_by_its_signature(tmp_path):
    """As the server does it: a session of the graph, which batches by joining rows."""
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).normal(size=(40, 8, 8, 3)).astype("float32")
    model = ksd.SelfDistiller(small_base(), ["stem_relu"], "byot")
    fast = thresholds_between(model, (images, np.arange(40) % 4))
    version = tmp_path / "digits" / "1"
    fast.export(version)
    assert (version / "saved_model.pb").is_file()

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(version))
        signature = loaded.signature_def["serving_default"]
        assert signature.method_name == "tensorflow/serving/predict"
        ends = dict(signature.inputs) | {key: signature.outputs[key] for key in OUTPUTS}
        assert signature.outputs.keys() == {*OUTPUTS}
        found = {
            name: (
                tf.dtypes.as_dtype(each.dtype).name,
                [dim.size for dim in each.tensor_shape.dim],
            )
            for name, each in ends.items()
        }
        assert found == {
            "input": ("float32", [-1, 8, 8, 3]),
            "prediction": ("float32", [-1, 4]),
            "exit": ("int32", [-1]),
            "score": ("float32", [-1]),
        }
        others = loaded.signature_def["exit_names"]
        assert not others.inputs
        names = session.run(others.outputs["exit_names"].name)
        outputs = [signature.outputs[key].name for key in OUTPUTS]
        answer = session.run(outputs, {signature.inputs["input"].name: images})
    prediction, exits, score = answer
    names = np.array([each.decode() for each in names])
    assert list(names) == fast.exit_names
    check(fast, images, (prediction, names[exits], score))

    shown = re.findall(r"`(\w+)`[^|`]* \| (\w+32) \|", PAGE.read_text())
    assert shown == [(name, dtype) for name, (dtype, _) in found.items()]


def test_the_batching_parameters_of_the_page_are_those_of_the_server():
    (block,) = re.findall(r"^```proto\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    found = text_format.Parse(block, BatchingParameters())
    assert found.max_batch_size.value == 64
    assert found.num_batch_threads.value == 2
    with pytest.raises(text_format.ParseError):
        text_format.Parse("max_batch_size: 64", BatchingParameters())
