"""Who teaches: other exits, the ensemble, another model, and how much and when."""

import dataclasses

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from keras_selfdistill.losses.keras_distillation import pair_losses
from keras_selfdistill.recipes import BYOT, TESKD, AttentionBYOT, DeepSupervision
from keras_selfdistill.training.objective import Objective
from tests.conftest import (
    finite_differences,
    long_on,
    marks_long_on,
    small_base,
    to_numpy,
    value_and_gradients,
)
from tests.training.test_objective import TASK, cross_entropy, log_softmax

# A network is compiled or traced for each.
pytestmark = marks_long_on("jax", "tensorflow")
NAMES = ["exit_1", "exit_2", "exit_3", "final"]
LABELS = np.array([0, 2, 1, 3, 0])
TEMPERATURE, ALPHA, BETA = 2.0, 0.4, 0.3
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def random_exits(seed=0):
    random = np.random.default_rng(seed)
    return [
        array.astype("float32")
        for _ in NAMES
        for array in (random.normal(size=(5, 4)), random.normal(size=(5, 6)))
    ]


def divergence(teacher, student):
    p, q = log_softmax(teacher / TEMPERATURE), log_softmax(student / TEMPERATURE)
    return TEMPERATURE**2 * (np.exp(p) * (p - q)).sum(axis=-1).mean()


def hint(teacher, student):
    gap = np.where((teacher > 0) | (student > 0), teacher - student, 0)
    return (gap**2).sum(axis=-1).mean()


def teachers_of(kind, i, fixed):
    """Return the (logits, feature) of those who teach exit i, written out by hand."""
    logits, features = fixed[::2], fixed[1::2]
    if kind == "ensemble":
        return [(sum(logits) / 4, features[3])]
    chosen = {"deepest": [3], "next": [i + 1], "dense": list(range(i + 1, 4))}[kind]
    return [(logits[j], features[j]) for j in chosen]


@pytest.mark.parametrize("kind", ["deepest", "ensemble", "dense", "next"])
def test_teachers_follow_the_formulas(kind):
    arrays = random_exits()
    fixed = [array.astype("float64") for array in arrays]

    def formula(*tensors):
        logits, features = tensors[::2], tensors[1::2]
        rows = np.eye(4)[LABELS]
        loss = cross_entropy(rows, logits[3]).mean()
        for i in range(3):
            loss += (1 - ALPHA) * cross_entropy(rows, logits[i]).mean()
            taught = teachers_of(kind, i, fixed)
            for z, f in taught:
                loss += ALPHA * divergence(z, logits[i]) / len(taught)
                loss += BETA * hint(f, features[i]) / len(taught)
        return loss

    recipe = BYOT(alpha=ALPHA, temperature=TEMPERATURE, hint_weight=BETA, teacher=kind)
    value, gradients = value_and_gradients(
        lambda *tensors: total(Objective(recipe, NAMES, LOSS, task=TASK), tensors),
        arrays,
    )
    assert value == pytest.approx(formula(*fixed), rel=1e-5)
    for actual, expected in zip(
        gradients, finite_differences(formula, fixed), strict=True
    ):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def exits_of(tensors):
    return {
        name: {"output": logits, "logits": logits, "feature": feature, "hint": feature}
        for name, logits, feature in zip(
            NAMES, tensors[::2], tensors[1::2], strict=True
        )
    }


def total(objective, tensors, **options):
    return sum(objective(LABELS, exits_of(tensors), None, **options).values())


def test_an_external_teacher_teaches_every_exit():
    arrays = [array.astype("float64") for array in random_exits()]
    external = np.random.default_rng(9).normal(size=(5, 4))
    recipe = DeepSupervision(temperature=TEMPERATURE, external_weight=0.7)
    objective = Objective(recipe, NAMES, LOSS, external_teacher=True, task=TASK)
    found = objective(
        LABELS,
        exits_of([keras.ops.convert_to_tensor(a, "float32") for a in arrays]),
        None,
        external_logits=keras.ops.convert_to_tensor(external, "float32"),
    )
    expected = 0.7 * sum(divergence(external, logits) for logits in arrays[::2])
    assert float(found["external_loss"]) == pytest.approx(expected, rel=1e-5)
    assert set(found) == {"label_loss", "external_loss"}


