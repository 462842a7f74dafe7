"""Every loss against its formula in NumPy, one value for each sample."""

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from keras_selfdistill import losses
from tests.conftest import to_numpy, value_and_gradients

RANDOM = np.random.default_rng(3)
# Three samples of four units, so that no axis can be taken for another.
TEACHER = RANDOM.normal(size=(3, 4)).astype("float32") * 2
STUDENT = RANDOM.normal(size=(3, 4)).astype("float32") * 2
BETWEEN = np.array([[0.5, -0.5, 0.0, 0.9]], "float32")  # Units from 0 to 1 and at 0.


def softmax(logits):
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def divergence(teacher, student, t):
    p, q = softmax(teacher / t), softmax(student / t)
    return t * t * (p * np.log(p / q)).sum(axis=-1)


def crossentropy(teacher, student, t):
    return -(softmax(teacher / t) * np.log(softmax(student / t))).sum(axis=-1)


def binary(teacher, student, t):
    p, q = sigmoid(teacher / t), sigmoid(student / t)
    each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    return t * t * each.mean(axis=-1)


def distance(teacher, student):
    return np.mean((teacher - student) ** 2, axis=-1)


def hint(teacher, student):
    active = (teacher > 0) | (student > 0)
    return (active * (teacher - student) ** 2).sum(axis=-1)


def norm(teacher, student):
    return np.linalg.norm(teacher - student, axis=-1)


SOFT = {
    "SoftTargetLoss": (losses.soft_target_divergence, divergence),
    "SoftTargetCrossentropy": (losses.soft_target_crossentropy, crossentropy),
    "BinarySoftTargetLoss": (losses.binary_soft_target_divergence, binary),
}
OTHERS = {
    "OutputDistance": (losses.output_distance, distance),
    "HintLoss": (losses.hint_distance, hint),
    "HintNormLoss": (losses.hint_norm, norm),
}


@pytest.mark.parametrize("name", [*SOFT, *OTHERS])
def test_functions_and_losses_follow_their_formulas(name):
    function, formula = (SOFT | OTHERS)[name]
    make = getattr(losses, name)
    for options in [{}, {"temperature": 2.5}] if name in SOFT else [{}]:
        arguments = {"t": options.get("temperature", 1.0)} if name in SOFT else {}
        expected = formula(TEACHER, STUDENT, **arguments)
        found = function(TEACHER, STUDENT, **options)
        np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-5)
        # Two positions of each sample: one value for each.
        pair = [np.stack([each, 0.5 - each], axis=1) for each in (TEACHER, STUDENT)]
        found, values = function(*pair, **options), formula(*pair, **arguments)
        assert values.shape == (3, 2)
        np.testing.assert_allclose(to_numpy(found), values, rtol=1e-4)
        loss = make(**options)
        value = float(loss(TEACHER, STUDENT))
        assert value == pytest.approx(expected.mean(), rel=1e-5)
        value = float(make(**options, reduction="sum")(TEACHER, STUDENT))
        assert value == pytest.approx(expected.sum(), rel=1e-5)


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float16", "float32"),
        ("bfloat16", "float32"),
        # JAX has no float64 unless it is asked to.
        *([("float64", "float64")] if keras.backend.backend() != "jax" else []),
    ],
)
def test_logits_are_divided_in_float32_at_least(name, dtype, expected):
    function, formula = SOFT[name]
    pair = [keras.ops.convert_to_tensor(each, dtype) for each in (TEACHER, STUDENT)]
    found = function(*pair, temperature=20.0)
    assert keras.backend.standardize_dtype(found.dtype) == expected
    rounded = [to_numpy(keras.ops.cast(each, "float32")) for each in pair]
    values = formula(*rounded, 20.0)
    np.testing.assert_allclose(to_numpy(found), values, rtol=1e-4, atol=1e-4)


@pytest.mark.once
@pytest.mark.parametrize("name", [*SOFT, *OTHERS])
def test_losses_come_back_from_their_configs(name):
    options = {"temperature": 2.0} if name in SOFT else {}
    loss = getattr(ksd.losses, name)(**options, reduction="sum", name="mine")
    config = keras.saving.serialize_keras_object(loss)
    assert config["registered_name"] == f"keras_selfdistill>{name}"
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()
    assert (again.name, again.reduction) == ("mine", "sum")
    assert float(again(TEACHER, STUDENT)) == float(loss(TEACHER, STUDENT))
    default = getattr(ksd.losses, name)()
    kind = "hint_loss" if name.startswith("Hint") else "soft_target_loss"
    assert (default.name, default.reduction) == (kind, "sum_over_batch_size")


def test_hints_of_features_between_and_at_zero():
    zeros = np.zeros_like(BETWEEN)
    for pair in ((BETWEEN, zeros), (zeros, BETWEEN), (BETWEEN, -BETWEEN)):
        found = to_numpy(losses.hint_distance(*pair))
        np.testing.assert_allclose(found, hint(*pair), rtol=1e-6)
        np.testing.assert_allclose(
            to_numpy(losses.hint_norm(*pair)), norm(*pair), rtol=1e-6
        )
    small = BETWEEN / 10
    np.testing.assert_allclose(
        to_numpy(losses.hint_norm(small, zeros)), norm(small, zeros), rtol=1e-6
    )


def test_the_norm_of_equal_features_has_value_and_gradient_zero():
    value, (_, gradient) = value_and_gradients(
        lambda teacher, student: keras.ops.sum(losses.hint_norm(teacher, student)),
        [TEACHER, TEACHER.copy()],
    )
    assert value == 0.0
    assert not gradient.any()
