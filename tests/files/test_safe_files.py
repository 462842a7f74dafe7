"""What a file may do when it is loaded: nothing but become a model.

Each published hole of Keras' loading is rebuilt inside of our files. A payload leaves a
mark where it runs; that it could is shown first, where there is a way.
"""

import base64
import dataclasses
import importlib
import io
import json
import marshal
import sys
import tarfile

import h5py
import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from keras_selfdistill.files.config_check import check_config
from tests.conftest import require_backend, run_python, to_numpy
from tests.fuzz import corpus, mutations
from tests.fuzz.__main__ import fuzz
from tests.fuzz.harm import HARMS
from tests.fuzz.mutations import CONFIG, MODEL, SETTINGS, WEIGHTS, function, symbol

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Bytes of a saved wrapper with all options, and of an early-exit file."""
    folder = tmp_path_factory.mktemp("good") / "corpus"
    corpus.write(folder)
    names = ("full.keras", "plain.keras", "plain.earlyexit")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture
def mark(tmp_path):
    """The file that a payload makes when it runs."""
    return tmp_path / "it_ran"


def wrapper_with(content, change):
    """Return a `.keras` file whose config a function has changed."""
    parts = dict(mutations.parts_of(content))
    config = json.loads(parts[CONFIG])
    change(config)
    return mutations.archive_of({**parts, CONFIG: json.dumps(config)}.items())


def early_exit_with(content, *, model=None, criterion=None):
    """Return an early-exit file with another model or criterion, and its digest."""
    parts = dict(mutations.parts_of(content))
    if model is not None:
        parts[MODEL] = model
    if criterion is not None:
        settings = json.loads(parts[SETTINGS])
        parts[SETTINGS] = json.dumps(settings | {"criterion": criterion})
    comment = b"0" * mutations.DIGITS
    return mutations.with_digest(mutations.archive_of(parts.items(), comment=comment))


PLACES = {
    "a layer of the base": lambda c, p: _swap_layer(c["config"]["model"], p),
    "an activation": lambda c, p: _set(_layers(c)[-1]["config"], "activation", p),
    "an argument": lambda c, p: _set(_layers(c)[1]["inbound_nodes"][0], "kwargs", p),
    "the recipe": lambda c, p: _set(c["config"], "recipe", p),
    "a field of the recipe": lambda c, p: _set(
        c["config"]["recipe"]["config"], "alpha", p
    ),
    "the head": lambda c, p: _set(c["config"], "head", p),
    "the teacher": lambda c, p: _swap_layer(c["config"]["teacher"], p),
    "distillation losses": lambda c, p: _set(c["config"], "distillation_losses", [p]),
    "the loss": lambda c, p: _set(c["compile_config"], "loss", p),
    "the whole": lambda c, p: (c.clear(), c.update(p)),
}


def _layers(config):
    return config["config"]["model"]["config"]["layers"]


def _set(config, key, value):
    config[key] = value


def _swap_layer(model, payload):
    """Put a payload where a layer was, called as the layer was."""
    layers = model["config"]["layers"]
    i = next(i for i, each in enumerate(layers) if each["name"] == "pool")
    layers[i] = {**layers[i], **payload}


def attacks(good, payload):
    """Yield a payload in every place of a wrapper's config, and how to load it."""
    for name, put in PLACES.items():
        content = wrapper_with(good["full.keras"], lambda c, put=put: put(c, payload))
        yield name, ".keras", content, ksd.load_model
        inside = early_exit_with(good["plain.earlyexit"], model=content)
        yield f"{name}, early exit", ".earlyexit", inside, ksd.EarlyExit.load
        if name != "the whole":  # Which is no file of ours.
            yield f"{name}, by Keras", ".keras", content, keras.saving.load_model
    settings = {"registered_name": "keras_selfdistill>Margin", "config": {"a": payload}}
    content = early_exit_with(good["plain.earlyexit"], criterion=settings)
    yield "the criterion", ".earlyexit", content, ksd.EarlyExit.load


def assert_refused(good, payload, mark, tmp_path):
    """Load a payload from everywhere; nothing of it may run."""
    for place, suffix, content, load in attacks(good, payload):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(content)
        own = load is not keras.saving.load_model
        errors = ksd.RefusedFileError if own else (ValueError, TypeError)
        with pytest.raises(errors) as caught:
            load(path)
        if own:
            assert "The config" in str(caught.value), place
        assert not mark.exists(), place