def test_keras_distillation_losses():
    arrays = [array.astype("float64") for array in random_exits()]
    losses = [
        keras.distillation.LogitsDistillation(
            temperature=TEMPERATURE, loss=keras.losses.KLDivergence()
        ),
        keras.distillation.FeatureDistillation("mse"),
    ]
    pairs = ksd.SelfDistiller(
        small_base(),
        ["out_1"],
        "byot",
        distillation_losses=losses,
        distillation_loss_weights=[0.5, 2.0],
    )._given.pair_losses
    objective = Objective(DeepSupervision(), NAMES, LOSS, pair_losses=pairs, task=TASK)
    found = objective(
        LABELS,
        exits_of([keras.ops.convert_to_tensor(a, "float32") for a in arrays]),
        None,
    )
    logits, features = arrays[::2], arrays[1::2]
    expected = sum(
        0.5 * divergence(logits[3], logits[i])
        + 2.0 * ((features[3] - features[i]) ** 2).mean()
        for i in range(3)
    )
    assert float(found["distillation_loss"]) == pytest.approx(expected, rel=1e-4)


class LabelledLoss(keras.distillation.LogitsDistillation):
    """Mean logit of the right class: a loss that reads the labels."""

    def compute_loss(self, teacher_outputs, student_outputs, *, labels):
        classes = keras.ops.one_hot(labels, 4)
        return keras.ops.mean(keras.ops.sum(classes * student_outputs, axis=-1))


@pytest.mark.parametrize("teacher", ["deepest", "ensemble"])
def test_keras_losses_have_weights_of_exits_and_may_read_labels(teacher):
    arrays = [array.astype("float64") for array in random_exits()]
    taught = NAMES if teacher == "ensemble" else NAMES[:3]
    weights = [0.1, 0.2, 0.4, 0.8][: len(taught)]
    loss = LabelledLoss(loss=keras.losses.KLDivergence())
    pairs = pair_losses([loss], [dict(zip(taught, weights, strict=True))])
    recipe = DeepSupervision(teacher=teacher)
    objective = Objective(recipe, NAMES, LOSS, pair_losses=pairs, task=TASK)
    exits = exits_of([keras.ops.convert_to_tensor(a, "float32") for a in arrays])
    found = objective(LABELS, exits, None)["distillation_loss"]
    right = [logits[range(5), LABELS].mean() for logits in arrays[::2]]
    assert float(found) == pytest.approx(np.dot(weights, right[: len(taught)]), 1e-4)


def test_weights_that_do_not_fit_the_exits_are_refused_at_once():
    losses = [keras.distillation.FeatureDistillation("mse")]
    for weights in ([[0.1, 0.2, 0.3]], [{"final": 0.1}]):
        with pytest.raises(ValueError, match="does not fit the exits"):
            ksd.SelfDistiller(
                *(small_base(), ["out_1"]),
                distillation_losses=losses,
                distillation_loss_weights=weights,
            )
    for recipe in (BYOT(alpha=[0.1, 0.2]), BYOT(external_weight=[0.1])):
        with pytest.raises(ValueError, match="does not fit the exits"):
            ksd.SelfDistiller(small_base(), ["out_1"], recipe)


def test_an_external_teacher_has_a_weight_for_each_exit():
    recipe = DeepSupervision(external_weight=[0.1, 0.2, 0.3, 0.4])
    objective = Objective(recipe, NAMES, LOSS, external_teacher=True, task=TASK)
    arrays = [array.astype("float64") for array in random_exits()]
    exits = exits_of([keras.ops.convert_to_tensor(a, "float32") for a in arrays])
    other = arrays[0][::-1].copy()
    found = objective(LABELS, exits, None, external_logits=other)["external_loss"]
    each = [
        (np.exp(log_softmax(other)) * (log_softmax(other) - log_softmax(logits))).sum(
            axis=-1
        )
        for logits in arrays[::2]
    ]
    expected = np.dot([0.1, 0.2, 0.3, 0.4], [loss.mean() for loss in each])
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_without_exits_the_base_learns_from_a_teacher(batch, tmp_path):
    teacher = small_base(name="other")
    recipe = AttentionBYOT(external_weight=0.5, temperature=1.0)
    model = ksd.SelfDistiller(small_base(), 0, recipe, teacher=teacher)
    assert (model.exit_names, model.taps) == (["final"], [])
    assert not model.has_early_exits
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    logs = model.evaluate(*batch, batch_size=16, verbose=0, return_dict=True)
    student, target = (
        each.predict(batch[0]) for each in (model.final_model(), teacher)
    )
    hard = -np.log(student[range(16), batch[1]]).mean()
    soft = -(target * np.log(student)).sum(axis=-1).mean()
    assert logs["loss"] == pytest.approx(hard + 0.5 * soft, rel=1e-4)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert set(loaded.predict(batch[0], verbose=0)) == {"final"}
    with pytest.raises(ValueError, match="needs an exit before the end"):
        ksd.EarlyExit(model)


