"""The three backends compute the same, each in a process of its own."""

import importlib.util
import itertools

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from tests.conftest import make_batch, require_backend, run_python, small_base

pytestmark = pytest.mark.process
BACKENDS = ("tensorflow", "jax", "torch")
RECIPES = {
    "byot": ksd.recipes.BYOT(alpha=0.3, hint_weight=0.01),
    "deep_supervision": ksd.recipes.DeepSupervision(),
    "separable_byot": ksd.recipes.SeparableBYOT(hint_weight=0.01),
    "attention_byot": ksd.recipes.AttentionBYOT(),
    "teskd": ksd.recipes.TESKD(hint_weight=0.01),
    "taught": ksd.recipes.BYOT(
        teacher="dense",
        alpha=keras.optimizers.schedules.PolynomialDecay(0.2, 10, 0.9),
        external_weight=0.5,
    ),
}
QUICK = ("taught",)  # Recipes of the ordinary suite: all kinds of terms.


def wrapper(name):
    """Return a compiled wrapper; the one named `taught` has every kind of teacher."""
    keras.utils.set_random_seed(6)
    base = small_base(regularizer=keras.regularizers.L2(1e-3))
    options = {}
    if name == "taught":
        loss = keras.distillation.FeatureDistillation("mse")
        options = {"teacher": small_base(name="t"), "distillation_losses": [loss]}
    model = ksd.SelfDistiller(base, ["stem_relu", "out_1"], RECIPES[name], **options)
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.fixture(scope="module")
def one_step(tmp_path_factory, request):
    """What each installed backend makes of the same models, weights and batch."""
    own = [each for each in request.session.items if "one_step" in each.fixturenames]
    names = {each.callspec.params["recipe"] for each in own}
    folder = tmp_path_factory.mktemp("backends")
    x, y = make_batch()
    np.savez(
        folder / "batch.npz", x=x, y=y, sample_weight=np.linspace(0.5, 1.5, len(y))
    )
    for name in names:
        wrapper(name).save(folder / f"{name}.keras")
    installed = [name for name in BACKENDS if importlib.util.find_spec(name)]
    for backend in installed:
        run_python("-m", "tests.integration.backend_probe", folder, backend=backend)
    return {
        (name, backend): dict(np.load(folder / f"{name}_{backend}.npz"))
        for name in names
        for backend in installed
    }


@pytest.mark.parametrize(
    "recipe",
    [
        *QUICK,
        *(pytest.param(e, marks=pytest.mark.long) for e in RECIPES if e not in QUICK),
    ],
)
@pytest.mark.parametrize(
    "pair", list(itertools.combinations(BACKENDS, 2)), ids="-".join
)
def test_losses_and_one_step_agree(one_step, recipe, pair):
    for backend in pair:
        require_backend(backend)
    first, second = (one_step[recipe, backend] for backend in pair)
    assert set(first) == set(second)
    assert any("exit_1" in key for key in first if key.startswith("weight/"))
    for key, value in first.items():
        np.testing.assert_allclose(
            second[key], value, rtol=1e-4, atol=1e-4, err_msg=f"{pair} {key}"
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "length", ["not long", pytest.param("long", marks=pytest.mark.long)]
)
def test_the_suite_passes_on(backend, length):
    """All tests that do not choose a backend themselves, on the other backends."""
    require_backend(backend)
    if backend == keras.backend.backend():
        return  # This very run.
    result = run_python(
        "-m",
        "pytest",
        "-q",
        "-m",
        f"not process and not real_data and not once and {length}",
        "-p",
        "no:cacheprovider",
        "-n",
        "0",
        backend=backend,
        # A fifth of the time on PyTorch, whose threads wait for each other over tensors
        # of a few numbers.
        OMP_NUM_THREADS="1",
    )
    assert " passed" in result.stdout