def lambda_layer(mark):
    """Return the config of a `Lambda` whose Python code makes a file."""
    code = compile(f"lambda x: open({str(mark)!r}, 'w').close() or x", "evil", "eval")
    bytecode = base64.encodebytes(marshal.dumps(code.co_consts[0])).decode()
    value = {"code": bytecode, "defaults": None, "closure": None}
    evil = {"class_name": "__lambda__", "config": value}
    return symbol("keras.layers", "Lambda", name="evil", function=evil)


def test_cve_2024_3660_bytecode_of_a_lambda(good, mark, tmp_path):
    live = keras.saving.deserialize_keras_object(lambda_layer(mark), safe_mode=False)
    live(np.ones((1, 2)))
    mark.unlink()  # Which shows that it runs where it is let.
    payload = lambda_layer(mark)
    assert_refused(good, payload, mark, tmp_path)
    assert_refused(good, payload["config"]["function"], mark, tmp_path)


@pytest.mark.parametrize("kind", ["class", "function", "typespec"])
def test_cve_2025_1550_any_module(good, mark, tmp_path, monkeypatch, kind):
    code = f"open({str(mark)!r}, 'w').close()\nclass Evil: pass\ndef evil(): pass\n"
    (tmp_path / "evil_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    payload = {
        "class": symbol("evil_module", "Evil"),
        "function": function("evil_module", "evil"),
        "typespec": {
            **symbol("evil_module", "__typespec__"),
            "spec_name": "Evil",
            "registered_name": None,
        },
    }[kind]
    assert_refused(good, payload, mark, tmp_path)
    assert "evil_module" not in sys.modules
    importlib.import_module("evil_module")
    del sys.modules["evil_module"]
    assert mark.exists()  # It was there to be imported.


