"""The rows of the accuracy benchmark: what is trained."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

import keras_selfdistill as ksd
from accuracy_grid import initial_weights
from accuracy_grid.presets import Preset
from shared import augmentation

Batch = tuple[np.ndarray, np.ndarray]


TEACHERS = {"resnet18": "resnet34", "resnet50": "resnet101"}  # twice the depth


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One training: a preset's method with one seed, maybe with other constants."""

    preset: Preset
    method: str
    seed: int
    fields: Mapping[str, Any]  # the method's constants
    variant: str = ""

    @property
    def row(self) -> str:
        """Name of the table's row."""
        return f"{self.method}.{self.variant}" if self.variant else self.method

    @property
    def name(self) -> str:
        """Name of the cell's files, without suffix."""
        return f"{self.row}-seed{self.seed}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """How one row of the table is trained.

    Attributes:
        build: `(cell, optimizer, teacher) -> model`, compiled, untrained.
        fields: Named constants, which `--recipe_fields` overrides.
        prepare: `(cell) -> function` of a batch and its own random generator, for
            methods that change images or labels.
        mixes_images: Whether `prepare` computes with images, which must be on the host.
        head: Name of the exits' head, where it is not the recipe's own.
        taught: Whether a deeper network is trained first and handed to `build`.
        base_first: Whether the bare base is trained in the first half of the epochs,
            and handed to `build`, which trains it with its exits in the second.
        options: Further arguments of the wrapper.
    """

    build: Callable[..., keras.Model]
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prepare: Callable[[Cell], Callable[..., Batch]] | None = None
    mixes_images: bool = False
    head: str | None = None
    taught: bool = False
    base_first: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def network(preset: Preset, model: str | None = None, **options: Any) -> keras.Model:
    """Returns an untrained network, the preset's own unless `model` names another."""
    builder = ksd.networks.NETWORKS[model or preset.model]
    built = builder(width_multiplier=preset.width_multiplier, **options)
    if preset.paper_training:
        initial_weights.draw(built.layers, preset.paper_training.initial_weights)
    return built


@functools.cache
def named_taps(model: str, count: int) -> tuple[str, ...] | None:
    """Returns the papers' exits: at the ends of stages, if these are as many.

    Elsewhere the papers do not say where their exits are, and a number places them.
    """
    # Names do not depend on the width.
    small = ksd.networks.NETWORKS[model](width_multiplier=0.125)
    ends = ksd.networks.stage_ends(small)
    return tuple(ends) if len(ends) == count else None


def label_loss(preset: Preset, logits: bool = False) -> keras.losses.Loss:
    """Returns the loss of class indices, or of shares where augmentation mixes them."""
    if augmentation.mixes_labels(preset.augmentation):
        return keras.losses.CategoricalCrossentropy(from_logits=logits)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=logits)


def build_plain(cell, optimizer, teacher=None, *, model=None, logits=False):
    """Returns the bare base."""
    activation = None if logits else "softmax"
    built = network(cell.preset, model, classifier_activation=activation)
    built.compile(optimizer, label_loss(cell.preset, logits), metrics=["accuracy"])
    return built


def build_smoothed(cell, optimizer, teacher=None):
    """Returns the bare base, which learns from one-hot or mixed labels."""
    model = network(cell.preset)
    loss = keras.losses.CategoricalCrossentropy(
        label_smoothing=cell.fields.get("smoothing", 0.0)
    )
    model.compile(optimizer, loss=loss, metrics=["accuracy"])
    return model


def build_wrapped(cell, optimizer, teacher=None, *, base=None):
    """Returns the base with exits, whose heads are the published ones at any cost."""
    chosen = recipe(cell)
    method, preset = METHODS[cell.method], cell.preset
    head = method.head or chosen.head
    base = base or network(preset)
    taps = named_taps(preset.model, preset.taps) or preset.taps
    model = ksd.SelfDistiller(base, taps, chosen, head=head, **method.options)
    if preset.paper_training:
        layers = model.exit_graph.training_network.layers
        exits = tuple(f"{name}_" for name in model.exit_names[:-1])
        initial_weights.draw(
            (layer for layer in layers if layer.name.startswith(exits)),
            preset.paper_training.initial_weights,
        )
    model.compile(optimizer, label_loss(preset), metrics=["accuracy"])
    return model