def test_without_exits_the_loss_is_scaled_as_for_the_base():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        inputs = keras.Input((8, 8, 3))
        pool = keras.layers.GlobalAveragePooling2D(dtype="float32")
        x = pool(keras.layers.Conv2D(4, 3)(inputs))
        end = keras.layers.Dense(4, "softmax", dtype="float32")(x)
        base = keras.Model(inputs, end)
        model = ksd.SelfDistiller(base, 0, "teacher_free")
    finally:
        keras.config.set_dtype_policy("float32")
    for each in (base, model):
        each.compile("sgd", "sparse_categorical_crossentropy")
        assert isinstance(each.optimizer, keras.optimizers.LossScaleOptimizer)


def test_weights_of_keras_losses_may_be_schedules(batch, tmp_path):
    rising = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.0, 0.5])
    model = compiled(
        "deep_supervision",
        distillation_losses=[keras.distillation.FeatureDistillation("mse")],
        distillation_loss_weights=[rising],
    )
    assert fit(model, batch)["distillation_loss"][0] == 0.0  # Steps 0 and 1.
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    first, second = (
        fit(each, batch)["distillation_loss"][0] for each in (model, loaded)
    )
    assert first == pytest.approx(second)
    assert first > 0.0


@pytest.mark.once
def test_the_default_logits_distillation_is_replaced():
    with pytest.warns(UserWarning, match="KLDivergence"):
        model = ksd.SelfDistiller(
            small_base(),
            ["out_1"],
            "deep_supervision",
            distillation_losses=[keras.distillation.LogitsDistillation(5.0)],
        )
    (pair,) = model._given.pair_losses
    assert isinstance(pair.loss.loss, keras.losses.KLDivergence)
    assert pair.loss.temperature == 5.0


def test_schedules_are_evaluated_at_the_step():
    arrays = [keras.ops.convert_to_tensor(array) for array in random_exits()]
    rising = keras.optimizers.schedules.PolynomialDecay(0.0, 10, 1.0)
    cooling = keras.optimizers.schedules.PiecewiseConstantDecay([4], [4.0, 2.0])
    recipe = BYOT(alpha=rising, temperature=cooling, hint_weight=rising)
    for step, alpha, temperature in ((0, 0.0, 4.0), (5, 0.5, 2.0), (20, 1.0, 2.0)):
        fixed = BYOT(alpha=alpha, temperature=temperature, hint_weight=alpha)
        scheduled = Objective(recipe, NAMES, LOSS, task=TASK)
        assert scheduled.terms == ("label_loss", "soft_target_loss", "hint_loss")
        actual = total(scheduled, arrays, step=keras.ops.convert_to_tensor(step))
        expected = total(Objective(fixed, NAMES, LOSS, task=TASK), arrays)
        assert float(actual) == pytest.approx(float(expected), rel=1e-5)


def fit(model, batch, **options):
    options = {"batch_size": 8, "shuffle": False, "verbose": 0} | options
    return model.fit(*batch, **options).history


def compiled(recipe="byot", seed=1, base=None, **options):
    keras.utils.set_random_seed(seed)
    base = small_base() if base is None else base
    model = ksd.SelfDistiller(base, ["stem_relu", "out_1"], recipe, **options)
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    return model


def same_weights(a, b):
    return all(
        np.array_equal(x, y)
        for x, y in zip(a.get_weights(), b.get_weights(), strict=True)
    )


