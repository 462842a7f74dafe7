"""What is read of Keras beyond its public names means what we take it for."""

import keras
from keras import layers

from keras_selfdistill import keras_internals


def test_a_value_without_autocast():
    seen = []

    class Reads(layers.Layer):
        def build(self, input_shape):
            self.scale = self.add_weight(shape=(2,), name="scale")

        def call(self, x):
            value = keras_internals.value_without_autocast(self.scale)
            seen.append((value.dtype, self.scale.value.dtype))
            return x

    Reads(dtype="mixed_bfloat16")(keras.ops.ones((1, 2)))
    own, cast = (keras.backend.standardize_dtype(each) for each in seen[-1])
    assert (own, cast) == ("float32", "bfloat16")