def build_taught(cell, optimizer, teacher):
    """Returns ordinary distillation: (1 − alpha) · label loss + alpha · T² · KL."""
    student = network(cell.preset, classifier_activation=None)
    model = keras.distillation.Distiller(
        teacher,
        student,
        keras.distillation.LogitsDistillation(
            temperature=cell.fields["temperature"],
            # By its name Keras takes a function, to which it hands raw logits.
            loss=keras.losses.KLDivergence(),
        ),
        student_loss_weight=1.0 - cell.fields["alpha"],
    )
    model.compile(optimizer, label_loss(cell.preset, logits=True), metrics=["accuracy"])
    return model


RECIPES: dict[str, Callable[..., ksd.recipes.Recipe]] = {
    "byot_ensemble_teacher": functools.partial(ksd.recipes.BYOT, teacher="ensemble"),
    "deep_supervision_separable": ksd.recipes.DeepSupervision,
    "separable_byot_mixed": ksd.recipes.SeparableBYOT,
    "separable_byot_equilibrium": ksd.recipes.SeparableBYOT,
}


def recipe(cell: Cell) -> ksd.recipes.Recipe:
    """Returns the recipe of a wrapper, with the published constants or the cell's."""
    if cell.method in RECIPES:
        return RECIPES[cell.method](**cell.fields)
    return dataclasses.replace(ksd.recipes.get(cell.method), **cell.fields)


def prepare_one_hot(cell: Cell) -> Callable[..., Batch]:
    """Returns a function that makes labels one-hot."""
    return lambda images, labels, rng: (images, augmentation.one_hot(labels))


def prepare_cutmix(cell: Cell) -> Callable[..., Batch]:
    """Returns a function that cuts and mixes a share of the batches by Keras' layer."""
    return augmentation.Mixing("cutmix", **cell.fields)


METHODS: dict[str, Method] = {
    "plain": Method(build=build_plain),
    "label_smoothing": Method(
        build=build_smoothed, fields={"smoothing": 0.1}, prepare=prepare_one_hot
    ),
    # CutMix' constants for CIFAR (Yun et al., ICCV 2019).
    "cutmix": Method(
        build=build_smoothed,
        fields={"alpha": 1.0, "probability": 0.5},
        prepare=prepare_cutmix,
        mixes_images=True,
    ),
    "deep_supervision": Method(build=build_wrapped),
    "byot": Method(build=build_wrapped),
    "attention_byot": Method(build=build_wrapped),
    "teskd": Method(build=build_wrapped),
    "rotation_exits": Method(build=build_wrapped),
    "mean_teacher": Method(build=build_wrapped),
    "mix_skd": Method(build=build_wrapped),
    "bake": Method(build=build_wrapped),
    "byot_ensemble_teacher": Method(build=build_wrapped),
    "separable_byot": Method(build=build_wrapped),
    # Trained for early exit: arXiv 2407.14320 and 1908.06294.
    "separable_byot_mixed": Method(build=build_wrapped, base_first=True),
    "separable_byot_equilibrium": Method(
        build=build_wrapped, options={"gradient_equilibrium": True}
    ),
    # What the heads of `separable_byot` give without a teacher.
    "deep_supervision_separable": Method(build=build_wrapped, head="separable"),
    "kd": Method(
        build=build_taught, fields={"alpha": 0.9, "temperature": 4.0}, taught=True
    ),
}


def methods_of(preset: Preset) -> list[str]:
    """Returns the methods that a preset allows.

    "kd" needs a network of twice the depth, "cutmix" images that are not mixed yet.
    """
    impossible = set()
    if preset.model not in TEACHERS:
        impossible |= {name for name, each in METHODS.items() if each.taught}
    if augmentation.mixes_labels(preset.augmentation):
        impossible |= {name for name, each in METHODS.items() if each.mixes_images}
    return [name for name in METHODS if name not in impossible]
