"""The mean teacher, against NumPy and against plain Keras training on its targets."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.recipes import MeanTeacher
from tests.conftest import marks_long_on
from tests.training.test_extra_terms import X, Y, assert_same_weights, fit

pytestmark = marks_long_on("jax", "tensorflow")

ONE_HOT = np.eye(3)[Y]
LOSS = "sparse_categorical_crossentropy"


def build_base(end="softmax"):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(6, "tanh", name="first"),
            layers.BatchNormalization(momentum=0.5),
            layers.Dense(4, "tanh", name="second"),
            layers.Dense(3, end, name="end"),
        ]
    )


def wrapped(recipe, taps=(), optimizer=None, end="softmax", **options):
    model = ksd.SelfDistiller(build_base(end), list(taps), recipe, head="linear")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=end == "linear")
    model.compile(optimizer or keras.optimizers.SGD(0.3), loss, **options)
    return model


def averages(model):
    return model.teacher.copied.get_weights()


def softmax(logits):
    raised = np.exp(logits.astype("float64"))
    return raised / raised.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("end", ["softmax", "linear"])
def test_the_term_follows_the_formula(end):
    recipe = MeanTeacher(mean_weight={"exit_1": 0.5, "final": 2.0}, temperature=3.0)
    model = wrapped(recipe, ["first"], end=end)
    noise = np.random.default_rng(1)
    model.teacher.set_weights(
        [w + noise.normal(size=w.shape) ** 2 for w in model.teacher.get_weights()]
    )
    weights = np.linspace(0.0, 2.0, 12).astype("float32")
    logs = model.evaluate(X, Y, 12, 0, sample_weight=weights, return_dict=True)
    found = model.exit_graph.training_network.predict(X, verbose=0)["exits"]
    teacher = softmax(model.teacher.predict(X, verbose=0) / 3)
    expected = 0.0
    for name, weight in (("exit_1", 0.5), ("final", 2.0)):
        student = softmax(found[name]["logits"] / 3)
        divergence = (teacher * np.log(teacher / student)).sum(axis=-1)
        expected += weight * 9 * (weights * divergence).mean()
    assert expected > 0.1
    assert logs["mean_teacher_loss"] == pytest.approx(expected, rel=1e-4)
    total = logs["label_loss"] + logs["mean_teacher_loss"]
    assert logs["loss"] == pytest.approx(total, rel=1e-5)  # No other exit teaches.


class Reference:
    """Plain Keras training on the targets of averages that NumPy computes.

    CE(y, p) + w · KL(mean, p) has the gradient of (1 + w) · CE of the mixture.
    """

    def __init__(self, weight, decay, **options):
        self.weight, self.decay = weight, decay
        self.model, self.forward, self.teacher = (build_base() for _ in range(3))
        rate = 0.3 * (1 + weight)
        self.model.compile(
            keras.optimizers.SGD(rate, **options), "categorical_crossentropy"
        )
        self.mean, self.steps = None, 0

    def step(self, x, rows):
        # What batch normalisation has seen of this step, too.
        self.forward.set_weights(self.model.get_weights())
        self.forward(x, training=True)
        now = [weight.astype("float64") for weight in self.forward.get_weights()]
        d = min(1 - 1 / (self.steps + 1), self.decay)
        pairs = zip(self.mean or now, now, strict=True)
        self.mean = [d * mean + (1 - d) * weight for mean, weight in pairs]
        self.steps += 1
        self.teacher.set_weights(self.mean)
        target = self.teacher(x, training=False)
        mixed = (rows + self.weight * np.array(keras.ops.convert_to_numpy(target))) / (
            1 + self.weight
        )
        self.model.train_on_batch(x, mixed)


@pytest.mark.parametrize("batches", [1, 2], ids=["each batch", "two batches"])
def test_training_is_that_on_mixtures_with_what_the_average_predicts(batches, tmp_path):
    """With `gradient_accumulation_steps=2` the weights change in every second step."""
    options = {} if batches == 1 else {"gradient_accumulation_steps": batches}
    reference = Reference(0.8, 0.6, **options)
    model = wrapped(
        MeanTeacher(mean_weight=0.8, decay=0.6),
        optimizer=keras.optimizers.SGD(0.3, **options),
    )

    def both(model, epochs, **options):
        fit(model, epochs, validation_data=(X, Y), **options)
        for _ in range(2):
            for rows in (slice(6), slice(6, 12)):
                reference.step(X[rows], ONE_HOT[rows])

    both(model, 2)
    assert_same_weights(model.base, reference.model)
    for ours, mean in zip(averages(model), reference.mean, strict=True):
        np.testing.assert_allclose(ours, mean, rtol=1e-5, atol=1e-6)
    if batches > 1:
        return
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    both(loaded, 4, initial_epoch=2)
    assert_same_weights(loaded.base, reference.model)
    for ours, mean in zip(averages(loaded), reference.mean, strict=True):
        np.testing.assert_allclose(ours, mean, rtol=1e-5, atol=1e-6)


def test_only_finite_training_steps_are_averaged():
    model = wrapped("mean_teacher", ["first"])
    model.train_on_batch(X, Y)
    model.base.set_weights([w + 1.0 for w in model.base.get_weights()])
    before = model.teacher.get_weights()
    model.train_on_batch(np.full_like(X, np.nan), Y)
    model.evaluate(X, Y, verbose=0)
    for one, other in zip(model.teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    model.train_on_batch(X, Y)
    changed = [
        (one != other).any()
        for one, other in zip(model.teacher.get_weights(), before, strict=True)
    ]
    assert changed == [True] * len(before)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_averages_of_a_half_precise_base_are_in_full(policy, mixed_precision):
    mixed_precision(policy)
    model = wrapped(MeanTeacher(mean_weight=0.5), optimizer=keras.optimizers.SGD(1e-4))
    mixed_precision("float32")
    kernels = []
    for _ in range(3):
        kernels.append(model.base.get_weights()[0].astype("float64"))
        assert model.train_on_batch(X, Y, return_dict=True)["nonfinite_steps"] == 0
    assert {weight.dtype for weight in averages(model)} == {np.dtype("float32")}
    assert np.abs(kernels[-1] - kernels[0]).max() < 2**-9  # Less than bfloat16's.
    # Of the first thousand steps, the mean of all.
    np.testing.assert_allclose(averages(model)[0], np.mean(kernels, axis=0), rtol=1e-6)


@pytest.mark.once
def test_weights_of_few_digits_are_refused(mixed_precision):
    mixed_precision("bfloat16")
    base = build_base()
    mixed_precision("float32")
    with pytest.raises(ValueError, match=r"MeanTeacher averages .* with 10 such"):
        ksd.SelfDistiller(base, ["first"], "mean_teacher")


@pytest.mark.once
@pytest.mark.parametrize("weight", [[1.0], {"exit_1": 1.0}, [1.0, 1.0, 1.0]])
def test_weights_of_other_exits_are_refused(weight):
    with pytest.raises(ValueError, match=r"MeanTeacher\.mean_weight does not fit"):
        wrapped(MeanTeacher(mean_weight=weight), ["first"])


def test_weight_and_decay_may_be_schedules_and_exits_teach_beside_it():
    rising = keras.optimizers.schedules.PolynomialDecay(0.0, 4, 8.0)
    steady = keras.optimizers.schedules.PolynomialDecay(0.0, 1, 0.0)
    recipe = MeanTeacher(mean_weight=rising, decay=steady, alpha=0.3)
    model = wrapped(recipe, ["first"])
    logs = []
    for _ in range(3):
        before = model.base.get_weights()[0]
        logs.append(model.train_on_batch(X, Y, return_dict=True))
    assert logs[0]["soft_target_loss"] > 0
    assert logs[0]["mean_teacher_loss"] == 0
    assert logs[1]["mean_teacher_loss"] > 0
    np.testing.assert_allclose(averages(model)[0], before)  # Without a past.
