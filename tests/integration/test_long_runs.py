"""Long runs keep their memory and compile nothing again; threads may predict."""

import concurrent.futures
import gc

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from tests.conftest import require_backend, run_python, small_base, to_numpy

BACKENDS = ("tensorflow", "jax", "torch")


def nested_base():
    inner = small_base(activation="relu", name="inner")
    inputs = keras.Input((8, 8, 3))
    x = layers.Dense(4)(inner(inputs))
    # A reshape behind softmax, which logits have to pass, too.
    return keras.Model(inputs, layers.Reshape((4,))(layers.Softmax()(x)))


@pytest.mark.once
@pytest.mark.parametrize("kind", ["flat", "nested", "headless", "taught"])
def test_a_base_keeps_nothing_of_a_wrapper_that_is_gone(kind):
    base = nested_base() if kind == "nested" else small_base()
    taps, options = ["out_1"], {}
    if kind == "nested":
        taps = ["inner/out_1"]
    elif kind == "headless":
        base = keras.Model(base.input, base.get_layer("out_2").output)
        options["classes"] = 4
    elif kind == "taught":
        options["teacher"] = small_base(name="teacher")
    counts = []
    for _ in range(4):
        model = ksd.SelfDistiller(base, taps, "byot", **options)
        assert model.ensemble_model().count_params() > 0
        del model
        gc.collect()
        counts.append(len(gc.get_objects()))
    # The first one leaves caches behind; a wrapper has thousands of objects.
    assert counts[-1] - counts[1] < 50


def test_threads_may_predict_at_the_same_time(base):
    model = ksd.SelfDistiller(base, ["out_1"], "byot")
    random = np.random.default_rng(0)
    given = [random.normal(size=(12, 8, 8, 3)).astype("float32") for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda x: model.predict(x, batch_size=4, verbose=0), given)
        )
    for x, answers in zip(given, found, strict=True):
        expected = model(x, training=False)
        for name, answer in answers.items():
            np.testing.assert_allclose(
                answer, to_numpy(expected[name]), rtol=1e-4, atol=1e-5
            )


@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize("backend", BACKENDS)
def test_many_steps_take_no_more_memory_and_compile_once(backend):
    require_backend(backend)
    steps = 2500 if backend == "torch" else 5000  # PyTorch takes the longest.
    resident, in_use, objects, runs = slopes("steps", steps, backend)
    assert resident < 0.1  # MB for 100 steps.
    assert in_use < 0.1
    assert objects < 10
    assert runs == pytest.approx(100 if backend == "torch" else 0)


@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize("backend", BACKENDS)
def test_many_wrappers_of_one_base_take_no_more_memory(backend):
    require_backend(backend)
    # TensorFlow's allocator takes more of them until it has what it needs.
    rounds = 200 if backend == "tensorflow" else 120
    resident, in_use, objects, _ = slopes("cycles", rounds, backend)
    assert in_use < 1  # MB for 100 wrappers.
    # XLA's compiler moves it up and down by 10 MB each time.
    assert resident < (30 if backend == "jax" else 1)
    assert objects < 100


@pytest.mark.long
@pytest.mark.process
@pytest.mark.once
def test_many_requests_take_no_more_memory_and_compile_once():
    resident, in_use, objects, runs = slopes("requests", 10000, "tensorflow")
    assert resident < 0.1  # MB for 100 requests.
    assert in_use < 0.1
    assert objects < 10
    assert runs == pytest.approx(0)


def slopes(kind, rounds, backend):
    """Return what the probe printed."""
    result = run_python(
        "-m", "tests.integration.long_run_probe", kind, rounds, backend=backend
    )
    return map(float, result.stdout.split()[-4:])