def test_a_schedule_counts_the_models_own_steps(batch, tmp_path):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.0, 0.5])
    model = compiled(BYOT(alpha=schedule, hint_weight=0.0))
    early = fit(model, batch)["soft_target_loss"][0]  # Steps 0 and 1: weight 0.
    assert early == 0.0
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert isinstance(
        loaded.recipe.alpha, keras.optimizers.schedules.PiecewiseConstantDecay
    )
    for each in (model, loaded):
        assert fit(each, batch)["soft_target_loss"][0] > 0.0
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_external_teacher_stays_and_is_saved(batch, tmp_path):
    keras.utils.set_random_seed(5)
    teacher = small_base(name="teacher")
    before = teacher.get_weights()
    model = compiled("deep_supervision", teacher=teacher)
    keras.utils.set_random_seed(1)
    history = fit(model, batch)
    terms = {"loss", "label_loss", "external_loss"}
    assert set(history) == {*terms, "nonfinite_steps"}
    for a, b in zip(teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for each in (model, loaded):
        fit(each, batch)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert {layer.name for layer in model.final_model().layers} == {
        layer.name for layer in small_base().layers
    }


@long_on("jax")
def test_the_external_teacher_runs_in_inference_mode_and_is_never_trained(batch):
    """Dropout would show in the calls; weight decay alone would move its weights."""
    keras.utils.set_random_seed(5)
    calls = []

    class Watched(keras.layers.Dropout):
        def call(self, inputs, training=False):
            calls.append(training)
            return super().call(inputs, training=training)

    base = small_base(name="teacher")
    *_, pooled, predictions = base.layers
    teacher = keras.Model(base.input, predictions(Watched(0.5)(pooled.output)))
    before = teacher.get_weights()
    model = compiled("deep_supervision", teacher=teacher)
    # As one may who trains the exits in turns: Keras tells every layer inside.
    model.trainable = False
    model.trainable = True
    model.compile(
        keras.optimizers.SGD(0.1, weight_decay=0.1),
        "sparse_categorical_crossentropy",
        run_eagerly=True,
    )
    model.train_on_batch(*batch)  # Builds the metrics.
    calls.clear()
    model.train_on_batch(*batch)
    assert calls == [False]  # Once.
    for a, b in zip(teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.trainable_variables


def test_external_loss_is_that_of_the_teachers_logits(batch):
    keras.utils.set_random_seed(5)
    teacher = small_base(name="teacher")
    model = compiled(DeepSupervision(external_weight=0.5), teacher=teacher)
    logs = model.evaluate(*batch, batch_size=16, verbose=0, return_dict=True)
    p = np.log(teacher.predict(batch[0], verbose=0))
    kl = [
        (np.exp(p) * (p - np.log(q))).sum(axis=-1).mean()
        for q in model.predict(batch[0], verbose=0).values()
    ]
    assert logs["external_loss"] == pytest.approx(0.5 * sum(kl), rel=1e-4)


@pytest.mark.once
def test_a_teacher_may_take_images_of_any_size(batch):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    teacher = keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(x))
    assert fit(compiled(teacher=teacher), batch)["external_loss"][0] > 0


@pytest.mark.once
def test_an_ensemble_can_teach(batch):
    first = compiled(seed=3)
    model = compiled("byot", teacher=first.ensemble_model())
    assert fit(model, batch)["external_loss"][0] > 0


@pytest.mark.once
@pytest.mark.parametrize(
    ("teacher", "error", "message"),
    [
        (lambda base: base, ValueError, "share weights"),
        (lambda base: small_base(classes=7, name="t"), ValueError, "7 classes"),
        (lambda base: small_base(size=16, name="t"), ValueError, "inputs"),
        (lambda base: compiled(), ValueError, "ensemble_model"),
        (lambda base: keras.Model(), TypeError, "functional"),
    ],
    ids=["itself", "classes", "size", "wrapper", "subclassed"],
)
def test_a_wrong_teacher_is_refused(base, batch, teacher, error, message):
    with pytest.raises(error, match=message):
        ksd.SelfDistiller(base, ["out_1"], "byot", teacher=teacher(base))
    assert base.trainable
    assert base.predict(batch[0], verbose=0).shape == (16, 4)


@pytest.mark.once
@pytest.mark.parametrize("recipe", ["byot", "attention_byot", "teskd"])
def test_which_parameters_learn(batch, recipe):
    """All: labels alone reach every head and section."""
    model = compiled(recipe)
    before = {v.path: to_numpy(v.value) for v in model.trainable_variables}
    fit(model, batch)
    still = {
        v.path
        for v in model.trainable_variables
        if np.array_equal(before[v.path], to_numpy(v.value))
    }
    assert not still
    adapters = {name.split("/")[0] for name in before if "adapter" in name}
    assert adapters == ({"exit_1_adapter"} if recipe == "attention_byot" else set())


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["attention_byot", "teskd"])
def test_training_goes_on_after_loading(batch, recipe, tmp_path):
    model = compiled(recipe)
    fit(model, batch)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert same_weights(model, loaded)
    assert loaded.recipe == model.recipe
    for each in (model, loaded):
        fit(each, batch)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_an_adapted_feature_is_compared_with_the_final_one(batch):
    """Mean of ‖W f + b − final feature‖₂, of the exits that have an adapter."""
    recipe = ksd.recipes.AttentionBYOT(hint_weight=0.2, skipped_hint="shallowest")
    model = compiled(recipe)
    exits = model.exit_graph.training_network(batch[0], training=False)["exits"]
    kernel, bias = map(to_numpy, model._adapters[0].weights)
    features = [
        to_numpy(exits[name]["feature"]).astype("float64")
        for name in ("exit_2", "final")
    ]
    gap = features[0] @ kernel + bias - features[1]
    logs = model.evaluate(*batch, batch_size=16, verbose=0, return_dict=True)
    expected = 0.2 * np.linalg.norm(gap, axis=-1).mean()
    assert logs["hint_loss"] == pytest.approx(expected, rel=1e-4)
    assert [layer.name for layer in model._adapters] == ["exit_2_adapter"]


