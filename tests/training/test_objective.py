"""The loss of every recipe against NumPy written from the papers' formulas."""

import itertools

import keras
import numpy as np
import pytest

from keras_selfdistill import recipes
from keras_selfdistill.graph.task import Task
from keras_selfdistill.losses.label_loss import as_loss
from keras_selfdistill.training.objective import Objective
from tests.conftest import finite_differences, to_numpy, value_and_gradients

NAMES = ["exit_1", "exit_2", "final"]
TASK = Task("multiclass", 5, "linear")
BATCH, CLASSES, WIDTH = 5, 4, 6
RANDOM = np.random.default_rng(0)
SPARSE = RANDOM.integers(0, CLASSES, BATCH)
ONE_HOT = np.eye(CLASSES)[SPARSE]
SOFT = 0.7 * ONE_HOT + 0.3 * np.roll(ONE_HOT, 1, axis=0)  # As mixup makes them.
WEIGHTS = np.array([0.0, 0.5, 1.0, 2.0, 3.5])


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy(rows, logits):
    return -(rows * log_softmax(logits)).sum(axis=-1)


def byot(arrays, rows, sample_weight, *, alpha, temperature, beta, final, teacher):
    """BYOT, equations 2 to 5, per sample, then the weighted mean over the batch.

    The teacher's arrays are passed on their own: nothing flows back through them.
    """
    logits, features = arrays[::2], arrays[1::2]
    teacher_logits, teacher_feature = teacher
    loss = final * cross_entropy(rows, logits[-1])
    p = np.exp(log_softmax(teacher_logits / temperature))
    alphas = np.broadcast_to(alpha, len(NAMES) - 1)
    betas = np.broadcast_to(beta, len(NAMES) - 1)
    shallow = zip(logits[:-1], features[:-1], alphas, betas, strict=True)
    for student, feature, alpha, beta in shallow:
        q = log_softmax(student / temperature)
        kl = (p * (np.log(p) - q)).sum(axis=-1)
        hint = np.where(
            (feature > 0) | (teacher_feature > 0), (feature - teacher_feature) ** 2, 0
        ).sum(axis=-1)
        loss = loss + (1 - alpha) * cross_entropy(rows, student)
        loss = loss + alpha * temperature**2 * kl + beta * hint
    return (loss * sample_weight).mean()


def attention_byot(arrays, rows, sample_weight, *, alpha, temperature, beta, teacher):
    """TPAMI 2021 as in its authors' code, the hint not on the second-deepest exit."""
    logits, features = arrays[::2], arrays[1::2]
    teacher_logits, teacher_feature = teacher
    loss = cross_entropy(rows, logits[-1])
    p = np.exp(log_softmax(teacher_logits / temperature))
    for i in range(len(NAMES) - 1):
        loss = loss + (1 - alpha) * cross_entropy(rows, logits[i])
        loss = loss + alpha * cross_entropy(p, logits[i] / temperature)
        if i != len(NAMES) - 2:
            gap = features[i] - teacher_feature
            loss = loss + beta * np.sqrt((gap**2).sum(axis=-1))
    return (loss * sample_weight).mean()


def teskd(arrays, rows, sample_weight, *, teacher, hint=128e-7):
    """The TESKD constants; nothing but the hint's teacher is detached."""
    logits, features = arrays[::2], arrays[1::2]
    _, teacher_feature = teacher
    loss = 0.2 * cross_entropy(rows, logits[-1])
    p = log_softmax(logits[-1] / 4)
    for student, feature in zip(logits[:-1], features[:-1], strict=True):
        loss = loss + 0.2 * cross_entropy(rows, student)
        kl = (np.exp(p) * (p - log_softmax(student / 4))).sum(axis=-1)
        gap = np.where(
            (feature > 0) | (teacher_feature > 0), feature - teacher_feature, 0
        )
        loss = loss + 0.8 * 16 * kl + hint * (gap**2).sum(axis=-1)
    return (loss * sample_weight).mean()


