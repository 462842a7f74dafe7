"""Recipes: frozen, serialisable descriptions of which loss each exit gets.

A recipe is data, not code. It names a head and, for every exit, the weight of each
loss term; unless it says otherwise, the deepest exit (`final`) teaches the others.

Public: the names in `__all__`; the other modules are internal.
"""

from keras_selfdistill.recipes.base import Recipe, TermWeights
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
from keras_selfdistill.recipes.registry import RECIPES, get

__all__ = [
    "AttentionBYOT",
    "BAKE",
    "BYOT",
    "DeepSupervision",
    "MeanTeacher",
    "MixSKD",
    "PastSelf",
    "RECIPES",
    "Recipe",
    "RotationExits",
    "SeparableBYOT",
    "TESKD",
    "TeacherFree",
    "TermWeights",
    "get",
]
