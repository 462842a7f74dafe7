"""The means of the logs against NumPy, and as Keras metrics."""

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from keras_selfdistill.training.logs.running_means import RunningMeans
from tests.conftest import to_numpy

NAMES = ["loss", "label_loss", "hint_loss"]


def results(means):
    """Return all means as numbers."""
    return [float(to_numpy(metric.result())) for metric in means.metrics.values()]


def test_means_are_weighted_and_leave_out_what_does_not_count():
    random = np.random.default_rng(0)
    values = random.normal(size=(6, 3)).astype("float32")
    values[4, 1] = np.nan
    weights, counted = [4, 8, 1, 8, 2, 3], [True, True, False, True, False, True]
    means = RunningMeans(NAMES)
    for row, weight, counts in zip(values, weights, counted, strict=True):
        each = dict(zip(NAMES, map(keras.ops.convert_to_tensor, row), strict=True))
        means.add(each, counted=keras.ops.convert_to_tensor(counts), weight=weight)
    shares = np.array(weights) * counted
    expected = np.average(values[counted], axis=0, weights=shares[counted])
    np.testing.assert_allclose(results(means), expected, rtol=1e-6)


def test_a_mean_without_values_is_nan_and_others_go_on():
    means = RunningMeans(NAMES)
    means.add({"loss": 2.0, "hint_loss": 6.0}, counted=True, weight=3)
    np.testing.assert_equal(results(means), [2.0, np.nan, 6.0])
    means.metrics["loss"].reset_state()
    np.testing.assert_equal(results(means), [np.nan, np.nan, 6.0])
    means.metrics["label_loss"].update_state(5.0, sample_weight=2.0)
    np.testing.assert_equal(results(means), [np.nan, 5.0, 6.0])


@pytest.mark.parametrize("log_gradients", [False, True])
def test_a_wrapper_has_one_variable_for_all_means(log_gradients):
    stack = [keras.layers.Dense(4, name=name) for name in "ab"]
    base = keras.Sequential([keras.Input((3,)), *stack, keras.layers.Dense(2)])
    model = ksd.SelfDistiller(base, ["a"], "byot", head="linear", task="multiclass")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss=loss, log_gradients=log_gradients, run_eagerly=True)
    names = ["loss", "label_loss", "soft_target_loss", "hint_loss", "nonfinite_steps"]
    gradients = ["section_1_gradient", "section_2_gradient"] * log_gradients
    found = [metric.name for metric in model.metrics]
    assert [name for name in found if name != "compile_metrics"] == names + gradients
    assert len(model.metrics_variables) == 2 + log_gradients
    x, y = np.ones((8, 3), "float32"), np.arange(8) % 2
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["loss"] == pytest.approx(sum(logs[name] for name in names[1:4]))
    model.reset_metrics()
    assert np.isnan(float(to_numpy(model.metrics[0].result())))
    assert all(not to_numpy(each.value).any() for each in model.metrics_variables)
