"""Add a classifier to a feature extractor."""

import numbers

import keras
from keras import layers

from keras_selfdistill.graph.layout import data_format_of
from keras_selfdistill.graph.nodes import input_structure, unrecorded


def with_classifier(backbone: keras.Model, classes: int) -> keras.Model:
    """Return a classifier built on the layers of a feature extractor.

    It adds global average pooling, if the features have positions, and a dense layer
    with softmax, as in `keras.applications`.

    Args:
        backbone: Functional or built Sequential model with one output of shape
            `(batch, ..., channels)`, such as one built with `include_top=False`.
        classes: Number of classes, at least 2.

    Raises:
        TypeError: `classes` is not an integer, or the backbone not a functional model.
        ValueError: The backbone has several outputs or is a classifier already, or
            there are fewer than 2 classes.

    Example:
        >>> stack = [keras.Input((8, 8, 3)), layers.Conv2D(4, 3)]
        >>> with_classifier(keras.Sequential(stack), classes=10).output_shape
        (None, 10)
    """
    if isinstance(classes, bool) or not isinstance(classes, numbers.Integral):
        raise TypeError(
            f"`classes` must be an integer. Received: classes={classes!r} of type "
            f"{type(classes).__name__}. Expected, for example, classes=10."
        )
    if classes < 2:
        raise ValueError(
            f"A classifier needs several classes. Received: classes={classes}. "
            "Expected: at least 2."
        )
    if not isinstance(backbone, (keras.Function, keras.Sequential)):
        raise TypeError(
            "`classes` adds a classifier to a functional or Sequential model. "
            f"Received: {type(backbone).__name__}."
        )
    if len(backbone.outputs) != 1:
        raise ValueError(
            "`classes` adds a classifier to a model with one output. Received: model "
            f"{backbone.name!r} with {len(backbone.outputs)} outputs. Choose one: "
            "keras.Model(model.inputs, model.outputs[0])."
        )
    feature = backbone.outputs[0]
    last = backbone.layers[-1]
    activation = getattr(last, "activation", None)
    if isinstance(last, layers.Softmax) or activation is keras.activations.softmax:
        raise ValueError(
            f"The model is a classifier already. Received: classes={classes} and model "
            f"{backbone.name!r}, which ends in softmax. Expected: no `classes`, or a "
            "model built with include_top=False."
        )
    pooling = {
        3: layers.GlobalAveragePooling1D,
        4: layers.GlobalAveragePooling2D,
        5: layers.GlobalAveragePooling3D,
    }
    taken = {layer.name for layer in backbone.layers}
    with unrecorded(backbone):
        if len(feature.shape) in pooling:
            pool = pooling[len(feature.shape)](
                data_format=data_format_of(feature), name=_free("avg_pool", taken)
            )
            feature = pool(feature)
        outputs = layers.Dense(
            int(classes), activation="softmax", name=_free("predictions", taken)
        )(feature)
    return keras.Model(input_structure(backbone), outputs, name=backbone.name)


def _free(name: str, taken: set[str]) -> str:
    return next(
        candidate
        for candidate in (name, *(f"{name}_{i}" for i in range(1, len(taken) + 2)))
        if candidate not in taken
    )
