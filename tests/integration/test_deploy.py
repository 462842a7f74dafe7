"""Models cut from a wrapper, and wrappers that are saved and loaded."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from tests.conftest import make_batch, marks_long_on, small_base, to_numpy

# A network is traced for each.
pytestmark = marks_long_on("tensorflow")

LOSS = "sparse_categorical_crossentropy"
TAPS = ["stem_relu", "out_1"]


def train(activation):
    """Return a wrapper after one epoch."""
    keras.utils.set_random_seed(4)
    model = ksd.SelfDistiller(small_base(activation), TAPS, "byot")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not activation)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"])
    model.fit(*make_batch(), batch_size=8, verbose=0)
    return model


@pytest.fixture(scope="module", params=["softmax", None], ids=["softmax", "logits"])
def trained(request):
    """A wrapper after one epoch, which tests must leave as it is."""
    return train(request.param)


def names(model):
    return {layer.name for layer in model.layers}


def test_cut_models_predict_as_the_wrapper_does(trained, batch):
    x, _ = batch
    outputs = trained.predict(x, verbose=0)
    assert list(trained.output) == ["exit_1", "exit_2", "final"]
    for name, expected in outputs.items():
        actual = trained.exit_model(name).predict(x, verbose=0)
        np.testing.assert_allclose(actual, expected, atol=1e-6)
    final = trained.final_model().predict(x, verbose=0)
    np.testing.assert_allclose(final, outputs["final"], atol=1e-6)
    called = trained(x, training=False)
    np.testing.assert_allclose(to_numpy(called["exit_1"]), outputs["exit_1"], atol=1e-5)


def test_the_ensemble_is_the_mean_of_logits(trained, batch):
    x, _ = batch
    outputs = trained.predict(x, verbose=0)
    ensemble = trained.ensemble_model().predict(x, verbose=0)
    if trained.final_model().layers[-1].activation is keras.activations.softmax:
        # Softmax undone, up to a constant in each row that the softmax takes away.
        rows = sum(np.log(output) for output in outputs.values()) / 3
        expected = np.exp(rows) / np.exp(rows).sum(axis=-1, keepdims=True)
    else:
        expected = sum(outputs.values()) / 3
    np.testing.assert_allclose(ensemble, expected, atol=1e-5)


@pytest.mark.once
def test_an_exit_model_holds_only_what_the_exit_needs(trained):
    first = names(trained.exit_model("exit_1"))
    head = {name for name in first if name.startswith("exit_1")}
    assert first - head == {"image", "stem", "stem_bn", "stem_relu"}
    second = names(trained.exit_model("exit_2"))
    below = {"image", "stem", "stem_bn", "stem_relu"}
    below |= {"conv_1a", "bn_1", "relu_1", "conv_1b", "add_1", "out_1"}
    assert {name for name in second if not name.startswith("exit_2")} == below
    assert not {name for name in second if name.startswith("exit_1")}


def test_the_final_model_is_the_base(trained):
    base, final = small_base(), trained.final_model()
    assert [layer.name for layer in final.layers] == [
        layer.name for layer in base.layers
    ]
    assert final.count_params() == base.count_params()
    assert not isinstance(final, ksd.SelfDistiller)


def test_cut_models_share_their_weights(trained):
    kernel = trained.final_model().get_layer("stem").kernel
    assert trained.exit_model("exit_1").get_layer("stem").kernel is kernel
    assert trained.ensemble_model().get_layer("stem").kernel is kernel


@pytest.mark.once
def test_cut_models_need_only_keras(trained, batch, tmp_path):
    exit_model = trained.exit_model("exit_2")
    assert {type(layer).__module__.split(".")[0] for layer in exit_model.layers} == {
        "keras"
    }
    exit_model.save(tmp_path / "exit.keras")
    loaded = keras.saving.load_model(tmp_path / "exit.keras")
    np.testing.assert_allclose(
        loaded.predict(batch[0], verbose=0),
        exit_model.predict(batch[0], verbose=0),
        atol=1e-6,
    )


def test_a_saved_ensemble_answers_the_same(trained, batch, tmp_path):
    ensemble = trained.ensemble_model()
    ensemble.save(tmp_path / "ensemble.keras")
    loaded = keras.saving.load_model(tmp_path / "ensemble.keras")
    np.testing.assert_allclose(
        loaded.predict(batch[0], verbose=0),
        ensemble.predict(batch[0], verbose=0),
        atol=1e-6,
    )


def assert_same_state(actual, expected):
    for a, e in zip(actual.variables, expected.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(a.value), to_numpy(e.value), a.path)
    for a, e in zip(
        actual.optimizer.variables, expected.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(to_numpy(a.value), to_numpy(e.value), a.path)


def test_fit_goes_on_after_loading(batch, tmp_path):
    trained = train("softmax")
    trained.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, ksd.SelfDistiller)
    assert (loaded.taps, loaded.recipe) == (trained.taps, trained.recipe)
    assert loaded.name == trained.name
    assert_same_state(loaded, trained)
    histories = [
        model.fit(*batch, batch_size=8, shuffle=False, verbose=0).history
        for model in (trained, loaded)
    ]
    assert histories[0] == histories[1]
    assert "exit_1_accuracy" in histories[1]
    assert_same_state(loaded, trained)


def test_weights_alone_go_into_a_fresh_wrapper(trained, batch, tmp_path):
    trained.save_weights(tmp_path / "all.weights.h5")
    activation = trained.final_model().layers[-1].activation
    fresh = ksd.SelfDistiller(small_base(activation), TAPS, "byot")
    fresh.load_weights(tmp_path / "all.weights.h5")
    expected = trained.predict(batch[0], verbose=0)
    for name, actual in fresh.predict(batch[0], verbose=0).items():
        np.testing.assert_array_equal(actual, expected[name])


@pytest.mark.once
@pytest.mark.parametrize(
    "recipe",
    [
        ksd.recipes.BYOT(alpha=0.7, temperature=1.5, hint_weight=0.01),
        ksd.recipes.DeepSupervision(exit_weight=0.2),
    ],
)
def test_options_come_back_from_a_file(recipe, batch, tmp_path):
    head = ksd.heads.Bottleneck(reduction=2)
    model = ksd.SelfDistiller(small_base(), ["out_1"], recipe, head=head, name="mine")

    @keras.saving.register_keras_serializable(package="tests")
    def absolute(y_true, y_pred):
        return keras.ops.mean(keras.ops.abs(y_true - y_pred), axis=-1)

    top = keras.metrics.TopKCategoricalAccuracy(2, name="top2")
    model.compile("adam", absolute, metrics=[top], weighted_metrics=["accuracy"])
    x, y = batch
    model.fit(x, np.eye(4, dtype="float32")[y], verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.recipe == recipe
    assert loaded.name == "mine"
    assert loaded.get_config()["head"] == model.get_config()["head"]
    assert loaded.get_compile_config()["loss"] == model.get_compile_config()["loss"]
    hot = np.eye(4, dtype="float32")[y]
    logs = [m.evaluate(x, hot, verbose=0, return_dict=True) for m in (model, loaded)]
    assert logs[0] == logs[1]
    assert {"top2", "exit_1_top2", "exit_1_accuracy", "ensemble_top2"} <= set(logs[1])


def test_the_arguments_of_compile_are_those_of_no_backend(base):
    model = ksd.SelfDistiller(base, TAPS, "byot")
    inner = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(keras.optimizers.LossScaleOptimizer(inner), LOSS)
    config = model.get_compile_config()
    assert config["jit_compile"] == "auto"
    assert "backend" not in json.dumps(config)
    model.compile_from_config(config)
    again = model.optimizer.inner_optimizer
    assert type(again) is type(inner)
    assert again.get_config() == inner.get_config()


def test_an_uncompiled_wrapper_saves_too(base, batch, tmp_path):
    model = ksd.SelfDistiller(base, TAPS, "byot")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert not loaded.compiled
    expected = model.predict(batch[0], verbose=0)["exit_2"]
    actual = loaded.predict(batch[0], verbose=0)["exit_2"]
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.once
@pytest.mark.parametrize("suffix", [".h5", ".hdf5"])
def test_a_wrapper_is_not_saved_where_nothing_could_load_it(base, tmp_path, suffix):
    model = ksd.SelfDistiller(base, ["out_1"], "byot", head="linear")
    path = tmp_path / f"model{suffix}"
    path.write_text("kept")
    with pytest.raises(ValueError, match=rf"Received: .*{suffix}.*'\.keras'"):
        model.save(path)
    assert path.read_text() == "kept"
    with pytest.raises(ValueError, match="nothing could load it"):
        keras.saving.save_model(model, tmp_path / f"other{suffix}")
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    model.load_weights(tmp_path / "model.weights.h5")


@pytest.mark.once
def test_the_base_may_be_a_loaded_model(base, batch, tmp_path):
    base.save(tmp_path / "base.keras")
    loaded = keras.saving.load_model(tmp_path / "base.keras")
    model = ksd.SelfDistiller(loaded, TAPS, "byot")
    model.compile("sgd", LOSS)
    before = base.predict(batch[0], verbose=0)
    np.testing.assert_array_equal(model.predict(batch[0], verbose=0)["final"], before)
    model.fit(*batch, verbose=0)
    after = loaded.predict(batch[0], verbose=0)
    np.testing.assert_allclose(
        model.predict(batch[0], verbose=0)["final"], after, atol=1e-6
    )
    assert np.abs(after - before).max() > 1e-4


@pytest.mark.once
def test_a_final_model_can_be_wrapped_again(trained):
    again = ksd.SelfDistiller(trained.final_model(), 1, "deep_supervision")
    assert again.exit_names == ["exit_1", "final"]


def test_a_sequential_base(batch, tmp_path):
    base = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, activation="relu", name="tap"),
            layers.Conv2D(4, 3, strides=2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.5),
            layers.Dense(4, activation="softmax"),
        ]
    )
    model = ksd.SelfDistiller(base, ["tap"], "byot")
    model.compile("sgd", LOSS)
    model.fit(*batch, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = base.predict(batch[0], verbose=0)
    np.testing.assert_allclose(
        loaded.final_model().predict(batch[0], verbose=0), expected, atol=1e-6
    )


@pytest.mark.once
def test_compiling_again_replaces_the_metrics(base, batch):
    model = ksd.SelfDistiller(base, TAPS, "byot")
    for _ in range(2):
        model.compile("sgd", LOSS, metrics=["accuracy"])
        logs = model.evaluate(*batch, verbose=0)
        assert len(logs) == 8


@pytest.mark.once
def test_profile_counts_what_each_exit_costs(trained):
    costs = ksd.profile(trained)
    assert list(costs) == ["exit_1", "exit_2", "final", "ensemble"]
    stem, conv_1, conv_2 = (
        64 * 27 * 8,
        2 * 64 * 72 * 8,
        16 * (72 * 16 + 144 * 16 + 8 * 16),
    )
    final = stem + conv_1 + conv_2 + 16 * 4
    head = 64 * 8 * 4 + 16 * 4 * 4 * 4 + 16 * 4 * 16 + 16 * 4  # Ratio 2, width 16.
    assert costs["final"].macs == final
    assert costs["exit_1"].macs == stem + head
    assert costs["exit_2"].macs == stem + conv_1 + head
    assert costs["ensemble"].macs == final + 2 * head
    assert costs["exit_2"].macs_ratio == pytest.approx((stem + conv_1 + head) / final)
    for name in trained.exit_names:
        assert costs[name].parameters == trained.exit_model(name).count_params()


@pytest.mark.once
def test_frozen_exits_stay_frozen_in_a_file(batch, tmp_path):
    model = train("softmax")
    model.get_layer("exit_1_reduce").trainable = False
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), LOSS)
    model.fit(*batch, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert not loaded.get_layer("exit_1_reduce").trainable
    assert loaded.get_layer("exit_2_reduce").trainable
    assert_same_state(loaded, model)


@pytest.mark.once
def test_the_bases_own_compilation_stays_behind(batch, tmp_path):
    def own_loss(y_true, y_pred):
        return keras.ops.mean(y_pred, axis=-1)

    base = small_base()
    base.compile("sgd", own_loss)  # Could not be loaded without its code.
    model = ksd.SelfDistiller(base, TAPS, "byot")
    model.compile("sgd", LOSS)
    model.fit(*batch, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_same_state(loaded, model)


def test_a_base_with_a_fixed_batch_size(batch):
    inputs = keras.Input(batch_shape=(16, 8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="tap")(inputs)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, strides=2)(x))
    base = keras.Model(inputs, layers.Dense(4, activation="softmax")(x))
    model = ksd.SelfDistiller(base, ["tap"], "byot")
    model.compile("sgd", LOSS)
    model.fit(*batch, batch_size=16, verbose=0)
    assert model.predict(batch[0], batch_size=16, verbose=0)["exit_1"].shape == (16, 4)


@pytest.mark.once
def test_numpy_numbers_serve_as_fields():
    recipe = ksd.recipes.BYOT(alpha=np.float32(0.5), temperature=np.int64(2))
    assert recipe == ksd.recipes.BYOT(alpha=0.5, temperature=2.0)
    model = ksd.SelfDistiller(small_base(), np.int64(1), recipe)
    assert ksd.SelfDistiller.from_config(model.get_config()).recipe == recipe
