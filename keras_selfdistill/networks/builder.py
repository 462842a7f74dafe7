"""From a function of the last feature map to a model builder."""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import keras
from keras import layers

from keras_selfdistill.utils.image_format import image_shape
from keras_selfdistill.utils.initializers import initialize_as_papers

Tensor: TypeAlias = keras.KerasTensor


@dataclasses.dataclass(frozen=True)
class Width:
    """A network's own layer widths, narrowed or widened.

    Args:
        multiplier: Factor on every width.
    """

    multiplier: float

    def __call__(self, channels: int) -> int:
        """Return a multiple of 8, at least 8."""
        return max(8, 8 * round(channels * self.multiplier / 8))


def network(features: Callable[[Tensor, Width], Tensor]) -> Callable[..., keras.Model]:
    """Make a model builder from a function that returns the last feature map."""

    def build(
        *,
        input_shape: tuple[int, int, int] | None = None,
        classes: int = 100,
        width_multiplier: float = 1.0,
        classifier_activation: str | None = "softmax",
        paper_initialization: bool = False,
        name: str = features.__name__,
    ) -> keras.Model:
        _check_arguments(classes, width_multiplier)
        inputs = keras.Input(image_shape(input_shape))
        x = features(inputs, Width(width_multiplier))
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        # A half-precision softmax saturates, and the losses are computed from it.
        predictions = layers.Dense(
            classes, classifier_activation, dtype="float32", name="predictions"
        )
        model = keras.Model(inputs, predictions(x), name=name)
        return initialize_as_papers(model) if paper_initialization else model

    # Not functools.wraps: help() has to show the signature of `build`.
    build.__name__ = build.__qualname__ = features.__name__
    build.__doc__, build.__module__ = features.__doc__, features.__module__
    return build


def _check_arguments(classes: int, width_multiplier: float) -> None:
    if classes < 2:
        raise ValueError(
            f"Received classes={classes}; expected at least 2, one for each label."
        )
    if not width_multiplier > 0:
        raise ValueError(
            f"Received width_multiplier={width_multiplier}; expected a number above "
            "0: 1.0 is the paper's network, 0.25 a quarter of its width."
        )
