"""Recipes with terms of their own, against NumPy and plain Keras training."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_selfdistill as ksd
from keras_selfdistill.recipes import PastSelf, TeacherFree
from tests.conftest import marks_long_on, to_numpy
from tests.training.test_extra_terms import X, Y, assert_same_weights, build_base, fit

pytestmark = marks_long_on("jax", "tensorflow")

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
@pytest.mark.parametrize(
    "recipe", ["teacher_free", "past_self", "mean_teacher", "mix_skd", "bake"]
)
def test_other_tasks_are_refused(recipe):
    base = keras.Sequential([keras.Input((5,)), layers.Dense(3, "sigmoid")])
    with pytest.raises(ValueError, match=r"'multilabel'. Expected: 'multiclass'"):
        wrapped(recipe, base=base)


@pytest.mark.parametrize(
    "recipe", ["teacher_free", "past_self", "mean_teacher", "bake"]
)
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


@pytest.mark.once
def test_a_base_that_cannot_be_cloned_is_refused():
    class Scaled(layers.Layer):  # Without get_config.
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def call(self, x):
            return self.factor * x

    inputs = keras.Input((5,))
    base = keras.Model(inputs, layers.Dense(3, "softmax")(Scaled(2.0)(inputs)))
    with pytest.raises(ValueError, match="PastSelf needs a copy of the base"):
        wrapped("past_self", base=base)


def test_the_past_reads_ids_as_the_base_does(mixed_precision):
    """In bfloat16, 257 would be 256, and 511 would be 512."""
    mixed_precision("mixed_bfloat16")
    inputs = keras.Input((2,))
    x = layers.Flatten()(layers.Embedding(513, 4)(inputs))
    base = keras.Model(inputs, layers.Dense(3, dtype="float32")(x))
    ids = np.array([[257.0, 511.0]], "float32")
    past = PastSelf().make_state(base)(ids)
    np.testing.assert_array_equal(to_numpy(past), to_numpy(base(ids, training=False)))
    np.testing.assert_raises(
        AssertionError,
        np.testing.assert_array_equal,
        to_numpy(past),
        to_numpy(base(np.array([[256.0, 512.0]], "float32"), training=False)),
    )


def tagger(mask_zero):
    """A base with a distribution over three classes at each of four positions."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((4,))
    x = layers.Embedding(9, 5, mask_zero=mask_zero)(inputs)
    return keras.Model(inputs, layers.Dense(3, "softmax")(layers.Dense(6, "tanh")(x)))


IDS = np.array([[3, 5, 0, 0], [1, 2, 7, 0]], "float32")
TAGS = np.array([[0, 1, 2, 2], [2, 0, 1, 1]])
WEIGHTS = np.linspace(0.5, 2.0, 8, dtype="float32").reshape(2, 4)


def values_by_position(name, model, tags):
    """What each position adds to the recipe's term, in float64."""
    log_p = np.log(model.base.predict(IDS, verbose=0).astype("float64"))
    rows = np.eye(3)[tags]
    if name == "past_self":  # Before an epoch, the past predicts the labels.
        return -0.8 * (rows * log_p).sum(axis=-1)
    u = np.array([virtual(each, 0.99, 0.5) for each in rows])
    return 0.1 * (u * (np.log(u) - log_p)).sum(axis=-1)


@pytest.mark.parametrize("last_axis", [False, True], ids=["2d", "3d"])
@pytest.mark.parametrize("name", ["past_self", "teacher_free"])
@pytest.mark.parametrize("kind", ["padding", "ignored", "both"])
def test_terms_leave_out_what_the_label_loss_does(name, kind, last_axis):
    padded = IDS == 0
    ignored = np.array([[0, 1, 0, 0], [0, 0, 0, 1]], bool)
    left_out = {"padding": padded, "ignored": ignored, "both": padded | ignored}[kind]
    ignore = None if kind == "padding" else 255
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=ignore)
    recipe = PastSelf() if name == "past_self" else TeacherFree(virtual_temperature=0.5)
    model = wrapped(recipe, loss=loss, base=tagger(kind != "ignored"))
    term = model.recipe.extra_term_names[0]
    tags = TAGS if ignore is None else np.where(ignored, 255, TAGS)
    tags = tags.astype("uint8")
    others = np.where(left_out, (tags + 1) % 3, tags) if kind == "padding" else tags
    values = values_by_position(name, model, TAGS)
    options = {"batch_size": 2, "verbose": 0, "return_dict": True}
    for weights in (None, WEIGHTS):
        every = values if weights is None else values * weights
        for labels in (tags, others):
            labels = labels[..., None] if last_axis else labels
            logs = model.evaluate(IDS, labels, sample_weight=weights, **options)
            assert logs[term] == pytest.approx(every[~left_out].mean(), rel=1e-4)


