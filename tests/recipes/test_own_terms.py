"""Recipes with terms of their own, against NumPy and plain Keras training."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.recipes import PastSelf, TeacherFree
from tests.training.test_extra_terms import X, Y, assert_same_weights, build_base, fit

ONE_HOT = np.eye(3)[Y]
MIXED = 0.7 * ONE_HOT + 0.3 * ONE_HOT[::-1]


def wrapped(recipe, taps=(), end="softmax", loss=None, base=None):
    if base is None:
        base = build_base()
        base.layers[-1].activation = keras.activations.get(end)
    model = ksd.SelfDistiller(base, list(taps), recipe, head="linear")
    if loss is None:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=end == "linear")
    model.compile(keras.optimizers.SGD(0.5), loss)
    return model


def plain(rate=0.5):
    model = build_base()
    model.compile(keras.optimizers.SGD(rate), "categorical_crossentropy")
    return model


def train(model, labels):
    model.fit(X, labels, batch_size=6, shuffle=False, verbose=0)


def virtual(labels, a, temperature):
    """The prediction u of the virtual teacher, class by class."""
    d = np.array([[a * y + (1 - y) * (1 - a) / 2 for y in row] for row in labels])
    raised = np.exp(d / temperature)
    return raised / raised.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("end", ["softmax", "linear"])
@pytest.mark.parametrize("labels", [Y, Y[:, None], MIXED], ids=["1d", "2d", "mixed"])
def test_a_virtual_teacher_follows_the_formula(end, labels):
    kind = "Categorical" if labels is MIXED else "SparseCategorical"
    loss = getattr(keras.losses, f"{kind}Crossentropy")(from_logits=end == "linear")
    recipe = TeacherFree(regularization=0.3, correct=0.9, virtual_temperature=0.5)
    model = wrapped(recipe, ["first"], end, loss)
    logs = model.evaluate(X, labels, batch_size=12, verbose=0, return_dict=True)
    found = model.exit_graph.training_network.predict(X, verbose=0)["exits"]
    logits = {name: each["logits"].astype("float64") for name, each in found.items()}
    log_p = {
        name: each - np.log(np.exp(each).sum(axis=-1, keepdims=True))
        for name, each in logits.items()
    }
    rows = MIXED if labels is MIXED else ONE_HOT
    u = virtual(rows, 0.9, 0.5)
    divergence = (u * (np.log(u) - log_p["final"])).sum(axis=-1).mean()
    hard = {name: -(rows * each).sum(axis=-1).mean() for name, each in log_p.items()}
    expected = 0.7 * hard["final"] + 0.9 * hard["exit_1"]  # α of BYOT is 0.1.
    assert logs["virtual_teacher_loss"] == pytest.approx(0.3 * divergence, rel=1e-4)
    assert logs["label_loss"] == pytest.approx(expected, rel=1e-4)


def test_a_virtual_teacher_trains_as_its_mixed_labels_do():
    model, reference = wrapped(TeacherFree(regularization=0.4)), plain()
    fit(model)
    train(reference, 0.6 * ONE_HOT + 0.4 * virtual(ONE_HOT, 0.99, 20.0))
    assert_same_weights(model.base, reference)


@pytest.mark.parametrize("end", ["softmax", "linear"])
def test_the_past_self_trains_as_its_refined_labels_do(end, tmp_path):
    """One epoch on labels alone, then on mixtures with what was predicted before."""
    weight = 0.6
    model, reference = wrapped(PastSelf(past_weight=weight), (), end), plain()
    fit(model, 2)
    train(reference, ONE_HOT)
    past = reference.predict(X, verbose=0)
    train(reference, (1 - weight) * ONE_HOT + weight * past)
    assert_same_weights(model.base, reference)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for each in (model, loaded):
        fit(each, 3, initial_epoch=2)
    past = reference.predict(X, verbose=0)
    train(reference, (1 - weight) * ONE_HOT + weight * past)
    for each in (model, loaded):
        assert_same_weights(each.base, reference)
    np.testing.assert_allclose(
        np.exp(model.teacher.predict(X, verbose=0))
        / np.exp(model.teacher.predict(X, verbose=0)).sum(axis=-1, keepdims=True),
        past,
        rtol=1e-4,
    )


def test_the_past_self_teaches_within_a_schedule_and_beside_exits():
    rising = keras.optimizers.schedules.PolynomialDecay(0.0, 4, 0.8)
    model = wrapped(PastSelf(past_weight=rising, alpha=0.5), ["first"])
    history = fit(model, 2)
    assert set(history) >= {"label_loss", "soft_target_loss", "past_loss"}
    assert history["past_loss"][0] < history["past_loss"][1]
    assert model.teacher.count_params() == model.base.count_params() + 1


@pytest.mark.once
@pytest.mark.parametrize("recipe", ["teacher_free", "past_self"])
def test_other_tasks_are_refused(recipe):
    base = keras.Sequential([keras.Input((5,)), layers.Dense(3, "sigmoid")])
    with pytest.raises(ValueError, match=r"'multilabel'. Expected: 'multiclass'"):
        wrapped(recipe, base=base)


@pytest.mark.parametrize("recipe", ["teacher_free", "past_self"])
def test_terms_of_a_half_precise_base_are_computed_in_full(recipe, mixed_precision):
    mixed_precision("mixed_bfloat16")
    base = build_base()
    mixed_precision("float32")
    model = wrapped(recipe, base=base)
    name = model.recipe.extra_term_names[0]
    logs = model.evaluate(X, Y, batch_size=12, verbose=0, return_dict=True)
    full = wrapped(recipe)
    full.set_weights(model.get_weights())
    expected = full.evaluate(X, Y, batch_size=12, verbose=0, return_dict=True)
    assert logs[name] == pytest.approx(expected[name], rel=0.02)
    assert np.isfinite(fit(model, 2)[name]).all()
