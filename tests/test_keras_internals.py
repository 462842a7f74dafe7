"""What is read of Keras' inside still means what we take it for."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_selfdistill.keras_internals import (
    run_in_inference_mode,
    value_without_autocast,
    writes_legacy_format,
)

from .conftest import to_numpy

pytestmark = pytest.mark.once


def test_keras_says_when_it_writes_a_legacy_file(tmp_path):
    asked = []

    class Asked(keras.Model):
        def get_config(self):
            asked.append(writes_legacy_format())
            return {}

        def call(self, inputs):
            return inputs

    model = Asked()
    model(keras.ops.ones((1, 2)))
    model.save(tmp_path / "a.keras")
    assert set(asked) == {False}
    asked.clear()
    keras.saving.save_model(model, tmp_path / "a.h5")
    assert set(asked) == {True}


def test_a_value_without_autocast():
    seen = []

    class Reads(layers.Layer):
        def build(self, input_shape):
            self.scale = self.add_weight(shape=(2,), name="scale")

        def call(self, x):
            seen.append((value_without_autocast(self.scale), self.scale.value))
            return x

    Reads(dtype="mixed_bfloat16")(keras.ops.ones((1, 2)))
    dtypes = [keras.backend.standardize_dtype(each.dtype) for each in seen[-1]]
    assert dtypes == ["float32", "bfloat16"]


def test_a_graph_from_its_middle_runs_in_inference_mode():
    inputs = keras.Input((2,))
    middle = layers.Dense(3)(inputs)
    dropout = layers.Dropout(0.5)
    outputs = dropout(middle, training=True) + 1.0
    function = keras.Function([middle], {"outputs": outputs})
    x = np.ones((4, 3), "float32")
    found = run_in_inference_mode(function, [x])
    np.testing.assert_array_equal(to_numpy(found["outputs"]), x + 1.0)
    assert len(dropout._inbound_nodes) == 1