@pytest.mark.parametrize("kind", ["class", "function"])
def test_a_registered_name_hides_no_module(good, mark, tmp_path, monkeypatch, kind):
    """Keras looks a class up by one field and a function by another."""
    (tmp_path / "keras_cv.py").write_text(f"open({str(mark)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    known = "keras_selfdistill>BYOT"
    payload = {
        "class": {**symbol("keras_cv", known), "registered_name": None},
        "function": {**function("keras_cv", "evil"), "registered_name": known},
    }[kind]
    assert_refused(good, payload, mark, tmp_path)
    with pytest.raises(ValueError, match="not a KerasSaveable"):
        keras.saving.deserialize_keras_object(payload)
    del sys.modules["keras_cv"]
    assert mark.exists()  # By Keras itself it is imported.


@pytest.mark.parametrize("name", ["get_file", "plot_model", "save_img"])
def test_cve_2025_8747_functions_of_keras_itself(good, mark, tmp_path, name):
    (tmp_path / "source").write_text("payload")
    fields = {
        "fname": mark.name,
        "origin": (tmp_path / "source").as_uri(),
        "cache_dir": str(tmp_path),
        "cache_subdir": "",
    }
    assert_refused(good, symbol("keras.utils", name, **fields), mark, tmp_path)
    assert_refused(good, function("keras.utils", name), mark, tmp_path)
    hidden = {**function("keras.src.utils.file_utils", name), "registered_name": None}
    assert_refused(good, hidden, mark, tmp_path)
    keras.utils.get_file(**fields)
    assert mark.exists()


def test_cve_2025_9905_a_legacy_file_in_place_of_ours(good, mark, tmp_path):
    legacy = io.BytesIO()
    with h5py.File(legacy, "w") as file:
        config = {"layers": [lambda_layer(mark)], "name": "evil"}
        whole = {"class_name": "Sequential", "config": config}
        file.attrs["model_config"] = json.dumps(whole)
        file.create_group("model_weights")
    content = early_exit_with(good["plain.earlyexit"], model=legacy.getvalue())
    for name, data in (("a.earlyexit", content), ("a.h5", legacy.getvalue())):
        (tmp_path / name).write_bytes(data)
    for load, name in (
        (ksd.EarlyExit.load, "a.earlyexit"),
        (ksd.EarlyExit.load, "a.h5"),
        (ksd.load_model, "a.h5"),
    ):
        with pytest.raises(ksd.RefusedFileError):
            load(tmp_path / name)
    assert not mark.exists()


def test_a_legacy_file_with_one_of_ours_at_its_end_is_not_read(good, tmp_path):
    """Zip looks at the end of a file and HDF5 at its beginning."""
    base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    legacy = tmp_path / "a.h5"
    base.save(legacy)
    legacy.write_bytes(legacy.read_bytes() + good["plain.keras"])
    assert len(keras.saving.load_model(legacy).layers) == 1  # The legacy one.
    with pytest.raises(ksd.RefusedFileError, match=r"'\.h5'"):
        ksd.load_model(legacy)


def test_cve_2025_9906_a_config_that_turns_safe_mode_off(good, mark, tmp_path):
    for payload in (
        function("keras.config", "enable_unsafe_deserialization"),
        symbol("keras.config", "enable_unsafe_deserialization"),
    ):
        assert_refused(good, payload, mark, tmp_path)
    with pytest.raises(ValueError, match="lambda"):
        keras.saving.deserialize_keras_object(lambda_layer(mark))


def test_a_process_that_turned_safe_mode_off_is_safe_with_our_loaders(
    good, mark, tmp_path, monkeypatch
):
    from keras.src.saving import serialization_lib

    monkeypatch.setattr(serialization_lib, "in_safe_mode", lambda: False)
    content = wrapper_with(
        good["full.keras"],
        lambda config: PLACES["an activation"](config, lambda_layer(mark)),
    )
    (tmp_path / "a.keras").write_bytes(content)
    with pytest.raises(ksd.RefusedFileError, match="contains code"):
        ksd.load_model(tmp_path / "a.keras")


@pytest.mark.parametrize("name", ["StringLookup", "IntegerLookup", "TextVectorization"])
def test_cve_2025_12058_vocabularies_from_files(good, mark, tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    for place in (str(secret), "http://127.0.0.1:9/secret", secret.as_uri()):
        payload = symbol("keras.layers", name, vocabulary=place, name="words")
        assert_refused(good, payload, mark, tmp_path)
    check_config(symbol("keras.layers", name, vocabulary=["a", "b"]))


def test_cve_2025_12060_archives_that_leave_their_folder(good, mark, tmp_path):
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo(f"../{mark.name}"), io.BytesIO())
    origin = (tmp_path / "evil.tar").as_uri()
    fields = {"origin": origin, "extract": True, "cache_dir": str(tmp_path / "cache")}
    assert_refused(good, symbol("keras.utils", "get_file", **fields), mark, tmp_path)
    parts = mutations.parts_of(good["plain.keras"])
    for name in (f"../{mark.name}", str(mark), f"assets/../../{mark.name}", "assets/a"):
        links = {"links": (name,)} if name == "assets/a" else {}
        content = mutations.archive_of([*parts, (name, b"evil")], **links)
        inside = early_exit_with(good["plain.earlyexit"], model=content)
        outer = mutations.parts_of(good["plain.earlyexit"])
        around = mutations.archive_of([*outer, (name, b"")], comment=b"0" * 64)
        for data, load in (
            (content, ksd.load_model),
            (inside, ksd.EarlyExit.load),
            (mutations.with_digest(around), ksd.EarlyExit.load),
        ):
            (tmp_path / "a.keras").write_bytes(data)
            with pytest.raises(ksd.RefusedFileError, match=r"members are|is a link"):
                load(tmp_path / "a.keras")
    assert not mark.exists()


def wrapper_with_weights(content, change):
    """Return a `.keras` file one of whose arrays a function has replaced."""
    parts = dict(mutations.parts_of(content))
    store = io.BytesIO(parts[WEIGHTS])
    with h5py.File(store, "a") as file:
        names = []
        file.visititems(
            lambda name, item: names.append(name) if hasattr(item, "shape") else None
        )
        shape = file[names[0]].shape
        del file[names[0]]
        change(file, names[0], shape)
    return mutations.archive_of({**parts, WEIGHTS: store.getvalue()}.items())


@pytest.mark.parametrize("gibibytes", [3, 4000])  # Keras looks at those above 4.
def test_cve_2026_0897_arrays_larger_than_their_file(good, tmp_path, gibibytes):
    def bomb(file, name, shape):
        size = gibibytes << 28
        file.create_dataset(name, (size,), "f4", chunks=(1 << 20,), compression="gzip")

    refused_for_weights(good, bomb, tmp_path)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TFSMLayer is TensorFlow's alone"
)
def test_cve_2026_1462_a_graph_from_a_path(good, mark, tmp_path):
    import tensorflow as tf

    def run(x):
        with tf.control_dependencies([tf.io.write_file(str(mark), "ran")]):
            return tf.identity(x)

    module = tf.Module()
    module.run = tf.function(run, [tf.TensorSpec((None, 2))])
    graph = str(tmp_path / "graph")
    tf.saved_model.save(module, graph, {"run": module.run})
    fields = {"filepath": graph, "call_endpoint": "run", "name": "evil"}
    keras.layers.TFSMLayer(**fields)(np.ones((1, 2), "float32"))
    mark.unlink()  # Which shows that it runs where it is let.
    assert_refused(good, symbol("keras.layers", "TFSMLayer", **fields), mark, tmp_path)


