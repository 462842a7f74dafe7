"""The sizes of the accuracy benchmark, and how the papers' own code trains."""

import dataclasses

from accuracy_grid.initial_weights import FAN_OUT, PYTORCH
from shared.augmentation import STANDARD


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperTraining:
    """How the public code of a paper trains, where that differs between papers.

    They share the rate at the start (0.1), momentum (0.9), weight decay (5e-4) and, at
    preset `paper`, the size of a batch (128).

    Attributes:
        code: Whose code.
        epochs: Passes over the training images.
        divided_after: Epochs after which the learning rate is divided by 10.
        nesterov: Whether momentum is Nesterov's.
        augmentation: As of `Preset`.
        crop_fill: Grey level of the border over which images are cropped.
        initial_weights: As `initial_weights.draw` takes it, of the base and the exits.
    """

    code: str
    epochs: int = 200
    divided_after: tuple[int, ...] = (75, 130, 180)
    nesterov: bool = False
    augmentation: tuple[str, ...] = (STANDARD,)
    crop_fill: int = 0
    initial_weights: str = FAN_OUT


BYOT_PAPER = PaperTraining(code="BYOT, public reproduction")
# Those of all other methods are BYOT's, so that its baselines are trained as it is.
PAPERS = {
    # ⅓, ⅔ of the epochs, and ten before their end.
    "attention_byot": PaperTraining(
        code="journal version of BYOT",
        epochs=250,
        divided_after=(83, 166, 240),
        augmentation=("autoaugment", "cutout"),
        crop_fill=128,
    ),
    "teskd": PaperTraining(
        code="TESKD",
        divided_after=(100, 150),
        nesterov=True,
        initial_weights=PYTORCH,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """What all cells of a table share, so that methods alone differ.

    Schedule and augmentation are those of BYOT (ICCV 2019) for every method, with
    Nesterov momentum, also where a method's own paper trained otherwise. `as_in_paper`
    returns a preset that follows the method's paper.

    Attributes:
        model: Name in `keras_selfdistill.networks.NETWORKS`.
        width_multiplier: Factor on the layer widths, of the teacher as well.
        train_examples: The first images of every class, together; `None`: all.
        validation_examples: Held out of the training images by `--select`.
        test_examples: The first test images; `None`: all.
        epochs: Passes over the training images.
        batch_size: Images per step.
        schedule: `"cosine"` to 0; `"step"`: ÷10 after 37.5 %, 65 %, 90 % of steps; or
            `"paper"`: by `paper_training`.
        warmup_steps: Steps in which the rate rises from 0, with `"cosine"`.
        dtype: Keras dtype policy.
        taps: Number of exits besides the base's own; at the ends of stages, as in the
            papers, in networks of one stage more.
        checkpoint_every: Epochs between checkpoints; decides no result.
        augmentation: As `shared.augmentation.chosen` returns it.
        paper_training: How the method's own paper trains; `None`: as all others do.
    """

    model: str = "resnet18"
    width_multiplier: float = 1.0
    train_examples: int | None = None
    validation_examples: int = 5000
    test_examples: int | None = None
    epochs: int = 200
    batch_size: int = 128
    schedule: str = "cosine"
    warmup_steps: int = 0
    dtype: str = "float32"
    taps: int = 3
    checkpoint_every: int = 1
    augmentation: tuple[str, ...] = (STANDARD,)
    paper_training: PaperTraining | None = None


PRESETS = {
    "cpu": Preset(
        width_multiplier=0.375,  # 24 channels at first
        train_examples=5000,
        epochs=40,
        batch_size=64,
        warmup_steps=200,
        checkpoint_every=4,
    ),
    "cpu_full": Preset(width_multiplier=0.25, epochs=12, warmup_steps=200),
    "paper": Preset(schedule="step", dtype="mixed_bfloat16", checkpoint_every=5),
    "smoke": Preset(
        width_multiplier=0.125,
        train_examples=200,
        validation_examples=100,
        test_examples=200,
        epochs=2,
        batch_size=100,
        warmup_steps=2,
    ),
}


SCHEDULES = ("common", "paper")


def named_preset(
    name: str,
    model: str | None = None,
    schedule: str = "common",
    augmentation: tuple[str, ...] = (STANDARD,),
) -> tuple[str, Preset]:
    """Returns a preset, maybe with another network, and the name of its results.

    Args:
        name: Name in `PRESETS`.
        model: Name of a network; `None`: the preset's own.
        schedule: One of `SCHEDULES`; with `"paper"`, `as_in_paper` makes the preset of
            each method.
        augmentation: As `shared.augmentation.chosen` returns it.
    """
    preset = PRESETS[name]
    if model not in (None, preset.model):
        name, preset = f"{name}-{model}", dataclasses.replace(preset, model=model)
    if augmentation != preset.augmentation:
        name = f"{name}-{'+'.join(augmentation)}"
        preset = dataclasses.replace(preset, augmentation=augmentation)
    return (f"{name}-paper_schedule" if schedule == "paper" else name), preset


def as_in_paper(preset: Preset, method: str) -> Preset:
    """Returns a preset that trains a method as the code of its paper does.

    A preset of fewer than 200 epochs shortens all trainings by the same factor.
    """
    paper = PAPERS.get(method, BYOT_PAPER)
    epochs = round(preset.epochs * paper.epochs / BYOT_PAPER.epochs)
    return dataclasses.replace(
        preset,
        epochs=epochs,
        schedule="paper",
        warmup_steps=0,
        augmentation=paper.augmentation,
        paper_training=_shortened(paper, epochs),
    )


def halves(preset: Preset) -> tuple[Preset, Preset]:
    """Returns two presets of half the epochs, each with the whole schedule in short."""
    first = preset.epochs // 2
    paper = preset.paper_training
    return tuple(
        dataclasses.replace(
            preset,
            epochs=epochs,
            warmup_steps=preset.warmup_steps * epochs // preset.epochs,
            paper_training=paper and _shortened(paper, epochs),
        )
        for epochs in (first, preset.epochs - first)
    )


def _shortened(paper: PaperTraining, epochs: int) -> PaperTraining:
    divided = tuple(after * epochs // paper.epochs for after in paper.divided_after)
    return dataclasses.replace(paper, epochs=epochs, divided_after=divided)
