"""Mixup and CutMix of a batch, by Keras' own layers."""

import warnings
from typing import Any

import keras
import numpy as np

from shared import cifar100

# Layer, alpha of its Beta(alpha, alpha), share of batches that are mixed: for CIFAR by
# Zhang et al. (mixup, ICLR 2018) and Yun et al. (CutMix, ICCV 2019).
MIXINGS = {"mixup": ("mixup", 1.0, 1.0), "cutmix": ("cutmix", 1.0, 0.5)}


def one_hot(labels: np.ndarray) -> np.ndarray:
    """Maps class indices (n,) to one-hot labels (n, 100), and keeps such labels."""
    if labels.ndim == 2:
        return labels
    return np.eye(cifar100.CLASSES, dtype="float32")[labels]


class Mixing:
    """Mixes the images of a batch and, by the same shares, their labels.

    A function of the batch and a random generator, for `Augmented(mix=…)`.

    Args:
        name: `"mixup"` or `"cutmix"`.
        alpha: Shares are drawn from Beta(alpha, alpha).
        probability: Share of the batches that are mixed; labels of others are one-hot.
    """

    def __init__(self, name: str, alpha: float, probability: float) -> None:
        self._probability = probability
        self._layer = (
            keras.layers.MixUp(alpha=alpha, dtype="float32")
            if name == "mixup"
            # From the range `factor`, so from its only value.
            else keras.layers.CutMix(factor=(alpha, alpha), dtype="float32")
        )
        self._generator = keras.random.SeedGenerator(0)
        self._transform = self._mixed
        if keras.backend.backend() == "jax":
            import jax

            # As single calls it would keep Python busy.
            self._transform = jax.jit(self._mixed)
            # Keras' MixUp asks for indices of 64 bits, which JAX does not have.
            warnings.filterwarnings("ignore", "Explicitly requested dtype int64")

    def __call__(
        self, images: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns float32 images (n, …) and labels (n, 100)."""
        targets = one_hot(labels)
        if rng.random() >= self._probability:
            return images, targets
        # A generator that went on from batch to batch could not be repeated by a
        # resumed training. The accelerator is busy with the network.
        with keras.device("cpu:0"):
            tensor, array = keras.ops.convert_to_tensor, keras.ops.convert_to_numpy
            seed = [int(rng.integers(2**31)), 0]
            state = tensor(seed, self._generator.state.dtype)
            mixed, shares = self._transform(images, tensor(targets), state)
            return array(mixed), array(shares)

    def _mixed(self, images: Any, targets: Any, state: Any) -> tuple[Any, Any]:
        layer, generator = self._layer, self._generator
        with keras.StatelessScope(state_mapping=[(generator.state, state)]):
            drawn = layer.get_random_transformation(images, seed=generator)
            mixed = layer.transform_images(images, drawn)
            return mixed, layer.transform_labels(targets, drawn)
