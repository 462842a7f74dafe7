"""Recipes are data: their constants, their weights, and what they refuse."""

import json
import math

import keras
import pytest

import keras_selfdistill as ksd
from keras_selfdistill import losses, recipes

pytestmark = pytest.mark.once

EXITS = ["exit_1", "exit_2", "exit_3", "final"]
# The published constants, by name; hints are converted from sums over 128 samples.
# `separable_byot` has no paper: what was chosen on held-out images.
BYOT = {
    "alpha": 0.1,
    "temperature": 3.0,
    "hint_weight": 128 * 1e-6,
    "final_label_weight": 1.0,
}
CONSTANTS = {
    "deep_supervision": {"exit_weight": 1.0, "temperature": 1.0},
    "byot": BYOT,
    "teacher_free": {
        **BYOT,
        "regularization": 0.1,
        "correct": 0.99,
        "virtual_temperature": 20.0,
    },
    "past_self": {**BYOT, "past_weight": 0.8},
    "rotation_exits": {**BYOT, "alpha": 0.0, "hint_weight": 0.0},
    "mean_teacher": {
        **BYOT,
        "alpha": 0.0,
        "hint_weight": 0.0,
        "temperature": 1.0,
        "mean_weight": 1.0,
        "decay": 0.999,
    },
    "mix_skd": {
        **BYOT,
        "alpha": 0.0,
        "hint_weight": 0.0,
        "mixup_alpha": 0.4,
        "mixed_label_weight": 1.0,
        "interpolation_weight": 1.0,
    },
    "bake": {
        **BYOT,
        "alpha": 0.0,
        "hint_weight": 0.0,
        "ensemble_weight": 1.0,
        "omega": 0.5,
        "temperature": 4.0,
    },
    "separable_byot": {
        "alpha": 0.3,
        "temperature": 3.0,
        "hint_weight": 128 * 1e-6,
        "final_label_weight": 1.0,
    },
    "attention_byot": {
        "alpha": 0.3,
        "temperature": 3.0,
        "hint_weight": 0.03 * math.sqrt(128),
        "final_label_weight": 1.0,
        "skipped_hint": "second_deepest",
    },
    "teskd": {
        "label_weight": 0.2,
        "soft_target_weight": 0.8,
        "temperature": 4.0,
        "hint_weight": 128 * 1e-7,
        "detach_teacher": False,
    },
}


def rows(recipe):
    """Return (label, soft target, hint) of every exit."""
    weights = recipe.weights(EXITS)
    assert list(weights) == EXITS
    return [(each.label, each.soft_target, each.hint) for each in weights.values()]


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_defaults_are_the_documented_constants(name):
    recipe = recipes.get(name)
    for field, value in CONSTANTS[name].items():
        expected = pytest.approx(value) if isinstance(value, float) else value
        assert getattr(recipe, field) == expected
    assert recipe.teacher == "deepest"
    assert recipe.detach_teacher is (name != "teskd")
    assert recipe.external_weight == 1.0


def test_names_stand_for_classes_heads_and_losses():
    table = {
        name: (kind.__name__, kind.head, kind.soft_target_loss, kind.hint_loss)
        for name, kind in recipes.RECIPES.items()
    }
    soft, hint = losses.SoftTargetLoss, losses.HintLoss
    own = (losses.SoftTargetCrossentropy, losses.HintNormLoss)
    assert table == {
        "deep_supervision": ("DeepSupervision", "bottleneck", soft, hint),
        "byot": ("BYOT", "bottleneck", soft, hint),
        "separable_byot": ("SeparableBYOT", "separable", soft, hint),
        "attention_byot": ("AttentionBYOT", "attention", *own),
        "teskd": ("TESKD", "top_down", soft, hint),
        "teacher_free": ("TeacherFree", "bottleneck", soft, hint),
        "past_self": ("PastSelf", "bottleneck", soft, hint),
        "rotation_exits": ("RotationExits", "separable", soft, hint),
        "mean_teacher": ("MeanTeacher", "separable", soft, hint),
        "mix_skd": ("MixSKD", "separable", soft, hint),
        "bake": ("BAKE", "separable", soft, hint),
    }