@pytest.mark.parametrize("last_axis", [False, True], ids=["2d", "3d"])
def test_the_first_view_of_a_recipe_counts_as_the_batch(last_axis):
    """Padding and sample weights too; the terms alone see the other views."""

    class Shifted(ksd.recipes.DeepSupervision):
        extra_term_names = ("shift_loss",)

        def views(self, inputs, *, training):
            return [inputs, ops.roll(inputs, 1, axis=1), 0 * inputs]

        def extra_terms(self, labels, exits, state, *, inputs, training):
            first, second, _ = ops.unstack(exits["final"]["output"], 3, axis=1)
            return {"shift_loss": ops.sum((first - second) ** 2, axis=-1)}

    tags = TAGS[..., None] if last_axis else TAGS
    options = {"sample_weight": WEIGHTS, "verbose": 0, "return_dict": True}
    model = wrapped(Shifted(), base=tagger(mask_zero=True))
    expected = wrapped("teacher_free", base=model.base)
    logs, usual = (each.evaluate(IDS, tags, **options) for each in (model, expected))
    assert logs["label_loss"] == pytest.approx(usual["label_loss"] / 0.9, rel=1e-5)
    outputs = [model.base.predict(ids, verbose=0) for ids in (IDS, np.roll(IDS, 1, 1))]
    values = WEIGHTS * ((outputs[0] - outputs[1]) ** 2).sum(axis=-1)
    assert logs["shift_loss"] == pytest.approx(values[IDS > 0].mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("views", "received"),
    [
        (lambda x: iter([x, x]), "list_iterator"),
        (lambda x: [], r"\[\]"),
        (lambda x: [x, x[:4]], r"shapes \[\(4, 2\)\]"),
    ],
)
def test_views_that_do_not_fit_together_are_refused(views, received):
    class Own(ksd.recipes.DeepSupervision):
        def views(self, inputs, *, training):
            return views(inputs)

    model = dense_wrapper(Own())
    with pytest.raises(ValueError, match=rf"Own.views must .* Received: .*{received}"):
        model.evaluate(np.ones((8, 2)), np.zeros(8), batch_size=8, verbose=0)


def test_views_are_given_tensors_also_by_train_on_batch():
    seen = []

    class Own(ksd.recipes.DeepSupervision):
        def views(self, inputs, *, training):
            seen.append(keras.ops.is_tensor(inputs))
            return [inputs]

    dense_wrapper(Own()).train_on_batch(np.ones((8, 2)), np.zeros(8))
    assert seen
    assert all(seen)


def test_terms_that_know_nothing_of_views_are_refused():
    """In a batch of as many samples as views they would pass for positions."""

    class Own(ksd.recipes.PastSelf):
        def views(self, inputs, *, training):
            return [inputs, -inputs]

    model = dense_wrapper(Own())
    with pytest.raises(ValueError, match=r"'past_loss' of shape \(2, 2\)"):
        model.evaluate(np.ones((2, 2)), np.zeros(2), batch_size=2, verbose=0)


@pytest.mark.once
@pytest.mark.parametrize("number", [0, 2.0])
def test_numbers_of_logits_that_are_none_are_refused(number):
    class Own(ksd.recipes.DeepSupervision):
        logits_per_class = number

    with pytest.raises(ValueError, match=f"logits_per_class .* Received: {number}"):
        dense_wrapper(Own())


def dense_wrapper(recipe):
    tap = keras.layers.Dense(4, activation="relu", name="tap")
    base = keras.Sequential(
        [
            keras.Input((2,)),
            tap,
            keras.layers.Dense(4),
            keras.layers.Dense(3, "softmax"),
        ]
    )
    model = ksd.SelfDistiller(base, ["tap"], recipe, head="linear")
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model
