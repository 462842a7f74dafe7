"""AutoAugment, TrivialAugment and Cutout, which Keras has no layers for.

Each is a function of a batch of uint8 images and a random generator. Keras' own
`RandAugment` draws other operations, and its `RandomErasing` rectangles of any shape.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
GREY = (128, 128, 128)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strengths:
    """The strongest form of each operation.

    Attributes:
        shear: Slope of a shear.
        translate: Share of the image's size.
        rotate: Degrees.
        enhance: How far brightness, colour, contrast and sharpness go from 1.
        bits: Bits that posterizing takes from each colour.
    """

    shear: float
    translate: float
    rotate: float
    enhance: float
    bits: int


def operate(
    image: Image.Image, name: str, strength: float, strengths: Strengths
) -> Image.Image:
    """Returns a changed image; what moves in from outside is grey.

    Args:
        image: An RGB image.
        name: Name of the operation.
        strength: From -1 to 1, of the strongest form; negative: the other way.
        strengths: The strongest forms.
    """
    width, height = image.size
    match name:
        case "Identity":
            return image
        case "Invert":
            return ImageOps.invert(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Posterize":
            return ImageOps.posterize(image, 8 - round(abs(strength) * strengths.bits))
        case "Solarize":
            return ImageOps.solarize(image, 256 * (1 - abs(strength)))
        case "Rotate":
            return image.rotate(strength * strengths.rotate, fillcolor=GREY)
        case "ShearX":
            return _affine(image, (1, strength * strengths.shear, 0, 0, 1, 0))
        case "ShearY":
            return _affine(image, (1, 0, 0, strength * strengths.shear, 1, 0))
        case "TranslateX":
            across = strength * strengths.translate * width
            return _affine(image, (1, 0, across, 0, 1, 0))
        case "TranslateY":
            down = strength * strengths.translate * height
            return _affine(image, (1, 0, 0, 0, 1, down))
    enhancer = getattr(ImageEnhance, name)  # Brightness, Color, Contrast, Sharpness
    return enhancer(image).enhance(1 + strength * strengths.enhance)


def _affine(image, coefficients):
    """Returns the image whose pixel (x, y) comes from where the coefficients say."""
    how = Image.Transform.AFFINE
    return image.transform(image.size, how, coefficients, fillcolor=GREY)


SIGNED = {
    *("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    *("Brightness", "Color", "Contrast", "Sharpness"),
}

# Cubuk et al., CVPR 2019, arXiv 1805.09501: the 25 sub-policies found on CIFAR-10,
# which the journal version of BYOT takes for CIFAR-100, each of two operations with
# probability and level of 0 to 9.
AUTOAUGMENT = Strengths(shear=0.3, translate=150 / 331, rotate=30, enhance=0.9, bits=4)
SUB_POLICIES = (
    (("Invert", 0.1, 7), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 8), ("Equalize", 0.9, 2)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 5), ("Equalize", 0.5, 1)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 7), ("AutoContrast", 0.4, 8)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 3)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 8), ("Equalize", 0.6, 4)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 6)),
    (("AutoContrast", 0.8, 4), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 3)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 2), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 8), ("Invert", 0.1, 3)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 1)),
)


def autoaugment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Changes every image by one of AutoAugment's sub-policies for CIFAR-10."""
    count = len(images)
    choices = rng.integers(len(SUB_POLICIES), size=count)
    draws, signs = rng.random((count, 2)), rng.choice([-1, 1], (count, 2))
    changed = np.empty_like(images)
    for i, choice in enumerate(choices.tolist()):
        image = Image.fromarray(images[i])
        for step, (name, probability, level) in enumerate(SUB_POLICIES[choice]):
            if draws[i, step] < probability:
                sign = int(signs[i, step]) if name in SIGNED else 1
                image = operate(image, name, sign * level / 9, AUTOAUGMENT)
        changed[i] = image
    return changed


# Müller & Hutter, ICCV 2021, arXiv 2103.10158: the wide space, in 31 levels. A shift is
# by 32 pixels at most, which are all of a CIFAR image.
TRIVIAL = Strengths(shear=0.99, translate=1.0, rotate=135, enhance=0.99, bits=6)
TRIVIAL_NAMES = (
    *("Identity", "AutoContrast", "Equalize", "Rotate", "Solarize", "Color"),
    *("Posterize", "Contrast", "Brightness", "Sharpness"),
    *("ShearX", "ShearY", "TranslateX", "TranslateY"),
)


def trivial(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Changes every image by one operation of any strength, TrivialAugment's."""
    count = len(images)
    choices = rng.integers(len(TRIVIAL_NAMES), size=count)
    levels, signs = rng.integers(31, size=count), rng.choice([-1, 1], count)
    changed = np.empty_like(images)
    for i, choice in enumerate(choices.tolist()):
        name = TRIVIAL_NAMES[choice]
        sign = int(signs[i]) if name in SIGNED else 1
        strength = sign * int(levels[i]) / 30
        changed[i] = operate(Image.fromarray(images[i]), name, strength, TRIVIAL)
    return changed


def cutout(images: np.ndarray, rng: np.random.Generator, size: int = 16) -> np.ndarray:
    """Blackens a square of every image, whose centre is any pixel.

    DeVries & Taylor, arXiv 1708.04552, with the size of the journal version of BYOT
    (8 in their paper for CIFAR-100). Squares near the border are partly outside.
    """
    count, height, width, _ = images.shape
    centres = rng.integers([height, width], size=(count, 2))
    changed = images.copy()
    for image, (row, column) in zip(changed, centres.tolist(), strict=True):
        top, left = max(row - size // 2, 0), max(column - size // 2, 0)
        image[top : row + size // 2, left : column + size // 2] = 0
    return changed


POLICIES: dict[str, Change] = {
    "autoaugment": autoaugment,
    "trivial": trivial,
    "cutout": cutout,
}


def in_turn(changes: Sequence[Change]) -> Change:
    """Returns one change after the other as one."""

    def change(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for each in changes:
            images = each(images, rng)
        return images

    return change
