"""A small ResNet learns CIFAR-100: the loss falls and every exit beats chance."""

import keras
import pytest

import keras_selfdistill as ksd
from shared import augmentation, cifar100


@pytest.mark.long
@pytest.mark.real_data
def test_two_epochs_on_5000_images(tfds_folder):
    data = cifar100.load(tfds_folder, train_examples=5000)
    assert data.train.images.shape == (5000, 32, 32, 3)
    keras.utils.set_random_seed(0)
    base = ksd.networks.resnet18(width_multiplier=0.25)
    model = ksd.SelfDistiller(base, taps=3, recipe="byot")
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    augmented = augmentation.Augmented(
        data.train.images, data.train.labels, batch_size=32, seed=0
    )
    history = model.fit(
        augmented.batches(),
        steps_per_epoch=augmented.num_batches,
        epochs=2,
        shuffle=False,
        verbose=0,
    ).history
    assert history["loss"][1] < history["loss"][0]
    test = cifar100.normalize(data.test.images)
    logs = model.evaluate(
        test, data.test.labels, batch_size=256, verbose=0, return_dict=True
    )
    chance = 1 / 100
    for name in ("exit_1_accuracy", "exit_2_accuracy", "exit_3_accuracy", "accuracy"):
        assert logs[name] > 5 * chance, logs
