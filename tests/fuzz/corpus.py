"""Write the good files that the fuzz test starts from: small ones of every kind."""

import hashlib
import json
import pathlib
import shutil

import h5py
import keras
import numpy as np

import keras_selfdistill as ksd
from keras_selfdistill.early_exit.export import section_runner


def _base(name="base"):
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(4, activation="relu", name="hidden"),
            keras.layers.Dense(4, activation="relu", name="deeper"),
            keras.layers.Dense(3, activation="softmax", name="answers"),
        ],
        name=name,
    )


def _image_base():
    image = keras.Input((4, 4, 1), name="image")
    x = keras.layers.Conv2D(2, 3, padding="same", use_bias=False, name="stem")(image)
    x = keras.layers.BatchNormalization(name="bn")(x)
    x = keras.layers.Dropout(0.1, name="dropout")(keras.ops.relu(x))
    x = keras.layers.Conv2D(2, 1, strides=2, name="shrunk")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, keras.layers.Dense(3, name="logits")(x), name="images")


def wrappers():
    """Return wrappers that use, together, every part of a wrapper's config."""
    plain = ksd.SelfDistiller(_base(), ["hidden"], "byot", head="linear")
    rate = keras.optimizers.schedules.PolynomialDecay(0.2, 10, 0.9)
    full = ksd.SelfDistiller(
        _image_base(),
        ["stem"],
        ksd.recipes.BYOT(alpha=rate),
        teacher=_image_base(),
        distillation_losses=[keras.distillation.FeatureDistillation("mse")],
        freeze="base",
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    full.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"])
    return {"plain": plain, "full": full}


def write(folder):
    """Write all files below a folder, and the one that nobody may read beside it."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    keras.utils.set_random_seed(0)
    made = wrappers()
    for name, wrapper in made.items():
        wrapper.save(folder / f"{name}.keras")
    fast = ksd.EarlyExit(made["plain"], "margin", last_resort="ensemble")
    random = np.random.default_rng(0)
    x, y = random.normal(size=(20, 4)), np.arange(20) % 3
    fast.calibrate(x, y, macs_budget=2.0).save(folder / "plain.earlyexit")
    _write_folder(folder / "exported")
    _write_checkpoint(folder / "last.checkpoint")
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret\n" * 100)
    with h5py.File(outside / "secret.h5", "w") as file:
        file["secret"] = np.ones((4, 4), "float32")


def _write_checkpoint(path):
    """Write what `Resume` saves inside of an epoch, without training."""
    resume = ksd.callbacks.Resume(path.parent / "run", save_freq=1)
    model = _base()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    resume.set_model(model)
    resume.set_params({"epochs": 1})
    resume.on_train_begin()
    resume.on_epoch_begin(0)
    resume.on_train_batch_end(0)
    (written,) = (path.parent / "run").iterdir()
    shutil.copy(written, path)


def _write_folder(folder):
    """Write a manifest and files beside it; what they hold, only a runtime reads."""
    folder.mkdir()
    sections = []
    for i in (1, 2):
        content = f"section {i}".encode()
        (folder / f"section_{i}.onnx").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        name = f"section_{i}.onnx"
        sections.append({"model": name, "files": {name: digest}})
    manifest = {
        "format": section_runner.FORMAT,
        "version": section_runner.VERSION,
        "runtime": "onnx",
        "exits": ["exit_1", "final"],
        "thresholds": [0.5],
        "sections": sections,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
