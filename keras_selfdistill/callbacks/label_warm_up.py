"""Labels alone for the first epochs."""

from typing import Any

import keras

from keras_selfdistill.training.distiller import SelfDistiller


class LabelWarmUp(keras.callbacks.Callback):
    """Train with labels alone for the first epochs, then distil.

    Until then every term but the label loss counts, and is logged, as zero. The epoch
    is the one that `fit` counts, so a training that goes on with `initial_epoch` needs
    no more than the same callback.

    Args:
        epochs: Number of epochs with labels alone.

    Raises:
        ValueError: `epochs` is no integer of at least 0.
        TypeError: Another model than a `SelfDistiller` is trained.

    Example:
        >>> LabelWarmUp(epochs=5).epochs
        5
    """

    def __init__(self, epochs: int):
        super().__init__()
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
            raise ValueError(
                "LabelWarmUp.epochs must be an integer of at least 0. Received: "
                f"epochs={epochs!r}."
            )
        self.epochs = epochs

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuse a model that has nothing to warm up."""
        if not isinstance(self.model, SelfDistiller):
            raise TypeError(
                "LabelWarmUp serves a SelfDistiller. Received: a model of type "
                f"{type(self.model).__name__}."
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Switch distillation off or on."""
        self.model.distillation_scale = 0.0 if epoch < self.epochs else 1.0