@pytest.mark.once
def test_adapters_are_in_no_deployed_model(batch):
    model = compiled("attention_byot")
    for part in (model.exit_model("exit_1"), model.ensemble_model()):
        assert not [layer for layer in part.layers if "adapter" in layer.name]


@pytest.mark.once
def test_students_that_read_the_whole_base_are_not_cut_off():
    model = compiled("teskd")
    assert not model.has_early_exits
    with pytest.raises(ValueError, match="reads the whole base"):
        model.exit_model("exit_1")
    with pytest.raises(ValueError, match=r"reads the whole base(.|\n)*final_model\(\)"):
        ksd.EarlyExit(model)
    assert set(ksd.profile(model)) == {"final", "ensemble"}
    base = small_base()
    assert model.final_model().count_params() == base.count_params()
    assert len(model.final_model().layers) == len(base.layers)


@pytest.mark.once
def test_freeze_trains_the_exits_then_all(batch, tmp_path):
    keras.utils.set_random_seed(1)
    base = small_base()
    model = compiled(base=base, freeze="base")
    before = base.get_weights()
    fit(model, batch)
    for a, b in zip(base.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(model.trainable_variables) > 0
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert len(loaded.trainable_variables) == len(model.trainable_variables)
    for each in (model, loaded):
        each.base.trainable = True
        each.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
        fit(each, batch)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(base.get_weights(), before, strict=True)
    ]
    assert all(moved)


def test_exits_and_base_learn_at_rates_of_their_own(batch):
    optimizers = keras.optimizers
    rates = optimizers.MultiOptimizer(
        optimizers.OptimizerMap(
            optimizers.SGD(0.1), {"(?!exit_).*": optimizers.SGD(0.001)}
        )
    )
    moves = []
    for optimizer in (optimizers.SGD(0.1), rates):
        keras.utils.set_random_seed(1)
        model = ksd.SelfDistiller(small_base(), ["out_1"], "byot")
        model.compile(optimizer, "sparse_categorical_crossentropy")
        weights = {weight.path: weight for weight in model.trainable_weights}
        before = {path: to_numpy(weight) for path, weight in weights.items()}
        model.train_on_batch(*batch)
        moves.append(
            {path: to_numpy(weight) - before[path] for path, weight in weights.items()}
        )
    for path, move in moves[0].items():
        rate = 1.0 if path.startswith("exit_") else 0.01
        np.testing.assert_allclose(moves[1][path], rate * move, atol=2e-7)
    assert any(np.abs(move).max() > 1e-3 for move in moves[1].values())


@pytest.mark.once
def test_a_wrong_freeze_is_refused(base):
    with pytest.raises(ValueError, match="'base'"):
        ksd.SelfDistiller(base, ["out_1"], "byot", freeze="heads")
    assert base.trainable


@pytest.mark.once
def test_label_warm_up(batch):
    warm = ksd.callbacks.LabelWarmUp(epochs=2)
    model, plain = compiled(), compiled(BYOT(alpha=0.0, hint_weight=0.0))
    history = fit(model, batch, epochs=3, callbacks=[warm])
    assert history["soft_target_loss"][:2] == [0.0, 0.0]
    assert history["hint_loss"][:2] == [0.0, 0.0]
    assert history["soft_target_loss"][2] > 0
    assert model.distillation_scale == 1.0
    # The label loss keeps its share 1 - alpha.
    assert fit(plain, batch)["label_loss"][0] != history["label_loss"][0]
    resumed = compiled()
    history = fit(resumed, batch, epochs=3, initial_epoch=2, callbacks=[warm])
    assert history["soft_target_loss"][0] > 0


