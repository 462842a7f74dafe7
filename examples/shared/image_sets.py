"""Digits or CIFAR-100, by name: images, training on them, accuracy on them."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
from absl import app, flags

import keras_selfdistill as ksd


class Images(NamedTuple):
    """Training and test images of one data set.

    `train` holds them as `fit` of this module wants them: float32 digits, uint8
    CIFAR-100, which is augmented. `test` holds float32 images as models take them.
    """

    name: str
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def load(
    name: str, data_dir: str, *, train_examples: int | None = None, seed: int = 0
) -> Images:
    """Returns the images of a data set.

    Args:
        name: `"digits"`, scikit-learn's 1,797 handwritten digits, halved at random into
            training and test; or `"cifar100"`.
        data_dir: Folder with CIFAR-100; not read for digits.
        train_examples: Size of the training set; `None` takes all. The same number of
            images of every class of CIFAR-100; digits in the order of the split, which
            is random.
        seed: Chooses the split of digits.

    Raises:
        UsageError: There are not that many training images.
    """
    if name == "cifar100":
        from shared import cifar100

        data = cifar100.load(data_dir, train_examples=train_examples)
        test = cifar100.normalize(data.test.images), data.test.labels
        return Images(name, tuple(data.train), test)
    import quickstart

    (images, labels), test = quickstart.load_images(seed)
    if train_examples is not None and not 1 <= train_examples <= len(images):
        raise app.UsageError(
            f"Received --train_examples={train_examples}; expected 1 to {len(images)} "
            "for --data=digits."
        )
    return Images(name, (images[:train_examples], labels[:train_examples]), test)


def build_base(data: str, model: str, width_multiplier: float = 1.0) -> keras.Model:
    """Returns the untrained network for a data set.

    Args:
        data: `"digits"`, which have the quickstart's network, or `"cifar100"`.
        model: Name of a network of `keras_selfdistill.networks`, for CIFAR-100.
        width_multiplier: Factor on its layer widths.

    Raises:
        UsageError: There is no such network.
    """
    if data == "digits":
        import quickstart

        return quickstart.build_base()
    networks = ksd.networks.NETWORKS
    if model not in networks:
        raise app.UsageError(
            f"Received --model={model}; expected one of {', '.join(networks)}."
        )
    return networks[model](width_multiplier=width_multiplier)


def quiet_tensorflow() -> None:
    """Silences warnings that several models' functions were one, traced again."""
    logging.getLogger("tensorflow").setLevel("ERROR")


def compile_model(
    model: keras.Model, learning_rate: float, steps: int, weight_decay: float
) -> None:
    """Compiles a model with momentum and a rate that falls to 0.

    Args:
        model: A classifier or a wrapper.
        learning_rate: Learning rate at the start.
        steps: Number of steps until the rate is 0.
        weight_decay: L2 decay, as PyTorch counts it.
    """
    momentum = 0.9
    model.compile(
        keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(learning_rate, steps),
            momentum=momentum,
            nesterov=True,
            # As in train_cifar100.py, where a comment says why.
            weight_decay=weight_decay / (1 - momentum),
        ),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )


def prepare(model: keras.Model, images: Images, settings: flags.FlagValues) -> None:
    """Compiles a model as the flags of `image_flags.define_training` say."""
    steps = settings.epochs * -(-len(images.train[0]) // settings.batch_size)
    compile_model(model, settings.learning_rate, steps, settings.weight_decay)


def train(
    model: keras.Model,
    images: Images,
    settings: flags.FlagValues,
    seed: int | None = None,
) -> keras.callbacks.History:
    """Trains a compiled model as the flags say, from another seed if it is given."""
    return fit(
        model,
        images,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        seed=settings.seed if seed is None else seed,
        augmentations=settings.augmentation,
    )


def check_augmentation(settings: flags.FlagValues) -> None:
    """Raises a `UsageError` where `--augmentation` cannot be what it asks for."""
    from shared import augmentation

    if settings.augmentation is None:
        return
    given = ",".join(settings.augmentation)
    if settings.data == "digits":
        raise app.UsageError(
            f"Received --augmentation={given} --data=digits; expected --data=cifar100: "
            "digits are trained as they are."
        )
    if augmentation.mixes_labels(augmentation.chosen(settings.augmentation)):
        raise app.UsageError(
            f"Received --augmentation={given}; expected some of "
            f"{', '.join(augmentation.KEEP_LABELS)}, which keep labels. "
            "train_cifar100.py mixes them."
        )


def fit(
    model: keras.Model,
    images: Images,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    augmentations: Sequence[str] | None = None,
) -> keras.callbacks.History:
    """Trains a compiled model on the training images, shuffled by `seed`.

    Args:
        model: A classifier or a wrapper.
        images: Digits, which are taken as they are, or CIFAR-100.
        epochs: Passes over the training images.
        batch_size: Images per step.
        seed: Non-negative integer.
        augmentations: Of CIFAR-100, as `shared.augmentation.chosen` takes them.
    """
    keras.utils.set_random_seed(seed)
    if images.name == "digits":
        return model.fit(*images.train, batch_size=batch_size, epochs=epochs)
    from shared import augmentation

    data = augmentation.build(
        augmentation.chosen(augmentations),
        *images.train,
        batch_size,
        seed=seed,
        place=augmentation.default_place(),
    )
    steps = data.num_batches
    return model.fit(
        data.batches(), steps_per_epoch=steps, epochs=epochs, shuffle=False
    )


def accuracy(model: keras.Model, images: Images, batch_size: int = 256) -> float:
    """Returns the accuracy of a model on the test images."""
    inputs, labels = images.test
    outputs = model.predict(inputs, batch_size=batch_size)
    return float(np.mean(np.argmax(outputs, axis=-1) == labels))
