"""The papers' analyses against formulas written out and against scikit-learn."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill import analysis
from keras_selfdistill.analysis.features import probe, scatter
from keras_selfdistill.analysis.weight_noise import weight_noise
from tests.conftest import make_batch, small_base, to_numpy


def weights_of(model):
    return [np.array(to_numpy(variable)) for variable in model.variables]


def same_bits(before, after):
    return all(
        one.dtype == other.dtype and one.tobytes() == other.tobytes()
        for one, other in zip(before, after, strict=True)
    )


@pytest.fixture(scope="module")
def pair():
    """A plain base and a wrapper of the same weights, compiled."""
    keras.utils.set_random_seed(4)
    plain, base = small_base(), small_base()
    base.set_weights(plain.get_weights())
    wrapper = ksd.SelfDistiller(base, ["stem_relu", "out_1"], "byot")
    for model in (plain, wrapper):
        model.compile("sgd", "sparse_categorical_crossentropy")
    return {"plain": plain, "byot": wrapper}


@pytest.mark.parametrize("relative", [False, True])
def test_noise_is_of_its_size_and_leaves_no_trace(pair, relative):
    model = pair["plain"]
    before = weights_of(model)
    with weight_noise(model, 0.1, relative=relative, seed=3):
        kernel = model.get_layer("conv_2b").kernel
        was = before[[v.path for v in model.variables].index(kernel.path)]
        noise = (to_numpy(kernel) - was).astype("float64")
        unit = np.sqrt(np.mean(was.astype("float64") ** 2)) if relative else 1.0
        assert noise.std() == pytest.approx(0.1 * unit, rel=0.05)
        assert abs(noise.mean()) < 0.01 * unit
        statistics = model.get_layer("bn_2").moving_variance
        assert np.all(to_numpy(statistics) == 1)
    assert same_bits(before, weights_of(model))


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_a_quantized_model_is_refused(mode):
    """Its kernels are integers, which noise on the others would leave alone."""
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, "softmax")])
    model.quantize(mode)
    with pytest.raises(ValueError, match="quantized layers"):
        analysis.flat_minima({"a": model}, np.ones((4, 8)), np.zeros(4))


def test_frozen_weights_get_the_same_noise():
    def noisy(freeze):
        keras.utils.set_random_seed(4)
        wrapper = ksd.SelfDistiller(small_base(), ["out_1"], "byot", freeze=freeze)
        final = wrapper.final_model()
        with weight_noise(final, 0.1, seed=3):
            return weights_of(final)

    frozen = noisy("base")
    assert same_bits(frozen, noisy(None))
    model = small_base()
    model.get_layer("conv_1a").trainable = False
    before = weights_of(model)
    with weight_noise(model, 0.1):
        assert np.all(weights_of(model)[0] != before[0])
        kernel = to_numpy(model.get_layer("conv_1a").kernel)
    assert np.all(kernel != to_numpy(model.get_layer("conv_1a").kernel))


def test_a_model_without_weights_is_refused():
    model = keras.Sequential([keras.Input((4,)), layers.Softmax()], name="bare")
    with pytest.raises(ValueError, match=r"Noise needs weights.*'bare'"):
        analysis.flat_minima({"bare": model}, np.eye(4), np.arange(4))


def test_a_network_of_nan_gets_nothing_right():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
    model.layers[0].bias.assign(np.full(4, np.nan))
    found = analysis.flat_minima(
        {"nan": model}, np.eye(4), np.zeros(4, int), scales=[0.0], repeats=1
    )
    assert found.accuracy["nan"].tolist() == [[0.0]]


def test_weights_are_restored_after_an_exception(pair):
    model = pair["byot"]
    before = weights_of(model)
    with pytest.raises(KeyboardInterrupt), weight_noise(model, 0.1):  # noqa: PT012
        assert not same_bits(before, weights_of(model))
        raise KeyboardInterrupt
    assert same_bits(before, weights_of(model))
    with pytest.raises(ValueError, match=r"one output.*pass its final_model"):
        analysis.flat_minima({"byot": model}, *make_batch(), repeats=1)
    assert same_bits(before, weights_of(model))


def test_flat_minima_measure_accuracy_under_noise():
    random = np.random.default_rng(4)
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, activation="relu"), layers.Dense(4)]
    )
    for variable in model.variables:  # The same on all backends.
        variable.assign(random.standard_normal(variable.shape))
    x = random.standard_normal((40, 6)).astype("float32")
    before = weights_of(model)
    y = model.predict(x, verbose=0).argmax(-1)  # Right on all, while nothing is noisy.
    found = analysis.flat_minima(
        {"one": model, "other": model}, x, y, scales=[0.0, 0.3], repeats=2, seed=7
    )
    assert same_bits(before, weights_of(model))
    # The same weights and the same draws.
    assert np.array_equal(found.accuracy["one"], found.accuracy["other"])
    assert found.accuracy["one"][0].tolist() == [1.0, 1.0]
    random = np.random.default_rng(np.random.SeedSequence(7).spawn(2)[1])
    for variable in model.trainable_variables:
        noise = 0.3 * random.standard_normal(variable.shape)
        variable.assign((to_numpy(variable) + noise).astype("float32"))
    noisy = np.mean(model.predict(x, verbose=0).argmax(-1) == y)
    for variable, value in zip(model.variables, before, strict=True):
        variable.assign(value)
    assert 0 < noisy < 1
    assert found.accuracy["one"][1, 1] == noisy


def test_gradients_of_a_linear_model_in_closed_form():
    random = np.random.default_rng(0)
    x = random.normal(size=(6, 3)).astype("float32")
    y = np.array([0, 1, 1, 0, 1, 1])
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(
                2,
                activation="softmax",
                kernel_regularizer=keras.regularizers.L2(0.1),
                name="only",
            ),
        ]
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    kernel, bias = model.get_weights()
    sums = []
    for rows in (slice(0, 4), slice(4, 6)):
        exponentials = np.exp(x[rows] @ kernel + bias)
        error = exponentials / exponentials.sum(axis=1, keepdims=True)
        error[np.arange(len(error)), y[rows]] -= 1
        error /= len(error)
        of_kernel = x[rows].T @ error + 2 * 0.1 * kernel
        sums.append(np.abs(of_kernel).sum() + np.abs(error.sum(axis=0)).sum())
    found = analysis.gradients_by_depth({"linear": model}, x, y, batch_size=4)
    assert found.places == ("only",)
    np.testing.assert_allclose(
        found.magnitude["linear"], [np.mean(sums) / 8], rtol=1e-5
    )


def test_gradients_hold_what_layers_add_to_the_loss():
    def magnitude(factor):
        keras.utils.set_random_seed(0)
        regularizer = keras.regularizers.L2(factor)
        model = keras.Sequential(
            [keras.Input((3,)), layers.Dense(2, activity_regularizer=regularizer)]
        )
        model.compile("sgd", "mse")
        x, y = np.ones((4, 3)), np.zeros((4, 2))
        (found,) = analysis.gradients_by_depth({"a": model}, x, y).magnitude["a"]
        return found

    # Mean squares of two outputs are 0.5 of their sum of squares: as L2 adds 10 of it.
    assert magnitude(10.0) == pytest.approx((1 + 2 * 10) * magnitude(0.0), rel=1e-4)


@pytest.mark.once
def test_gradients_need_samples_and_weights():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="Received: 0 samples, and 1 layers of 'a'"):
        analysis.gradients_by_depth({"a": model}, np.ones((0, 3)), np.ones((0, 2)))
    model.trainable = False
    with pytest.raises(ValueError, match="Received: 4 samples, and 0 layers of 'a'"):
        analysis.gradients_by_depth({"a": model}, np.ones((4, 3)), np.ones((4, 2)))
    logs = {f"section_{i}_gradient": [1.0] for i in (1, 2, 3)}
    first, last = dict(list(logs.items())[:2]), dict(list(logs.items())[1:])
    with pytest.raises(ValueError, match="have the same sections"):
        analysis.logged_gradients({"a": first, "b": last})


@pytest.mark.long
def test_exits_add_to_the_gradients_before_them_alone(pair):
    before = {name: weights_of(model) for name, model in pair.items()}
    found = analysis.gradients_by_depth(pair, *make_batch(), batch_size=8)
    for name, model in pair.items():  # Moving statistics and counters, too.
        assert same_bits(before[name], weights_of(model))
    depth = found.places.index("conv_1b") + 1
    assert {"shortcut", "conv_2a", "conv_2b"} <= set(found.places[depth:])
    plain, byot = found.magnitude["plain"], found.magnitude["byot"]
    # Teachers are detached: behind the last tap, the label loss is all there is.
    np.testing.assert_allclose(plain[depth:], byot[depth:], rtol=1e-4)
    assert np.all(np.abs(byot / plain - 1)[:depth] > 1e-3)


@pytest.mark.long
def test_gradients_are_refused_without_a_loss_or_like_layers(pair):
    small = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten()])
    with pytest.raises(ValueError, match=r"'small', which is not compiled"):
        analysis.gradients_by_depth({"small": small}, *make_batch())
    small.add(layers.Dense(4, activation="softmax"))
    small.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="the same number of layers"):
        analysis.gradients_by_depth({**pair, "small": small}, *make_batch())
    with pytest.raises(ValueError, match=r"'a' has no gradients.*'loss'"):
        analysis.logged_gradients({"a": {"loss": [1.0]}})


@pytest.fixture(scope="module")
def clouds():
    """Features of four classes around four centres, for training and for the test."""
    random = np.random.default_rng(5)
    centres = 2 * random.normal(size=(4, 6))
    labels = random.permutation(np.arange(120) % 4)
    features = centres[labels] + random.normal(size=(120, 6)) * np.arange(1, 7)
    features[:, 5] = 7.0  # A unit that never changes.
    return (features[:80], labels[:80]), (features[80:], labels[80:])


@pytest.mark.once
def test_scatter_by_its_definition(clouds):
    features, labels = clouds[0]
    mean = features.mean(axis=0)
    within = between = 0.0
    for feature, label in zip(features, labels, strict=True):
        centre = features[labels == label].mean(axis=0)
        within += ((feature - centre) ** 2).sum() / len(features)
        between += ((centre - mean) ** 2).sum() / len(features)
    found = scatter(features, labels)
    assert found == pytest.approx((within, between))
    assert sum(found) == pytest.approx(features.var(axis=0).sum())


@pytest.mark.once
def test_the_probe_is_ridge_regression(clouds):
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    (x, y), (others, right) = clouds
    scale = StandardScaler().fit(x)
    penalty = 0.3  # Beside a mean; scikit-learn's stands beside a sum.
    ridge = Ridge(alpha=penalty * len(x)).fit(scale.transform(x), np.eye(4)[y])
    expected = ridge.predict(scale.transform(others)).argmax(axis=1)
    assert len(set(expected)) == 4
    found = probe(x, y + 10, others, penalty=penalty)
    assert found.tolist() == (expected + 10).tolist()
    table = analysis.discriminating_features(
        {"final": x}, y, {"final": others}, right, penalty=penalty
    )
    assert table.probe_accuracy[0] == np.mean(expected == right) > 0.4
    assert table.ratio[0] == pytest.approx(table.between[0] / table.within[0])


def test_features_lead_to_the_logits(pair):
    x, _ = make_batch()
    model = pair["byot"]
    features = analysis.exit_features(model, x)
    outputs = model.predict(x, verbose=0)
    assert list(features) == model.exit_names
    for name, end in (("exit_1", "exit_1_logits"), ("final", "predictions")):
        kernel, bias = model.get_layer(end).get_weights()
        exponentials = np.exp(features[name] @ kernel + bias)
        expected = exponentials / exponentials.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(outputs[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.once
def test_predictions_by_counting():
    random = np.random.default_rng(6)
    labels = random.integers(0, 3, 50)
    outputs = {name: random.normal(size=(50, 3)) for name in ("a", "b", "c")}
    sets = {
        name: {i for i in range(50) if each[i].argmax() == labels[i]}
        for name, each in outputs.items()
    }
    found = analysis.compare_predictions(outputs, labels[:, None])
    for i, j in itertools.product(range(3), repeat=2):
        one, other = sets["abc"[i]], sets["abc"[j]]
        assert found.ahead[i, j] == pytest.approx(len(one - other) / 50)
        rest = set().union(*(sets[n] for n in "abc" if n != "abc"[i]))
        assert found.alone[i] == pytest.approx(len(one - rest) / 50)
        assert found.accuracy[i] == pytest.approx(len(one) / 50)
    assert found.any_right == pytest.approx(len(set().union(*sets.values())) / 50)
    assert found.all_right == pytest.approx(len(set.intersection(*sets.values())) / 50)


@pytest.mark.once
def test_labels_are_numbers_or_rows_of_two_classes_or_more():
    outputs = {"final": np.eye(3)[[0, 1, 2, 1]]}
    labels = np.array([0, 1, 1, 1])
    found = analysis.compare_predictions(outputs, np.eye(3)[labels])
    assert found.accuracy.tolist() == [0.75]
    with pytest.raises(ValueError, match="two classes or more"):
        analysis.compare_predictions({"final": np.full((4, 1), 0.6)}, labels)
    with pytest.raises(ValueError, match="needs a label"):
        analysis.compare_predictions(outputs, labels[:2])
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, "sigmoid")])
    with pytest.raises(ValueError, match="two classes or more"):
        analysis.flat_minima({"plain": model}, np.ones((4, 2)), labels, scales=[0.0])


def test_results_are_printed_without_their_arrays():
    names = tuple(f"exit_{number:02}" for number in range(1, 13))
    places = tuple(f"layer_{number}" for number in range(200))
    rows = np.ones((12, 200))
    found = (
        analysis.Features(names, *np.ones((3, 12))),
        analysis.Gradients(places, dict(zip(names, rows, strict=True))),
        analysis.FlatMinima(np.ones(200), {"plain": rows.T}, relative=True),
        analysis.PredictionComparison(names, rows[:, 0], rows[:, 0], rows, 1.0, 0.5),
    )
    assert [repr(each) for each in found] == [
        "<Features of exit_01, exit_02, … (8 more), exit_11, exit_12>",
        "<Gradients of exit_01, exit_02, … (8 more), exit_11, exit_12 at 200 places>",
        "<FlatMinima of plain at 200 scales>",
        "<PredictionComparison of exit_01, exit_02, … (8 more), exit_11, exit_12>",
    ]