@long_on("jax")
def test_a_warm_up_that_was_left_early_leaves_no_trace(batch, tmp_path):
    model = compiled()
    path = tmp_path / "m.keras"
    checkpoint = keras.callbacks.ModelCheckpoint(path)
    leave = keras.callbacks.LambdaCallback(on_epoch_end=stop_at_once)
    with pytest.raises(KeyboardInterrupt):
        fit(model, batch, callbacks=[ksd.callbacks.LabelWarmUp(2), checkpoint, leave])
    for each in (model, keras.saving.load_model(path)):
        assert each.distillation_scale == 1.0
        assert fit(each, batch)["soft_target_loss"][0] > 0.0


def stop_at_once(epoch, logs):
    raise KeyboardInterrupt


def test_label_warm_up_equals_training_without_distillation(batch):
    model = compiled(BYOT(alpha=0.4))
    fit(model, batch, epochs=2, callbacks=[ksd.callbacks.LabelWarmUp(2)])

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class LabelsOnly(ksd.recipes.Recipe):
        def weights(self, exit_names):
            *shallow, final = exit_names
            label = ksd.recipes.TermWeights(label=0.6)
            return dict.fromkeys(shallow, label) | {
                final: ksd.recipes.TermWeights(label=1.0)
            }

    plain = compiled(LabelsOnly())
    fit(plain, batch, epochs=2)
    for a, b in zip(model.base.get_weights(), plain.base.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.once
def test_warm_up_needs_a_wrapper(base, batch):
    base.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(TypeError, match="SelfDistiller"):
        base.fit(*batch, verbose=0, callbacks=[ksd.callbacks.LabelWarmUp(1)])
    with pytest.raises(ValueError, match="epochs=-1"):
        ksd.callbacks.LabelWarmUp(-1)


@pytest.mark.once
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BYOT(teacher="deepst"), "Did you mean 'deepest'"),
        (lambda: BYOT(detach_teacher=1), "True or False"),
        (lambda: BYOT(external_weight=-1.0), "external_weight"),
        (lambda: AttentionBYOT(skipped_hint="first"), "second_deepest"),
        (lambda: AttentionBYOT(alpha=1.5), "from 0 to 1"),
        (lambda: TESKD(temperature=0.0), "above 0"),
        (lambda: TESKD(label_weight=float("nan")), "finite"),
    ],
)
def test_wrong_fields_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.once
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"distillation_losses": "mse"}, TypeError, "must be a list"),
        ({"distillation_losses": ["mse"]}, TypeError, "keras.distillation"),
        (
            {
                "distillation_losses": [keras.distillation.FeatureDistillation("mse")],
                "distillation_loss_weights": [1.0, 2.0],
            },
            ValueError,
            "same length",
        ),
        (
            {
                "distillation_losses": [
                    keras.distillation.FeatureDistillation(
                        "mse", teacher_layer_name="a", student_layer_name="b"
                    )
                ]
            },
            ValueError,
            "taps",
        ),
    ],
    ids=["no list", "no loss", "lengths", "layers"],
)
def test_wrong_distillation_losses_are_refused(base, options, error, message):
    with pytest.raises(error, match=message):
        ksd.SelfDistiller(base, ["out_1"], "byot", **options)


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")  # Keras on JAX.
def test_mixed_labels(batch):
    """Keras' own layers mix images and labels; label smoothing is the loss' own."""
    images, labels = batch
    hot = np.eye(4, dtype="float32")[labels]
    for layer in (keras.layers.MixUp(seed=0), keras.layers.CutMix(seed=0)):
        mixed = layer({"images": images, "labels": hot}, training=True)
        mixed = {name: to_numpy(value) for name, value in mixed.items()}
        assert ((mixed["labels"] > 0).sum(axis=-1) > 1).any()
        model = compiled()
        model.compile(
            keras.optimizers.SGD(0.1),
            keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
            metrics=["accuracy"],
        )
        history = fit(model, (mixed["images"], mixed["labels"]))
        assert np.isfinite(history["loss"][0])
        logs = model.evaluate(
            mixed["images"], mixed["labels"], verbose=0, return_dict=True, batch_size=16
        )
        outputs = model.predict(mixed["images"], verbose=0)
        rows = 0.9 * mixed["labels"] + 0.1 / 4
        shares = {"exit_1": 0.9, "exit_2": 0.9, "final": 1.0}
        expected = sum(
            share * -(rows * np.log(outputs[name])).sum(axis=-1).mean()
            for name, share in shares.items()
        )
        assert logs["label_loss"] == pytest.approx(expected, rel=1e-4)
