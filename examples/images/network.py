"""A network by name, for raw pixels, and which of its layers train how fast."""

import inspect
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from absl import app

import keras_selfdistill as ksd

TOP = "predictions"  # Name of the new last layer.
NEW = f"exit_.*|{TOP}/.*"  # Variables that begin at random, by their paths.


def build(
    name: str,
    *,
    size: tuple[int, int],
    classes: int,
    weights: str | None,
    width_multiplier: float = 1.0,
) -> keras.Model:
    """Returns a classifier of RGB images from 0 to 255; its preprocessing is in it.

    Args:
        name: Name of a function of keras.applications, or of a network of
            `keras_selfdistill.networks`.
        size: Height and width of the images.
        classes: Number of classes.
        weights: `"imagenet"`, which downloads them; a file of weights without the top;
            or `None` for random ones.
        width_multiplier: Factor on the layers' widths, where the network has one.

    Raises:
        UsageError: There is no such network, or no such weights.
    """
    if name in ksd.networks.NETWORKS:
        if weights is not None:
            raise app.UsageError(
                f"Received --weights={weights}, and {name} has none; expected "
                "--weights=none, or a network of keras.applications."
            )
        return _small(name, size, classes, width_multiplier)
    builder = getattr(keras.applications, name, None)
    if not inspect.isfunction(builder):
        raise app.UsageError(
            f"Received --model={name}; expected a function of keras.applications, such "
            f"as EfficientNetV2B0, or one of {', '.join(ksd.networks.NETWORKS)}. Mind "
            "upper and lower case."
        )
    image = keras.Input((*size, 3), name="image")
    backbone = _backbone(
        builder,
        preprocessed(image, preprocessing(builder)),
        weights,
        _width_option(builder, width_multiplier),
    )
    return _with_top(image, backbone.output, classes, name)


def _small(
    name: str, size: tuple[int, int], classes: int, width_multiplier: float
) -> keras.Model:
    network = ksd.networks.NETWORKS[name](
        input_shape=(*size, 3), classes=classes, width_multiplier=width_multiplier
    )
    image = keras.Input((*size, 3), name="image")
    scaled = keras.layers.Rescaling(1 / 127.5, -1.0, name="preprocessing")(image)
    return keras.Model(image, network(scaled), name=f"{name}_on_pixels")


def _width_option(builder: Any, width_multiplier: float) -> dict[str, float]:
    if "alpha" in inspect.signature(builder).parameters:
        return {"alpha": width_multiplier}
    if width_multiplier != 1:
        raise app.UsageError(
            f"Received --width_multiplier={width_multiplier}, but the network has a "
            "fixed width; expected 1. Choose another --model, or leave it out."
        )
    return {}


def _backbone(
    builder: Any, image: Any, weights: str | None, options: dict[str, float]
) -> keras.Model:
    try:
        return builder(
            include_top=False,
            pooling="avg",
            weights=weights,
            input_tensor=image,
            input_shape=tuple(image.shape[1:]),  # By which some choose their weights.
            **options,
        )
    except Exception as error:  # no connection, no such file or size, ...
        raise app.UsageError(
            f"Received --model={builder.__name__} --weights={weights} and images of "
            f"shape {image.shape[1:]}, with which Keras could not build it: {error}\n"
            "Expected: a size that the network takes and, for --weights=imagenet, a "
            "connection or the file in ~/.keras/models. --weights=none needs neither."
        ) from error


def _with_top(image: Any, feature: Any, classes: int, name: str) -> keras.Model:
    # In float32 under mixed precision, too: a half-precision softmax saturates.
    top = keras.layers.Dense(classes, "softmax", dtype="float32", name=TOP)
    return keras.Model(image, top(feature), name=f"{name}_on_pixels")


def preprocessing(builder: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns what a network's `preprocess_input` does to pixels, by trying it.

    Returns:
        Matrix (3, 3) and offset (3,): `pixel @ matrix + offset`.
    """
    module = getattr(keras.applications, builder.__module__.rsplit(".", 1)[-1])
    probe = np.concatenate([np.zeros((1, 3)), 255 * np.eye(3)]).astype("float32")
    found = module.preprocess_input(
        probe.reshape(4, 1, 1, 3).copy(), data_format="channels_last"
    )
    black, *channels = np.asarray(found, "float64").reshape(4, 3)
    return (np.stack(channels) - black) / 255, black


def preprocessed(image: Any, found: tuple[np.ndarray, np.ndarray]) -> Any:
    """Returns an image after a preprocessing, as layers of the network itself."""
    matrix, offset = found
    if not np.diag(matrix).all():  # RGB to BGR, as networks that came from Caffe want.
        image, matrix = keras.ops.flip(image, axis=-1), matrix[::-1]
    scale = np.diag(matrix)
    if np.abs(matrix - np.diag(scale)).max() > 1e-6:
        raise ValueError(f"Channels are mixed: {matrix.tolist()}.")
    if np.allclose(scale, 1) and np.allclose(offset, 0):
        return image
    layer = keras.layers.Rescaling(
        scale.tolist(), offset.tolist(), name="preprocessing"
    )
    return layer(image)


def layers_of(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yields the layers of a model and of the models in it."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from layers_of(layer)
        else:
            yield layer


def set_backbone(base: keras.Model, *, trainable: bool, statistics: bool) -> None:
    """Freezes or releases all of a base but its last layer; compile afterwards.

    Args:
        base: As of `build`.
        trainable: Whether it trains.
        statistics: Whether its batch normalization trains, too. Of pretrained networks
            it stays as it is, as Keras advises: a small data set would spoil it.
    """
    for layer in layers_of(base):
        if layer.name != TOP:
            normalizes = isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = trainable and (statistics or not normalizes)


def optimizer(learning_rate: float, base_rate: float) -> keras.optimizers.Optimizer:
    """Returns Adam with one rate for exits and the last layer, another for the rest."""
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            default_optimizer=keras.optimizers.Adam(base_rate),
            optimizer_map={NEW: keras.optimizers.Adam(learning_rate)},
        )
    )