def test_weights_of_every_exit():
    final = (1.0, 0.0, 0.0)
    assert rows(recipes.DeepSupervision(exit_weight=0.4)) == [
        *[(0.4, 0.0, 0.0)] * 3,
        final,
    ]
    byot = recipes.BYOT(alpha=0.25, hint_weight=0.5, final_label_weight=0.75)
    assert rows(byot) == [*[(0.75, 0.25, 0.5)] * 3, (0.75, 0.0, 0.0)]
    options = {"alpha": 0.25, "hint_weight": 0.5, "final_label_weight": 0.125}
    for skipped, place in (("second_deepest", 2), ("shallowest", 0), ("none", None)):
        recipe = recipes.AttentionBYOT(**options, skipped_hint=skipped)
        hints = [0.0 if i == place else 0.5 for i in range(3)]
        assert rows(recipe) == [
            *[(0.75, 0.25, hint) for hint in hints],
            (0.125, 0.0, 0.0),
        ]
        adapted = [name for name, hint in zip(EXITS[:3], hints, strict=True) if hint]
        assert recipe.adapted_exits(EXITS) == adapted
    teskd = recipes.TESKD(label_weight=0.3, soft_target_weight=0.6, hint_weight=0.5)
    assert rows(teskd) == [*[(0.3, 0.6, 0.5)] * 3, (0.3, 0.0, 0.0)]


SCHEDULE = keras.optimizers.schedules.PolynomialDecay(0.0, 10, 1.0)
# By class and field: names of the exits that have one, and the term that it weighs.
PER_EXIT = {
    (recipes.DeepSupervision, "exit_weight"): (EXITS[:3], "label"),
    (recipes.BYOT, "alpha"): (EXITS[:3], "soft_target"),
    (recipes.BYOT, "hint_weight"): (EXITS[:3], "hint"),
    (recipes.AttentionBYOT, "alpha"): (EXITS[:3], "soft_target"),
    (recipes.TESKD, "label_weight"): (EXITS, "label"),
    (recipes.TESKD, "soft_target_weight"): (EXITS[:3], "soft_target"),
    (recipes.TESKD, "hint_weight"): (EXITS[:3], "hint"),
}


@pytest.mark.parametrize(
    ("kind", "field"), PER_EXIT, ids=lambda each: getattr(each, "__name__", each)
)
def test_an_exit_may_have_a_weight_of_its_own(kind, field):
    names, term = PER_EXIT[kind, field]
    numbers = [0.1, 0.75, 0.5, 0.3][: len(names)]
    named = dict(zip(reversed(names), reversed(numbers), strict=True))
    for value in (numbers, tuple(numbers), named):
        weights = kind(**{field: value}).weights(EXITS)
        assert [getattr(weights[name], term) for name in names] == numbers
        if field == "alpha":
            labels = [weights[name].label for name in names]
            assert labels == [1.0 - number for number in numbers]
    for value in (numbers[1:], [*numbers, 0.2], [], {**named, "exit_9": 0.1}):
        with pytest.raises(ValueError, match=f"{kind.__name__}.{field} does not fit"):
            kind(**{field: value}).weights(EXITS)
    for wrong in (-0.1, math.nan):
        with pytest.raises(ValueError, match=f"{field} is out of range"):
            kind(**{field: [*numbers[1:], wrong]})
    with pytest.raises(TypeError, match=f"{kind.__name__}.{field} must be a number"):
        kind(**{field: [*numbers[1:], "0.5"]})


def test_weights_of_exits_are_kept_scheduled_and_saved():
    given = [0.2, SCHEDULE, 0.4]
    recipe = recipes.BYOT(alpha=given, hint_weight=dict.fromkeys(EXITS[:3], 0.5))
    given[0] = 0.9  # The recipe keeps its own.
    assert recipe.alpha[0] == 0.2
    alphas = [each.soft_target for each in recipe.at(5).weights(EXITS).values()]
    assert [float(alpha) for alpha in alphas] == pytest.approx([0.2, 0.5, 0.4, 0.0])
    text = json.dumps(keras.saving.serialize_keras_object(recipe))
    back = keras.saving.deserialize_keras_object(json.loads(text))
    assert back.hint_weight == recipe.hint_weight
    assert back.alpha[::2] == recipe.alpha[::2]
    assert back.alpha[1].get_config() == SCHEDULE.get_config()


def test_a_single_number_is_not_for_each_exit():
    for field in ("temperature", "final_label_weight"):
        with pytest.raises(TypeError, match=f"{field} must be a number or a "):
            recipes.BYOT(**{field: [0.5, 0.5]})


