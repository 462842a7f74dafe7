# %% [markdown]
# # A network of `keras.applications`, and an exit to deploy
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/)
# (choose *Upload* and this notebook)
#
# You have a network that others have trained, and a job with less compute than it
# wants. Here is one way to a smaller network that did not need a smaller design:
#
# 1. fine-tune the pretrained network on your classes, as you would have anyway;
# 2. grow exits on it, while it stays exactly as it is;
# 3. let all of it learn together, for a last gain;
# 4. choose an exit by its cost, and take it out.
#
# You should know the tutorial `digits`.

# %%
import importlib.util
import os
import pathlib
import subprocess
import sys

if importlib.util.find_spec("keras_selfdistill") is None:  # for example in Colab
    here = pathlib.Path.cwd()
    wheels = sorted(here.glob("keras_selfdistill-*.whl"))
    checkouts = [
        file.resolve().parents[1]
        for folder in (".", "..", "*")
        for file in here.glob(f"{folder}/keras_selfdistill/__init__.py")
    ]
    sources = ["keras-selfdistill", *wheels[-1:], *checkouts]  # the index first
    install = [sys.executable, "-m", "pip", "install", "-q"]
    tries = ([*install, f"{source}[demo]"] for source in sources)
    if all(subprocess.run(each, capture_output=True).returncode for each in tries):
        sys.exit(
            "keras_selfdistill could not be installed: put its wheel, which "
            "`python -m pip wheel --no-deps .` makes in a checkout, beside this "
            "notebook, and run this cell again."
        )
os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # or "jax", or "torch"

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow_datasets as tfds

import keras_selfdistill as ksd

# %% [markdown]
# ## The constants
#
# `PRETRAINED = True` begins with ImageNet's weights, as you would: then everything is
# better and faster, but Keras downloads them. **The outputs stored here are of
# `False`**, of random weights, which need no connection.

# %% small={"TRAIN": "train[:20%]", "EPOCHS": 1}
PRETRAINED = False
TRAIN = "train"
WEIGHTS = "imagenet" if PRETRAINED else None
EPOCHS = 5 if PRETRAINED else 12
RATE = 2e-4 if PRETRAINED else 1e-3

# %% [markdown]
# ## The data
#
# Ten of CIFAR-100's classes are vehicles: 5,000 training images, 1,000 for the test.

# %%
VEHICLES = [
    "bicycle",
    "bus",
    "lawn_mower",
    "motorcycle",
    "pickup_truck",
    "rocket",
    "streetcar",
    "tank",
    "tractor",
    "train",
]


def load(split):
    data, info = tfds.load(
        "cifar100", split=split, batch_size=-1, as_supervised=True, with_info=True
    )
    images, labels = tfds.as_numpy(data)
    names = np.array(info.features["label"].names)[labels]
    chosen = np.isin(names, VEHICLES)
    return images[chosen].astype("float32"), np.searchsorted(VEHICLES, names[chosen])


x_train, y_train = load(TRAIN)
x_test, y_test = load("test")
print("test images:", x_test.shape)

# %%
figure, axes = plt.subplots(2, 5, figsize=(6, 3), layout="constrained")
for label, axis in enumerate(axes.flat):
    axis.imshow(x_test[y_test == label][0].astype("uint8"))
    axis.set_title(VEHICLES[label].replace("_", " "), fontsize=9)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## 1. Fine-tune as always
#
# MobileNet in a quarter of its width is small to begin with, so that this runs on a
# laptop. Any other network of `keras.applications` goes through the same lines.
#
# Every one of them wants its own kind of input. MobileNet reads -1 to 1; we put that
# into the model, where nobody can forget it when it is served.

# %%
backbone = keras.applications.MobileNet(
    input_shape=(64, 64, 3),
    alpha=0.25,
    include_top=False,
    weights=WEIGHTS,
    name="backbone",
)
inputs = keras.Input((32, 32, 3))
x = keras.layers.Resizing(64, 64)(inputs)
x = keras.layers.Rescaling(1 / 127.5, offset=-1)(x)
x = keras.layers.GlobalAveragePooling2D()(backbone(x))
outputs = keras.layers.Dense(len(VEHICLES), activation="softmax")(x)
base = keras.Model(inputs, outputs, name="vehicles")


