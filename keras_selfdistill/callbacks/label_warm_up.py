"""`LabelWarmUp`: label losses only for the first epochs."""

import keras

from keras_selfdistill.training.distiller import SelfDistiller
from keras_selfdistill.utils.type_aliases import Logs


class LabelWarmUp(keras.callbacks.Callback):
    """Train with the label loss only for the first epochs, then distil.

    During these epochs every term but the label loss is zero, also in the logs. Epochs
    are numbered as in `fit`, so a training resumed by `initial_epoch` uses the same
    callback.

    Args:
        epochs: Number of epochs with the label loss only.

    Raises:
        ValueError: `epochs` is not an integer of at least 0.
        TypeError: The trained model is not a `SelfDistiller`.

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

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Check the type of the model."""
        if not isinstance(self.model, SelfDistiller):
            raise TypeError(
                "LabelWarmUp needs a SelfDistiller. Received: a model of type "
                f"{type(self.model).__name__}."
            )

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Switch distillation off or on."""
        self.model.distillation_scale = 0.0 if epoch < self.epochs else 1.0