def test_adapters_follow_a_schedule_and_not_its_first_value():
    rising = keras.optimizers.schedules.PolynomialDecay(0.0, 10, 1.0)
    recipe = recipes.AttentionBYOT(hint_weight=rising)
    assert recipe.adapted_exits(EXITS) == ["exit_1", "exit_2"]
    assert recipes.AttentionBYOT(hint_weight=0.0).adapted_exits(EXITS) == []


FIELDS = {
    recipes.DeepSupervision: ["exit_weight"],
    recipes.BYOT: ["alpha", "hint_weight", "final_label_weight"],
    recipes.SeparableBYOT: ["alpha", "hint_weight", "final_label_weight"],
    recipes.AttentionBYOT: ["alpha", "hint_weight", "final_label_weight"],
    recipes.TESKD: ["label_weight", "soft_target_weight", "hint_weight"],
    recipes.TeacherFree: ["regularization"],
    recipes.PastSelf: ["past_weight"],
    recipes.RotationExits: ["alpha", "hint_weight", "final_label_weight"],
    recipes.MeanTeacher: ["alpha", "hint_weight", "mean_weight", "decay"],
    recipes.BAKE: ["alpha", "hint_weight", "ensemble_weight"],
    recipes.MixSKD: ["alpha", "mixed_label_weight", "interpolation_weight"],
}
SHARES = ("alpha", "regularization", "past_weight", "decay")


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_fields_out_of_range_are_refused(kind):
    for field in [*FIELDS[kind], "external_weight"]:
        for value in (-0.1, math.inf, math.nan, *([1.1] if field in SHARES else [])):
            with pytest.raises(ValueError, match=f"{kind.__name__}.{field} is out"):
                kind(**{field: value})
        assert getattr(kind(**{field: 0}), field) == 0.0
        assert getattr(kind(**{field: 1}), field) == 1.0
        with pytest.raises(TypeError, match=field):
            kind(**{field: "0.5"})
    for value in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="temperature is out"):
            kind(temperature=value)
    with pytest.raises(ValueError, match="teacher is out"):
        kind(teacher="deepst")
    with pytest.raises(ValueError, match="detach_teacher is out"):
        kind(detach_teacher=1)
    if kind is recipes.TeacherFree:
        for value in (0.0, 1.0, "0.5", True):
            with pytest.raises(ValueError, match="correct is out of range"):
                kind(correct=value)
            if value != 1.0:
                with pytest.raises(ValueError, match="virtual_temperature is out"):
                    kind(virtual_temperature=value)
    if kind is recipes.BAKE:
        for value in (-0.1, 1.0, math.nan, "0.5", True):
            with pytest.raises(ValueError, match="omega is out of range"):
                kind(omega=value)
    if kind is recipes.MixSKD:
        for value in (0.0, -1.0, math.inf, math.nan, "0.5", True):
            with pytest.raises(ValueError, match="mixup_alpha is out of range"):
                kind(mixup_alpha=value)
    with pytest.raises(TypeError):
        kind(0.5)  # Fields have names.
    with pytest.raises(AttributeError):
        kind().temperature = 2.0


def test_a_subclass_that_is_no_dataclass_itself_is_refused():
    """Its default would not count: Sub().alpha were 0.1."""

    class Sub(recipes.BYOT):
        alpha: float = 0.7

    with pytest.raises(TypeError, match=r"Sub has fields.*\['alpha'\](.|\n)*dataclass"):
        Sub()

    class Renamed(recipes.BYOT):
        """Without fields of its own there is nothing to lose."""

    assert Renamed().alpha == 0.1


def test_an_unknown_exit_to_skip_is_refused():
    with pytest.raises(ValueError, match="skipped_hint is out of range"):
        recipes.AttentionBYOT(skipped_hint="deepest")


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_recipes_come_back_from_their_configs(kind):
    recipe = kind(temperature=2.0, teacher="next")
    config = keras.saving.serialize_keras_object(recipe)
    assert config["registered_name"] == f"keras_selfdistill>{kind.__name__}"
    assert keras.saving.deserialize_keras_object(config) == recipe


def test_a_recipe_is_found_by_name_or_given():
    for name, kind in recipes.RECIPES.items():
        assert recipes.get(name) == kind()
    recipe = ksd.recipes.BYOT(alpha=0.5)
    assert recipes.get(recipe) is recipe
    with pytest.raises(
        ValueError, match=r"Unknown recipe.*recipe='byoot'(.|\n)*'byot'"
    ):
        recipes.get("byoot")
    with pytest.raises(TypeError, match="recipe=3"):
        recipes.get(3)
