"""What is read of Keras' inside still means what we take it for."""

import keras
import pytest

from keras_selfdistill.keras_internals import writes_legacy_format

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
