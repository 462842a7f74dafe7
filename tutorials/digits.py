# %% [markdown]
# # Ten minutes with digits
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/)
# (choose *Upload* and this notebook)
#
# A deep network predicts once, at its end. In ten minutes you will have one that also
# predicts on the way there, and you will have chosen which predictions to deploy:
#
# 1. wrap a Keras model, so that it grows *exits*;
# 2. train it with the same `compile` and `fit` as always;
# 3. compare what each exit costs and how often it is right;
# 4. take out the model you want: the whole network, or a smaller one.
#
# The data are 1,797 handwritten digits that come with scikit-learn.

# %% [markdown]
# Keras reads its backend from the environment when it is imported. TensorFlow, JAX and
# PyTorch all work; nothing below depends on the choice.

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
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_selfdistill as ksd

# %% [markdown]
# ## The data
#
# Half of the images are for training, half for the test.

# %%
digits = load_digits()
images = (digits.images[..., np.newaxis] / 16.0).astype("float32")
x_train, x_test, y_train, y_test = train_test_split(
    images, digits.target, test_size=0.5, stratify=digits.target, random_state=0
)
print("train", x_train.shape, "test", x_test.shape)

# %%
figure, axes = plt.subplots(1, 8, figsize=(6, 1))
for axis, image, label in zip(axes, x_train, y_train, strict=False):
    axis.imshow(image[..., 0], cmap="gray_r")
    axis.set_title(label, fontsize=9)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## The base
#
# Any functional or Sequential classifier will do. Ours has three stages; we name the
# end of each, because a name is all that an exit needs.


# %%
def build_base():
    inputs = keras.Input((8, 8, 1))
    x = inputs
    for stage, width in enumerate((16, 32, 64), start=1):
        strides = 1 if stage == 1 else 2
        x = keras.layers.Conv2D(width, 3, strides=strides, padding="same")(x)
        x = keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.ReLU(name=f"stage{stage}_out")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(10, activation="softmax")(x)
    return keras.Model(inputs, outputs, name="digits")


# %% [markdown]
# ## Train it plainly, for comparison


# %%
def train(model, callbacks=()):
    keras.utils.set_random_seed(0)
    model.compile(
        keras.optimizers.Adam(2e-3),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model.fit(
        x_train,
        y_train,
        validation_data=(x_test, y_test),
        batch_size=16,
        epochs=8,
        verbose=0,
        callbacks=list(callbacks),
    )


# %% tags=["measured"]
keras.utils.set_random_seed(0)
plain = build_base()
start = plain.get_weights()
accuracy = train(plain).history["val_accuracy"][-1]
print(f"the plain network: {accuracy:.1%} of the test images")

# %% [markdown]
# ## Wrap it
#
# `SelfDistiller` *taps* the outputs of the layers that you name. On every tap it puts
# a small *head*, which makes an *exit*: a prediction of its own. The base stays as it
# is.
#
# The *recipe* says who learns from what. In `"byot"` (*Be Your Own Teacher*, Zhang et
# al. 2019) every exit learns from the labels, from the probabilities of the final
# exit, and from the feature that the final exit decides by. The final exit learns
# from the labels alone.

# %%
base = build_base()
base.set_weights(start)  # the same first weights, to compare fairly
model = ksd.SelfDistiller(base, taps=["stage1_out", "stage2_out"], recipe="byot")
print(model.exit_names)
print(model.recipe.weights(model.exit_names)["exit_1"])

# %% [markdown]
# Percentages in the picture are multiply-adds, as a share of the base's; below each
# exit stands what a sample costs that exits there, head included.

# %%
ksd.visualization.plot_model(model)

# %% [markdown]
# Nothing is trained yet, but the price of each exit is known.
#
# **Predict before you go on:** the base got nearly all of the test images right. How
# many will the second exit get right, for little more than half of the multiply-adds?
# And the first, for about a sixth?

# %%
print(ksd.profile(model))

# %% [markdown]
# ## Train all exits at once
#
# The same call as before. You pass one loss and one metric, as for the base; the
# wrapper applies them to every exit. `EpochTable` shows after each epoch what a
# progress bar has in one long line.

# %% tags=["measured"]
history = train(model, [ksd.callbacks.EpochTable()])

# %% [markdown]
# Three losses, which the recipe's weights have already scaled, the steps that were
# skipped because a number in them was infinite, and one accuracy for each exit. All are
# in `history.history`:

# %%
print(*sorted(key for key in history.history if "val_" not in key), sep="\n")

# %% [markdown]
# `accuracy` without a prefix is the final exit's, so that
# `ModelCheckpoint(monitor="val_accuracy")` means what it always meant.

# %%
ksd.visualization.plot_history(history)

# %% [markdown]
# ## What did we get?
#
# One pass over the test images, for all exits, the ensemble and the plain network.

# %% tags=["measured"]
report = ksd.report(model, (x_test, y_test), base=plain, verbose=0)
report

# %%
report.plot()

# %% [markdown]
# Compare with your prediction. A small part of the network predicts most digits: what
# the rest of it is for is the few hard ones. (So small a network takes longer to start
# than to compute: look at the multiply-adds, not at the milliseconds.)
#
# Do not compare the plain network with the wrapper's final exit here. With 899 test
# images, the standard error of an accuracy of 98 % is half a point, and another seed
# may move it as much. Whether self-distillation improves the *base* is a question for
# several seeds and a harder task, as in the tutorial `byot_table`.
#
# `ensemble` is the mean of all exits' logits. It costs the whole base and all heads.

# %% [markdown]
# ## Take out what you need
#
# `exit_model` returns a plain Keras model with the layers of one exit and no other:
# the stages behind its tap are gone.

# %%
small = model.exit_model("exit_1")
print(*[layer.name for layer in small.layers], sep="\n")

# %% [markdown]
# It is saved, loaded and served like any model; whoever loads it does not need this
# library.

# %%
small.save("digits_exit_1.keras")
loaded = keras.saving.load_model("digits_exit_1.keras")
same = np.allclose(
    loaded.predict(x_test, verbose=0),
    model.predict(x_test, verbose=0)["exit_1"],
    atol=1e-5,
)
print("predicts like the wrapper's first exit:", same)

# %% [markdown]
# And `final_model()` is the base, with nothing added. Its weights were trained with
# the exits' help; it has as many of them, and costs as much, as the plain network.

# %%
final = model.final_model()
print("as many weights as the plain network:", final.count_params(), end=" = ")
print(plain.count_params())

# %% [markdown]
# ## Common mistakes
#
# - **Reading `evaluate`'s list by position.** With several exits it is long. Ask for
#   `return_dict=True` and read by name.
# - **Calling `model(x)` and expecting one array.** A wrapper returns a dict with every
#   exit's output; `final_model()` returns one array.
# - **Deploying the wrapper.** It holds all heads. Deploy `exit_model(...)`,
#   `final_model()` or an `EarlyExit`.
# - **Passing `loss_weights`.** The recipe weighs the exits:
#   `recipe=ksd.recipes.BYOT(alpha=0.3)`.
# - **Loading an untrusted file by `keras.saving.load_model`.** A file of your own is
#   fine; of others, load a wrapper or an exit by `ksd.load_model`, which refuses
#   everything but a model.
#
# ## Where to go from here
#
# - `applications`: a network of `keras.applications`, and an exit on a device;
# - `early_exit`: let every image exit where it is confident, with a guarantee;
# - `own_recipe`: write your own recipe and head;
# - `byot_table`: what the paper measured, and how to measure it again.