def deep_supervision(arrays, rows, sample_weight, *, weight, teacher):
    del teacher
    *shallow, final = arrays[::2]
    loss = cross_entropy(rows, final)
    loss = loss + weight * sum(cross_entropy(rows, logits) for logits in shallow)
    return (loss * sample_weight).mean()


RECIPES = {
    "published": (
        recipes.get("byot"),
        lambda *a, **k: byot(
            *a, alpha=0.1, temperature=3.0, beta=128 * 1e-6, final=1.0, **k
        ),
    ),
    "byot": (
        recipes.BYOT(alpha=0.4, temperature=2.5, hint_weight=0.3),
        lambda *a, **k: byot(*a, alpha=0.4, temperature=2.5, beta=0.3, final=1.0, **k),
    ),
    "reproduction": (
        recipes.BYOT(alpha=0.25, final_label_weight=0.75, hint_weight=0.0),
        lambda *a, **k: byot(*a, alpha=0.25, temperature=3, beta=0.0, final=0.75, **k),
    ),
    "per_exit": (
        recipes.BYOT(alpha=[0.2, 0.6], hint_weight={"exit_2": 0.1, "exit_1": 0.3}),
        lambda *a, **k: byot(
            *a, alpha=[0.2, 0.6], temperature=3, beta=[0.3, 0.1], final=1.0, **k
        ),
    ),
    "separable_byot": (
        recipes.get("separable_byot"),
        lambda *a, **k: byot(
            *a, alpha=0.3, temperature=3.0, beta=128 * 1e-6, final=1.0, **k
        ),
    ),
    "attention_byot": (
        recipes.get("attention_byot"),
        lambda *a, **k: attention_byot(
            *a, alpha=0.3, temperature=3.0, beta=0.03 * 128**0.5, **k
        ),
    ),
    "teskd": (recipes.get("teskd"), teskd),
    # The published hint is smaller than what differences of gradients can show.
    "hinted_teskd": (
        recipes.TESKD(hint_weight=0.3),
        lambda *a, **k: teskd(*a, hint=0.3, **k),
    ),
    "deep_supervision": (
        recipes.get("deep_supervision"),
        lambda *a, **k: deep_supervision(*a, weight=1.0, **k),
    ),
    "weighted_supervision": (
        recipes.DeepSupervision(exit_weight=0.3),
        lambda *a, **k: deep_supervision(*a, weight=0.3, **k),
    ),
}


def exit_arrays():
    random = np.random.default_rng(3)
    shapes = itertools.chain(*[((BATCH, CLASSES), (BATCH, WIDTH))] * len(NAMES))
    return [random.normal(size=shape).astype("float32") for shape in shapes]


def tensors():
    return [keras.ops.convert_to_tensor(array) for array in exit_arrays()]


