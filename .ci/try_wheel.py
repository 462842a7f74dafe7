"""Wrap, train, save and load with the installed package: called by `.ci/package`."""

import pathlib
import sys
import tempfile

import keras
import numpy as np

import keras_selfdistill as ksd

package = pathlib.Path(ksd.__file__).resolve()
assert package.is_relative_to(pathlib.Path(sys.prefix).resolve()), package
assert (package.parent / "py.typed").exists()
base = keras.Sequential(
    [
        keras.Input((8, 8, 3)),
        keras.layers.Conv2D(4, 3, activation="relu", name="early"),
        keras.layers.Conv2D(4, 3, activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(3, activation="softmax"),
    ]
)
model = ksd.SelfDistiller(base, ["early"], "byot")
model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
x, y = np.random.default_rng(0).normal(size=(16, 8, 8, 3)), np.arange(16) % 3
model.fit(x, y, verbose=0)
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "model.keras"
    model.save(path)
    again = ksd.load_model(path)
for name, expected in model.predict(x, verbose=0).items():
    np.testing.assert_allclose(again.predict(x, verbose=0)[name], expected, rtol=1e-5)
print(f"{keras.backend.backend()}: {package.parent.name} {ksd.__version__} works.")