@pytest.mark.parametrize("kind", ["dataset", "link", "soft link", "virtual", "loop"])
def test_cve_2026_1669_arrays_from_other_files(good, tmp_path, kind):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["secret"] = np.ones(100, "f4")

    def put(file, name, shape):
        if kind == "dataset":
            size = int(np.prod(shape)) * 4
            file.create_dataset(name, shape, "f4", external=[(str(secret), 0, size)])
        elif kind == "link":
            file[name] = h5py.ExternalLink(str(secret), "secret")
        elif kind == "soft link":
            file[name] = h5py.SoftLink("/elsewhere")
        elif kind == "loop":
            file[name] = file["/"]
        else:
            layout = h5py.VirtualLayout(shape, "f4")
            layout[...] = h5py.VirtualSource(str(secret), "secret", shape)
            file.create_virtual_dataset(name, layout)

    refused_for_weights(good, put, tmp_path)


def refused_for_weights(good, change, tmp_path):
    content = wrapper_with_weights(good["plain.keras"], change)
    inside = early_exit_with(good["plain.earlyexit"], model=content)
    for data, load in ((content, ksd.load_model), (inside, ksd.EarlyExit.load)):
        (tmp_path / "a.keras").write_bytes(data)
        expected = r"in model.weights.h5 (is a link|is not an array|occurs twice)"
        with pytest.raises(ksd.RefusedFileError, match=expected):
            load(tmp_path / "a.keras")


def refused(content, tmp_path, match):
    (tmp_path / "a.keras").write_bytes(content)
    with pytest.raises(ksd.RefusedFileError, match=match):
        ksd.load_model(tmp_path / "a.keras")


@pytest.mark.long
def test_a_config_cannot_ask_for_more_weights_than_there_are(good, tmp_path):
    def widen(config):
        layers = config["config"]["model"]["config"]["layers"]
        layers[-1]["config"]["units"] = 10**8

    refused(wrapper_with(good["plain.keras"], widen), tmp_path, "needs|requests")

    def add_what_no_output_reads(config):
        layers = _layers(config)
        lost = {
            **symbol("keras.layers", "Dense", units=10**8, name="lost"),
            "name": "lost",
            "build_config": {"input_shape": [None, 8]},
            "inbound_nodes": [],
        }
        layers.append(lost)

    content = wrapper_with(good["full.keras"], add_what_no_output_reads)
    refused(content, tmp_path, "needs|requests")

    def count_much(config):
        metric = symbol("keras.metrics", "MeanIoU", num_classes=10**5)
        config["compile_config"]["metrics"] = [metric]

    refused(wrapper_with(good["full.keras"], count_much), tmp_path, "needs|requests")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (2**31, "too large for a size"),
        (json.loads("[" * 300 + "]" * 300), "nested too deeply"),
    ],
)
def test_numbers_and_nesting_have_limits(good, tmp_path, value, message):
    def change(config):
        config["config"]["model"]["config"]["layers"][1]["config"]["units"] = value

    refused(wrapper_with(good["plain.keras"], change), tmp_path, message)


def test_layers_are_called_on_outputs_alone(good, tmp_path):
    """A layer called on a value would compute it at once, in any size."""

    def change(config):
        ones = {"class_name": "__numpy__", "config": {"value": [[1]], "dtype": "int8"}}
        _layers(config)[1]["inbound_nodes"] = [{"args": [ones], "kwargs": {}}]

    refused(wrapper_with(good["full.keras"], change), tmp_path, "inbound_nodes")


