# %% [markdown]
# # Your own recipe and head
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/)
# (choose *Upload* and this notebook)
#
# Research on self-distillation asks two questions again and again: *who should learn
# what from whom*, and *what should stand between a layer and its output*. Here the
# first is a **recipe**, the second a **head**, and each is a small class of your own:
# no training loop, no change to the package.
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

import dataclasses

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_selfdistill as ksd

# %%
digits = load_digits()
images = (digits.images[..., np.newaxis] / 16.0).astype("float32")
x_train, x_test = np.split(images, [1000])
y_train, y_test = np.split(digits.target, [1000])


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
# ## What a recipe is
#
# A recipe is data. Its method `weights` gets the names of the exits, shallow to deep,
# and returns for each how much three losses count: the *label* loss; the *soft-target*
# loss, which compares the exit's probabilities with its teacher's; and the *hint*,
# which compares features. See what the ready ones say:

# %%
names = ["exit_1", "exit_2", "final"]
for recipe in (ksd.recipes.DeepSupervision(), ksd.recipes.BYOT(alpha=0.3)):
    print(type(recipe).__name__)
    for name, weights in recipe.weights(names).items():
        print(f"  {name:7} {weights}")

# %% [markdown]
# ## Write one
#
# An idea: a shallow exit sees too little to copy the final exit, so it should trust
# the labels; the deeper the exit, the more it should trust the teacher. With n
# shallow exits, exit i gets the share `alpha * i / n` of soft targets.
#
# Three things are needed: a frozen dataclass, so that nothing changes in mid-training;
# a registered name, so that a saved model can be loaded; and `weights`.


# %%
@keras.saving.register_keras_serializable(package="tutorial")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DeeperTrustsMore(ksd.recipes.Recipe):
    """The share of soft targets grows with depth."""

    alpha: float = 0.5
    temperature: float = 3.0

    def weights(self, exit_names):
        *shallow, final = exit_names
        weights = {final: ksd.recipes.TermWeights(label=1.0)}
        for depth, name in enumerate(shallow, start=1):
            share = self.alpha * depth / len(shallow)
            weights[name] = ksd.recipes.TermWeights(
                label=1.0 - share, soft_target=share
            )
        return weights


# %% [markdown]
# Look before you train. **Which line do you expect for `exit_1`?**

# %%
recipe = DeeperTrustsMore(alpha=0.5)
for name, weights in recipe.weights(names).items():
    print(f"{name:7} {weights}")

# %% [markdown]
# The fields that you inherit work at once: `teacher="next"` lets the next deeper exit
# teach instead of the final one, `detach_teacher=False` lets the gradient flow into
# the teacher, and a temperature of 0 is refused:

# %%
try:
    DeeperTrustsMore(temperature=0.0)
except ValueError as error:
    print(error)

# %% [markdown]
# ## Write a head
#
# A head gets the symbolic output of the tapped layer and returns a *feature*, as wide
# as the one that the base's own classifier reads (`target.width`): only then can a
# hint compare the two. Name its layers after the exit, so that two exits do not
# clash. The classifier behind the feature is added for you.
#
# Ours asks, for each channel, whether a pattern is *anywhere* in the image.


# %%
@keras.saving.register_keras_serializable(package="tutorial")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Anywhere(ksd.heads.Head):
    """The maximum over the image, and one dense layer."""

    def __call__(self, tap, target, *, name, dtype=None):
        x = keras.layers.GlobalMaxPooling2D(name=f"{name}_max", dtype=dtype)(tap)
        return keras.layers.Dense(
            target.width, activation="relu", name=f"{name}_feature", dtype=dtype
        )(x)


# %%
keras.utils.set_random_seed(0)
model = ksd.SelfDistiller(
    build_base(), taps=["stage1_out", "stage2_out"], recipe=recipe, head=Anywhere()
)
print(*[layer.name for layer in model.exit_model("exit_1").layers], sep="\n")

# %% [markdown]
# ## Train with it

# %%
model.compile(
    keras.optimizers.Adam(2e-3),
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
)
history = model.fit(x_train, y_train, batch_size=64, epochs=15, verbose=0).history
print("losses:", *[key for key in history if key.endswith("loss")])

# %% [markdown]
# There is no `hint_loss`, since no exit gives it a weight.

# %% tags=["measured"]
ksd.report(model, (x_test, y_test), repeats=0, verbose=0)

# %% [markdown]
# ## Check it by hand
#
# A loss that is wrong by a factor still goes down. So compute it once on paper, which
# means in NumPy. Softmax forgets a constant added to all logits, so the logarithm of a
# probability serves as the logit. At temperature T, the loss of one image is
#
# $$T^2 \sum_c p_c (\log p_c - \log q_c),$$
#
# with p the teacher's and q the exit's probabilities, both from logits divided by T.


# %%
def soft_target(teacher, student, temperature):
    def soften(probabilities):
        powers = probabilities.astype("float64") ** (1 / temperature)
        return powers / powers.sum(axis=-1, keepdims=True)

    p, q = soften(teacher), soften(student)
    return temperature**2 * (p * np.log(p / q)).sum(axis=-1).mean()


logs = model.evaluate(x_test, y_test, verbose=0, return_dict=True)
outputs = model.predict(x_test, verbose=0)
by_hand = sum(
    recipe.weights(names)[name].soft_target
    * soft_target(outputs["final"], outputs[name], recipe.temperature)
    for name in ("exit_1", "exit_2")
)
print("as the log says:", np.allclose(by_hand, logs["soft_target_loss"], rtol=1e-3))

# %% [markdown]
# ## Save and load
#
# Both classes are found by their registered names. In another program, define or
# import them before you load. `ksd.load_model` makes nothing of a file but what is
# registered or Keras' own.

# %%
model.save("own.keras")
loaded = ksd.load_model("own.keras")
print(loaded.recipe)
print(loaded.head)

# %% [markdown]
# What you deploy needs neither: `exit_model` returns Keras layers alone.
#
# ## Common mistakes
#
# - **An exit that `weights` forgets**, for example the final one: an error when you
#   compile, not silence.
# - **Code in `weights` that looks at data.** It gets names. What changes over time is
#   a *schedule*: pass a `keras.optimizers.schedules` object as a field, as in
#   `ksd.recipes.BYOT(alpha=keras.optimizers.schedules.PolynomialDecay(0.0, 500,
#   0.3))`.
# - **A comparison by one run.** Before you believe that your recipe is better than
#   `"byot"`, run both with several seeds, and run `"deep_supervision"`, too: it has the
#   same exits and no teacher, and tells what the exits alone do.
# - **A hint for a feature of another kind.** Ours is a maximum behind ReLU, the
#   base's an average. The hint would ask them to be equal; try a weight, and look at
#   the accuracy.