def keras_loss(objective, labels, sample_weight, softmax, *arrays):
    exits = {}
    for name, logits, feature in zip(NAMES, arrays[::2], arrays[1::2], strict=True):
        output = keras.ops.softmax(logits) if softmax else logits
        exits[name] = {"output": output, "logits": logits, "feature": feature}
        exits[name]["hint"] = feature
    return sum(objective(labels, exits, sample_weight).values())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "labels", [SPARSE, ONE_HOT, SOFT], ids=["sparse", "hot", "soft"]
)
@pytest.mark.parametrize("softmax", [False, True], ids=["logits", "softmax"])
@pytest.mark.parametrize("name", RECIPES)
def test_values_and_gradients_follow_the_formulas(name, softmax, labels, weighted):
    recipe, reference = RECIPES[name]
    arrays = exit_arrays()
    kind = (
        "SparseCategoricalCrossentropy"
        if labels is SPARSE
        else "CategoricalCrossentropy"
    )
    loss = getattr(keras.losses, kind)(from_logits=not softmax)
    objective = Objective(recipe, NAMES, loss, task=TASK)
    sample_weight = WEIGHTS if weighted else np.ones(BATCH)
    value, gradients = value_and_gradients(
        lambda *tensors: keras_loss(
            objective, labels, sample_weight if weighted else None, softmax, *tensors
        ),
        arrays,
    )
    rows = ONE_HOT if labels is SPARSE else labels
    double = [array.astype("float64") for array in arrays]

    def formula(*tensors):
        return reference(tensors, rows, sample_weight, teacher=double[-2:])

    np.testing.assert_allclose(value, formula(*double), rtol=1e-5, atol=1e-5)
    for actual, expected in zip(
        gradients, finite_differences(formula, double), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_terms_are_named_after_what_the_recipe_has():
    def terms(recipe):
        return Objective(recipe, NAMES, "mse", task=TASK).terms

    assert terms(recipes.BYOT()) == ("label_loss", "soft_target_loss", "hint_loss")
    assert terms(recipes.BYOT(hint_weight=0.0)) == ("label_loss", "soft_target_loss")
    assert terms(recipes.BYOT(alpha=0.0)) == ("label_loss", "hint_loss")
    assert terms(recipes.DeepSupervision()) == ("label_loss",)


@pytest.mark.parametrize("reduction", ["sum", "mean_with_sample_weight"])
def test_distillation_is_reduced_as_the_label_loss_is(reduction):
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction=reduction
    )
    objective = Objective(recipes.BYOT(alpha=0.4), NAMES, loss, task=TASK)
    mean = Objective(
        recipes.BYOT(alpha=0.4),
        NAMES,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        task=TASK,
    )
    value = float(keras_loss(objective, SPARSE, WEIGHTS, False, *tensors()))
    expected = float(keras_loss(mean, SPARSE, WEIGHTS, False, *tensors())) * BATCH
    if reduction == "mean_with_sample_weight":
        expected /= WEIGHTS.sum()
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("labels", [SPARSE, SPARSE[:, None], ONE_HOT, SOFT])
@pytest.mark.parametrize("identifier", ["crossentropy", "ce"])
def test_crossentropy_is_chosen_by_the_labels_shape(identifier, labels):
    logits = exit_arrays()[0]
    rows = ONE_HOT if labels.dtype.kind == "i" else labels
    value = float(as_loss(identifier, TASK)(labels, keras.ops.softmax(logits)))
    assert value == pytest.approx(cross_entropy(rows, logits).mean(), rel=1e-5)


def test_a_function_serves_as_loss():
    def absolute(y_true, y_pred):
        return keras.ops.mean(keras.ops.abs(y_true - y_pred), axis=-1)

    value = float(as_loss(absolute, TASK)(ONE_HOT, np.zeros_like(ONE_HOT)))
    assert value == pytest.approx(1 / CLASSES)


@pytest.mark.once
@pytest.mark.parametrize("named", [["exit_1", "exit_2"], [*NAMES, "exit_3"]])
def test_a_recipe_must_name_every_exit(named):
    class Forgetful(recipes.Recipe):
        def weights(self, exit_names):
            return dict.fromkeys(named, recipes.TermWeights(label=1.0))

    with pytest.raises(ValueError, match=r"Forgetful.weights .* \['exit_1', 'exit_2'"):
        Objective(Forgetful(), NAMES, "mse", task=TASK)


def test_losses_that_leave_a_class_out_keep_the_sample_weights():
    """On PyTorch, Keras would multiply them by the mask in place, exit by exit."""
    logits = RANDOM.normal(size=(3, BATCH, CLASSES))
    labels, ignored = np.arange(BATCH) % CLASSES, 2
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=ignored
    )
    objective = Objective(recipes.DeepSupervision(), NAMES, loss, task=TASK)
    exits = {
        name: {
            key: keras.ops.convert_to_tensor(each, "float32")
            for key in ("output", "logits", "feature")
        }
        for name, each in zip(NAMES, logits, strict=True)
    }
    weights = keras.ops.convert_to_tensor(WEIGHTS, "float32")
    found = objective(keras.ops.convert_to_tensor(labels), exits, weights)
    rows, counted = np.eye(CLASSES)[labels], WEIGHTS * (labels != ignored)
    expected = sum((cross_entropy(rows, each) * counted).sum() for each in logits)
    expected /= (labels != ignored).sum()
    assert float(found["label_loss"]) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(to_numpy(weights), WEIGHTS.astype("float32"))
