"""Recipes by their names."""

from keras_selfdistill.recipes.base import Recipe
from keras_selfdistill.recipes.exit_losses.attention_byot import AttentionBYOT
from keras_selfdistill.recipes.exit_losses.byot import BYOT, SeparableBYOT
from keras_selfdistill.recipes.exit_losses.deep_supervision import DeepSupervision
from keras_selfdistill.recipes.exit_losses.teskd import TESKD
from keras_selfdistill.recipes.own_terms.bake import BAKE
from keras_selfdistill.recipes.own_terms.mean_teacher import MeanTeacher
from keras_selfdistill.recipes.own_terms.mix_skd import MixSKD
from keras_selfdistill.recipes.own_terms.past_self import PastSelf
from keras_selfdistill.recipes.own_terms.rotation_exits import RotationExits
from keras_selfdistill.recipes.own_terms.teacher_free import TeacherFree
from keras_selfdistill.utils.config import resolve

# Recipes by their names; a name stands for the recipe with its defaults.
RECIPES: dict[str, type[Recipe]] = {
    "byot": BYOT,
    "separable_byot": SeparableBYOT,
    "deep_supervision": DeepSupervision,
    "attention_byot": AttentionBYOT,
    "teskd": TESKD,
    "teacher_free": TeacherFree,
    "past_self": PastSelf,
    "rotation_exits": RotationExits,
    "mean_teacher": MeanTeacher,
    "mix_skd": MixSKD,
    "bake": BAKE,
}


def get(identifier: "str | Recipe") -> Recipe:
    """Return the recipe with a name and default fields, or the recipe given.

    Args:
        identifier: `"byot"`, `"separable_byot"`, `"deep_supervision"`,
            `"attention_byot"`, `"teskd"`, `"teacher_free"`, `"past_self"`,
            `"rotation_exits"`, `"mean_teacher"`, `"mix_skd"`, `"bake"`, or a `Recipe`.

    Raises:
        ValueError: No recipe has this name.
        TypeError: `identifier` is neither a string nor a `Recipe`.

    Example:
        >>> get("deep_supervision") == DeepSupervision()
        True
    """
    return resolve(identifier, "recipe", Recipe, RECIPES)