def test_fields_of_a_wrappers_config_are_checked():
    model = corpus.wrappers()["plain"]
    config = model.get_config()
    with pytest.raises(ValueError, match=r"other fields.*\n*.*'extra'"):
        ksd.SelfDistiller.from_config({**config, "extra": 1})
    with pytest.raises(ValueError, match="other fields"):
        ksd.SelfDistiller.from_config({k: v for k, v in config.items() if k != "taps"})


@keras.saving.register_keras_serializable(package="tests")
class Scaled(keras.layers.Layer):
    """A user's own layer."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.scale


def test_honest_files_load(tmp_path):
    """Own layers, a teacher with an optimizer, words in assets; the outputs agree."""
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4, activation="relu", name="tap")(Scaled()(inputs))
    x = keras.layers.Dense(4, activation="relu")(x)
    base = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
    teacher.compile("adam", "mse", metrics=["mae"])
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear", teacher=teacher)
    model.compile("adam", "crossentropy", metrics=["accuracy"])
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    model.fit(x, np.arange(8) % 3, verbose=0)
    model.save(tmp_path / "a.keras")
    loaded = ksd.load_model(tmp_path / "a.keras")
    for name, found in loaded(x).items():
        np.testing.assert_array_equal(to_numpy(found), to_numpy(model(x)[name]))
    assert int(loaded.optimizer.iterations) == 1
    loaded.fit(x, np.arange(8) % 3, verbose=0)
    ksd.EarlyExit(model, thresholds=0.5).save(tmp_path / "a")
    assert ksd.EarlyExit.load(tmp_path / "a").thresholds == {"exit_1": 0.5}


def test_code_of_the_users_own_needs_keras_and_his_word(tmp_path):
    base = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(4, name="tap"),
            keras.layers.Lambda(lambda x: x),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
    model.save(tmp_path / "a.keras")
    with pytest.raises(ksd.RefusedFileError, match="contains code"):
        ksd.load_model(tmp_path / "a.keras")
    with pytest.raises(ValueError, match="lambda"):
        keras.saving.load_model(tmp_path / "a.keras")
    keras.saving.load_model(tmp_path / "a.keras", safe_mode=False)


def test_custom_objects_need_no_registration(tmp_path):
    """As for any Keras model, by the argument or by a scope."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine(ksd.recipes.BYOT):
        alpha: float = 0.7

    class Doubled(keras.layers.Layer):
        def call(self, inputs):
            return 2.0 * inputs

    base = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(8, name="hidden"),
            Doubled(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model = ksd.SelfDistiller(base, ["hidden"], Mine())
    model.save(tmp_path / "m.keras")
    known = {"Mine": Mine, "Doubled": Doubled}
    loaded = [keras.saving.load_model(tmp_path / "m.keras", custom_objects=known)]
    with keras.saving.custom_object_scope(known):
        loaded.append(keras.saving.load_model(tmp_path / "m.keras"))
    x = np.ones((2, 8), "float32")
    for each in loaded:
        assert each.recipe == Mine()
        for name, expected in model.predict(x, verbose=0).items():
            np.testing.assert_allclose(each.predict(x, verbose=0)[name], expected)
    with pytest.raises(ValueError, match="names no component of a model"):
        keras.saving.load_model(tmp_path / "m.keras")


def test_missing_files_are_no_refusals(tmp_path):
    for load in (ksd.load_model, ksd.EarlyExit.load):
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "missing.keras")


@pytest.mark.long
@pytest.mark.process
def test_thousands_of_mutated_files(capsys):
    """`python -m tests.fuzz` says what is watched; it takes any number and seed."""
    outcomes = fuzz(2000, seed="ci")
    assert outcomes["finding"] == 0, capsys.readouterr().out
    assert outcomes["loaded"] > 50
    assert outcomes["refused"] > 1000


@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_mutated_files_on_other_backends(backend):
    """The good files are read first, by another process than wrote them."""
    require_backend(backend)
    run_python("-m", "tests.fuzz", "--mutations=200", backend=backend)


@pytest.mark.process
def test_the_fuzz_test_sees_what_it_looks_for():
    """Each kind of harm, done on purpose in a process of its own, is found."""
    found = run_python("-m", "tests.fuzz.harm").stdout.splitlines()
    harms = [f"{name}: found" for name in HARMS]
    assert found == [*harms, "nothing: nothing", "256 MiB: found"]