# %%
def fit(model, learning_rate):
    model.compile(
        keras.optimizers.Adam(learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(x_train, y_train, batch_size=32, epochs=EPOCHS, verbose=0)


# %% tags=["measured"]
keras.utils.set_random_seed(0)
fit(base, RATE)
_, accuracy = base.evaluate(x_test, y_test, verbose=0)
print(f"the base, fine-tuned: {accuracy:.1%} of the test images")

# %% [markdown]
# ## 2. Grow exits on it
#
# Where? You may name layers. Or ask for a number of exits: taps then lie at ends of
# blocks, at about equal steps of compute. Layers of a nested model carry its name.

# %%
print(ksd.suggest_taps(base, exits=2))

# %% [markdown]
# `freeze="base"` trains the exits alone. The base is finished, and has something to
# teach; and should you stop here, its predictions are exactly those from before.

# %%
before = base.predict(x_test, verbose=0)
model = ksd.SelfDistiller(base, taps=2, recipe="byot", freeze="base")
fit(model, 1e-3)
after = model.final_model().predict(x_test, verbose=0)
print("the base predicts as before:", np.allclose(before, after, atol=1e-5))

# %% [markdown]
# This is what was built:

# %%
ksd.visualization.plot_model(model)

# %% [markdown]
# **Predict:** the exits' heads are new and small, and all that they can use is what
# the base computes for its own purpose. How close do they come?

# %% tags=["measured"]
frozen = ksd.report(model, (x_test, y_test), repeats=0, verbose=0)
frozen

# %% [markdown]
# ## 3. Let all of it learn together
#
# Now the layers below an exit may also change to serve it. Unfreeze, **compile again**
# (Keras looks at `trainable` only then), and take the small rate of the fine-tuning.

# %% tags=["measured"]
model.base.trainable = True
fit(model, RATE)
together = ksd.report(model, (x_test, y_test), verbose=0)
together

# %% [markdown]
# Side by side, exit by exit:

# %% tags=["measured"]
ksd.compare({"exits alone": frozen, "all together": together})

# %% [markdown]
# Layers below an early exit had never been asked
# to help it: look there for a gain first. The final exit may gain or lose a little; how
# much of it is chance, only further seeds can tell. Where `ECE` has grown, the network
# is surer than it is right: it has seen the training images too often.
#
# Does a shallow exit beat the end? So it may in a short run from random weights: the
# deep layers have not learned to use what they get. Then exits are no remedy for the
# base, but they have shown you something: it wants more training, or less depth.
#
# ## 4. Take an exit out
#
# What you get is a functional Keras model: nested models are flattened, and what lies
# behind the tap is gone, from the file as well: the columns `params` and `size` above
# are of that model and its file.
#
# Multiply-adds are a promise; a clock is the proof. `pick_exit` measures every exit on
# this machine with one image, and returns the deepest that is fast enough.

# %% tags=["measured"]
picked = ksd.pick_exit(model, max_latency_ms=1000, sample=x_test[:1])
print(picked)

# %% [markdown]
# Here all of them fit, in a second. Set the budget to what your job allows. (At one
# small image, starting so many small operations takes longer than the arithmetic:
# expect smaller differences between exits than their multiply-adds promise.)

# %%
small = model.exit_model("exit_1")
small.save("vehicles.keras")
loaded = ksd.load_model("vehicles.keras")  # of your own files, Keras' loader will do
prediction = VEHICLES[loaded.predict(x_test[:1], verbose=0)[0].argmax()]
print("a vehicle:", prediction in VEHICLES)

# %% [markdown]
# ## Common mistakes
#
# - **The wrong preprocessing**, or doing it twice. Some networks (EfficientNet,
#   ConvNeXt, MobileNetV3) already contain theirs.
# - **Wrapping before there is anything to learn from** is no mistake: training base
#   and exits together from the start is what the papers do. Freezing an *untrained*
#   base is one: the exits then copy a teacher that knows nothing.
# - **Unfreezing without compiling again.** Nothing happens, and nothing tells you.
# - **A rate for new layers on pretrained ones.** Two rates in one training are
#   possible, too, with a `keras.optimizers.MultiOptimizer`.
# - **On JAX or PyTorch with a GPU:** TensorFlow, which reads the data set, takes the
#   GPU's memory for itself. Call `tf.config.set_visible_devices([], "GPU")` before.
