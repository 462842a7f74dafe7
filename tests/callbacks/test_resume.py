"""`Resume`: exact after a kill, with any data; damaged files; full disks; Ctrl-C."""

import contextlib
import hashlib
import io
import json
import os
import resource
import signal
import zipfile

import keras
import numpy as np
import pytest
from absl import logging

import keras_selfdistill as ksd
from keras_selfdistill.backend.random_state import is_random_state, random_state
from keras_selfdistill.callbacks.checkpoints import Checkpoint, Checkpoints, read
from shared import cifar100
from tests.conftest import require_backend, run_python, to_numpy

BACKENDS = ("tensorflow", "jax", "torch")
X = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
Y = np.tanh(X[:, :2])
EPOCHS, BATCHES = 3, 5  # of four samples each.


def build(units=2):
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dropout(0.3), keras.layers.Dense(units)]
    )
    model.compile("adam", loss="mse", metrics=["mae"])
    return model


def state(model):
    return [to_numpy(v) for v in [*model.variables, *model.optimizer.variables]]


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


class StoppedError(Exception):
    pass


class Stop(keras.callbacks.Callback):
    """Ends a training in the middle, after a step."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.at, self.epoch = (epoch, batch), None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise StoppedError


class Rows(keras.utils.PyDataset):
    """Batches that follow from epoch and index."""

    num_batches = BATCHES
    epoch = 0

    def __getitem__(self, index):
        order = np.random.default_rng(self.epoch).permutation(len(X))
        rows = order[4 * index : 4 * index + 4]
        return X[rows], Y[rows]


def data_arguments(kind, first_epoch):
    """Return the arguments of `fit` for one kind of data, new in every process."""
    if kind == "arrays":
        return {"x": X, "y": Y, "batch_size": 4}
    rows = Rows()
    if kind == "PyDataset":
        tell = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: setattr(rows, "epoch", epoch)
        )
        return {"x": rows, "shuffle": False, "callbacks": [tell]}

    def batches():
        for rows.epoch in range(first_epoch, EPOCHS):
            yield from map(rows.__getitem__, range(BATCHES))

    options = {"shuffle": False, "steps_per_epoch": BATCHES}
    if kind == "generator":
        return {"x": batches(), **options}
    require_backend("tensorflow")
    import tensorflow as tf

    signature = (tf.TensorSpec((4, 3), "float32"), tf.TensorSpec((4, 2), "float32"))
    data = tf.data.Dataset.from_generator(batches, output_signature=signature)
    return {"x": data.prefetch(3), **options}


def fit(model, kind, resume, *others, epochs=EPOCHS):
    arguments = data_arguments(kind, resume.initial_epoch if resume else 0)
    callbacks = [
        *arguments.pop("callbacks", []),
        *others,
        *([resume] if resume else []),
    ]
    return model.fit(**arguments, epochs=epochs, verbose=0, callbacks=callbacks)


@pytest.fixture(scope="module")
def fresh():
    """A compiled model, and a function that makes it what a new process would."""
    keras.utils.set_random_seed(1)
    model = build()
    # In a process' first fit, Keras builds the metrics with a batch that it draws.
    model.fit(X, Y, verbose=0)
    initial = state(model)

    def begin_again(seed):
        keras.utils.set_random_seed(1)  # TensorFlow's own states follow from it alone.
        np.random.seed(seed)  # noqa: NPY002
        variables = [*model.variables, *model.optimizer.variables]
        for variable, value in zip(variables, initial, strict=True):
            variable.assign(value)
        return model

    return begin_again


@pytest.mark.parametrize("kind", ["arrays", "generator", "PyDataset", "tf.data"])
def test_stopped_twice_it_ends_as_if_never_stopped(fresh, tmp_path, kind):
    model = fresh(5)
    whole = fit(model, kind, None)
    expected = state(model)
    options = {"directory": tmp_path, "save_freq": 3}
    fresh(5)
    for stop in (Stop(1, 3), Stop(2, 3)):
        with pytest.raises(StoppedError):
            fit(model, kind, ksd.callbacks.Resume(**options), stop)
        fresh(99)  # The seed of arrays' order comes from the checkpoint.
    second = fit(model, kind, ksd.callbacks.Resume(**options))
    assert_equal(state(model), expected)
    assert second.epoch == [2]
    for name, values in second.history.items():
        assert values == whole.history[name][2:], name
    assert model._initial_epoch is None


def test_an_error_while_batches_go_by_leaves_a_model_that_trains(fresh, tmp_path):
    model = fresh(5)
    begun = int(model.optimizer.iterations)
    with pytest.raises(StoppedError):
        fit(model, "arrays", ksd.callbacks.Resume(tmp_path, save_freq=3), Stop(0, 3))
    with pytest.raises(StoppedError):
        fit(model, "arrays", ksd.callbacks.Resume(tmp_path), Stop(0, 1))
    assert int(model.optimizer.iterations) == begun + 3
    fit(model, "arrays", None, epochs=1)
    assert int(model.optimizer.iterations) == begun + 3 + BATCHES


def test_a_finished_training_is_restored_and_trains_on_with_more_epochs(
    fresh, tmp_path
):
    model = fresh(5)
    fit(model, "PyDataset", None, epochs=4)
    expected = state(model)
    fresh(5)
    fit(model, "PyDataset", ksd.callbacks.Resume(tmp_path))
    finished = state(model)
    fresh(99)
    again = fit(model, "PyDataset", ksd.callbacks.Resume(tmp_path))
    assert again.epoch == []
    assert_equal(state(model), finished)
    assert fit(model, "PyDataset", ksd.callbacks.Resume(tmp_path), epochs=4).epoch == [
        3
    ]
    assert_equal(state(model), expected)


def test_one_that_does_not_write_restores_what_another_wrote(fresh, tmp_path):
    model = fresh(5)
    fit(model, "PyDataset", ksd.callbacks.Resume(tmp_path), epochs=2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.checkpoint")}
    fresh(99)
    reads = ksd.callbacks.Resume(tmp_path, write=False)
    assert fit(model, "PyDataset", reads).epoch == [2]
    found = state(model)
    assert before
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*")}
    fresh(99)
    fit(model, "PyDataset", ksd.callbacks.Resume(tmp_path))
    assert_equal(found, state(model))


@pytest.fixture
def interrupts():
    """Python's handler of Ctrl-C, which a process in the background is without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("function", ["train_function", "test_function"])
def test_ctrl_c_leaves_a_usable_model_and_the_last_checkpoint(
    fresh, interrupts, tmp_path, function
):
    model = fresh(5)
    arguments = {"validation_data": (X, Y), "batch_size": 4, "verbose": 0}
    model.fit(X, Y, **arguments)  # compiled: an interrupt comes while a step runs
    inner, calls = getattr(model, function), []

    def interrupted(*step):
        result = inner(*step)
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return result

    setattr(model, function, interrupted)
    resume = ksd.callbacks.Resume(tmp_path, save_freq=2)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, epochs=EPOCHS, callbacks=[resume], **arguments)
    setattr(model, function, inner)
    assert signal.getsignal(signal.SIGINT) is interrupts
    assert len(calls) == 3
    assert np.isfinite(model.predict(X, verbose=0)).all()
    for value in state(model):
        assert np.isfinite(value).all()
    last = sorted(os.listdir(tmp_path))[-1]
    batch = {"train_function": 2, "test_function": 4}[function]
    assert last == f"epoch_000000_batch_0000000{batch}.checkpoint"
    history = model.fit(
        X, Y, epochs=EPOCHS, callbacks=[ksd.callbacks.Resume(tmp_path)], **arguments
    )
    assert history.epoch == [0, 1, 2]


def test_a_training_that_failed_keeps_no_later_interrupt(fresh, interrupts, tmp_path):
    model = fresh(5)
    arguments = {"batch_size": 4, "verbose": 0}
    model.fit(X, Y, **arguments)
    inner, stops = model.train_function, []

    def interrupted(*step):
        if stops:
            stops.clear()  # A second one would not wait.
            signal.raise_signal(signal.SIGINT)
        return inner(*step)

    model.train_function = interrupted
    callbacks = [ksd.callbacks.Resume(tmp_path), Stop(0, 1)]
    with pytest.raises(StoppedError):
        model.fit(X, Y, callbacks=callbacks, **arguments)
    stops.append(1)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, **arguments)
    model.train_function = inner


def test_a_checkpoint_inside_of_an_epoch_is_of_the_same_metrics(tmp_path):
    model = build()
    callbacks = [ksd.callbacks.Resume(tmp_path, save_freq=2), Stop(0, 3)]
    with pytest.raises(StoppedError):
        model.fit(X, Y, batch_size=4, verbose=0, callbacks=callbacks)
    model = build()
    model.compile("adam", loss="mse", metrics=["mae", "mse"])
    with pytest.raises(ValueError, match=r"with other metrics.*Compile as before"):
        model.fit(
            X, Y, batch_size=4, verbose=0, callbacks=[ksd.callbacks.Resume(tmp_path)]
        )


@pytest.fixture
def checkpoints(tmp_path):
    """Three checkpoints of which two are kept, of every kind of numbers."""
    folder = Checkpoints(tmp_path / "run", keep=2)
    for epoch in range(3):
        arrays = [
            np.array(epoch, "int64"),
            np.full((2, 3), 0.1, "bfloat16"),
            np.array([np.nan, -0.0], "float16"),
            np.array([True]),
        ]
        folder.write(Checkpoint(epoch, 7, arrays, {"backend": "none"}))
    return folder


def accept(checkpoint):
    pass


@pytest.fixture
def messages(monkeypatch):
    """What is logged."""
    found = []
    for level in ("error", "warning"):
        monkeypatch.setattr(logging, level, lambda text, *a: found.append(text % a))
    return found


@pytest.mark.once
def test_the_last_are_kept_bit_for_bit(checkpoints):
    names = sorted(os.listdir(checkpoints.directory))
    assert names == [f"epoch_00000{i}_batch_00000007.checkpoint" for i in (1, 2)]
    found = checkpoints.newest(accept)
    assert (found.epoch, found.batch, found.about) == (2, 7, {"backend": "none"})
    assert [a.dtype.name for a in found.arrays] == [
        "int64",
        "bfloat16",
        "float16",
        "bool",
    ]
    number, brain, half, boolean = found.arrays
    assert (number, boolean.tolist()) == (2, [True])
    assert brain.tobytes() == np.full((2, 3), 0.1, "bfloat16").tobytes()
    assert half.tobytes() == np.array([np.nan, -0.0], "float16").tobytes()


def damage(content, how):
    middle = len(content) // 2
    flipped = bytes([content[middle] ^ 1])
    return {
        "empty": b"",
        "torn": content[:middle],
        "one byte short": content[:-1],
        "one byte more": content + b"0",
        "flipped": content[:middle] + flipped + content[middle + 1 :],
        "flipped digest": content[:50] + b"x" + content[51:],
        "foreign": b"PK\x03\x04" + content,
        "zeros": bytes(len(content)),
    }[how]


@pytest.mark.once
@pytest.mark.parametrize(
    "how",
    [
        "empty",
        "torn",
        "one byte short",
        "one byte more",
        "flipped",
        "flipped digest",
        "foreign",
        "zeros",
    ],
)
def test_a_damaged_one_is_refused_by_name_and_the_one_before_used(
    checkpoints, messages, how
):
    before, newest = sorted(checkpoints.directory.iterdir())
    newest.write_bytes(damage(newest.read_bytes(), how))
    assert checkpoints.newest(accept).epoch == 1
    assert messages[0].startswith(f"Checkpoint refused: {newest}: it")
    assert messages[1] == f"An earlier checkpoint is used: {before}"
    # It is not counted among those that are kept, nor lost.
    checkpoints.write(read(before)._replace(epoch=3))
    checkpoints.write(read(before)._replace(epoch=4))
    kept = [path.name[:12] for path in sorted(checkpoints.directory.iterdir())]
    assert kept == ["epoch_000002", "epoch_000003", "epoch_000004"]


@pytest.mark.once
def test_every_flipped_bit_is_found(checkpoints):
    path = sorted(checkpoints.directory.iterdir())[-1]
    content = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, 8 * len(content), 200):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="it"):
            read(path)


def rewritten(path, change, save=np.savez):
    """Change what a checkpoint holds, under a digest that is right again."""
    content = path.read_bytes()
    head = content.index(b"\n") + 1
    with np.load(io.BytesIO(content[head:])) as stored:
        parts = {name: stored[name] for name in stored}
    about = json.loads(parts["about"].tobytes())
    change(about, parts)
    parts["about"] = np.frombuffer(json.dumps(about).encode(), "uint8")
    store = io.BytesIO(content[:head])
    store.seek(head)
    save(store, **parts)
    body = store.getvalue()[head:]
    digest = hashlib.sha256(body).hexdigest().encode()
    path.write_bytes(content[: head - 65] + digest + b"\n" + body)


FORGERIES = {
    "a batch that is a text": lambda about, parts: about.update(batch="7"),
    "an epoch before the first": lambda about, parts: about.update(epoch=-1),
    "an epoch past counting": lambda about, parts: about.update(epoch=10**30),
    "a batch past counting": lambda about, parts: about.update(batch=2**31),
    "another epoch than its name's": lambda about, parts: about.update(epoch=7),
    "another field": lambda about, parts: about.update(extra=1),
    "a missing field": lambda about, parts: about.pop("about"),
    "a missing array": lambda about, parts: parts.pop("0"),
    "an array too many": lambda about, parts: parts.update(more=np.zeros(1)),
    "objects": lambda about, parts: about["arrays"].__setitem__(0, "object"),
    "no type": lambda about, parts: about["arrays"].__setitem__(0, "evil"),
    "a pickle": lambda about, parts: parts.update({"0": np.array([{}], object)}),
    "compressed": lambda about, parts: parts.update({"0": np.zeros(10**6)}),
}


@pytest.mark.once
@pytest.mark.parametrize("how", FORGERIES)
def test_a_forged_one_with_a_digest_of_its_own_is_refused(checkpoints, messages, how):
    newest = sorted(checkpoints.directory.iterdir())[-1]
    rewritten(newest, lambda about, parts: None)
    assert read(newest).epoch == 2
    save = np.savez_compressed if how == "compressed" else np.savez
    rewritten(newest, FORGERIES[how], save)
    assert checkpoints.newest(accept).epoch == 1
    assert messages[0].startswith(f"Checkpoint refused: {newest}: it")


@pytest.mark.once
@pytest.mark.parametrize("shape", [(2**62,), (10**10,), (3,), (), (-1,)])
def test_no_more_is_allocated_than_a_part_holds(checkpoints, messages, shape):
    """NumPy allocates what an array's header announces before it reads."""

    def announcing(store, **parts):
        with zipfile.ZipFile(store, "w") as archive:
            for name, array in parts.items():
                member = io.BytesIO()
                np.save(member, array)
                if name == "0":
                    member = io.BytesIO()
                    form = {"descr": "<f4", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(member, form)
                    member.seek(0, io.SEEK_END)
                    member.write(bytes(8))
                archive.writestr(f"{name}.npy", member.getvalue())

    newest = sorted(checkpoints.directory.iterdir())[-1]
    rewritten(newest, lambda about, parts: None, announcing)
    with pytest.raises(ValueError, match="npy has 8 bytes, its header says"):
        read(newest)
    assert checkpoints.newest(accept).epoch == 1


FOREIGN = {
    "the fields are not": lambda about, parts: about["about"].pop("backend"),
    "'random_at_epoch_begin' is {": lambda about, parts: about["about"][
        "random_at_epoch_begin"
    ].update(python=[3, [0], None]),
    "'random_now' is {": lambda about, parts: about["about"].update(
        random_now={"numpy": ["MT19937", [], 0, 0, 0.0]}
    ),
    "'random_at_epoch_begin' is {'keras": lambda about, parts: about["about"][
        "random_at_epoch_begin"
    ].update(keras=[2**63, 0]),
    "its arrays do not match": lambda about, parts: parts.update(
        {"0": np.zeros((9, 2))}
    ),
}


@pytest.mark.once
@pytest.mark.parametrize("message", FOREIGN)
def test_what_a_checkpoint_holds_is_checked_before_it_is_used(tmp_path, message):
    build().fit(X, Y, verbose=0, callbacks=[ksd.callbacks.Resume(tmp_path)])
    (path,) = tmp_path.iterdir()
    rewritten(path, FOREIGN[message])
    model = build()
    before = [to_numpy(each) for each in model.variables]
    with pytest.raises(ValueError, match=message):
        model.fit(X, Y, verbose=0, callbacks=[ksd.callbacks.Resume(tmp_path)])
    assert_equal(before, [to_numpy(each) for each in model.variables])


@pytest.mark.once
def test_states_that_pytorch_refuses_are_refused_before():
    require_backend("torch")
    import torch

    state = {**random_state(), "torch": torch.get_rng_state().tolist()}
    assert is_random_state(state)
    for bad in ([], [0] * 16, [0] * 5056, [255] * 5056):
        with pytest.raises(RuntimeError):
            torch.Generator().set_state(torch.tensor(bad, dtype=torch.uint8))
        assert not is_random_state({**state, "torch": bad})


def test_a_training_longer_than_fit_is_said_to_be_finished(tmp_path, messages):
    arguments = {"x": X, "y": Y, "verbose": 0}
    build().fit(**arguments, epochs=2, callbacks=[ksd.callbacks.Resume(tmp_path)])
    assert not messages
    model = build()
    history = model.fit(**arguments, callbacks=[ksd.callbacks.Resume(tmp_path)])
    assert history.epoch == []
    (message,) = messages
    assert "the end of epoch 2, and fit trains 1" in message


@pytest.mark.once
def test_none_left_is_an_error_not_a_new_beginning(checkpoints, messages):
    for path in checkpoints.directory.iterdir():
        path.write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"None of the checkpoints can be used.*_000002"
    ):
        checkpoints.newest(accept)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextlib.contextmanager
def full_disk(size):
    """A real failing write: the operating system ends a file after so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.once
def test_a_full_disk_leaves_those_before(checkpoints):
    before = contents(checkpoints.directory)
    with full_disk(1 << 16):
        checkpoints.write(Checkpoint(3, 0, [np.zeros(100_000)], {}))
    assert contents(checkpoints.directory) == before
    assert checkpoints.newest(accept).epoch == 2


def test_a_full_disk_ends_fit_which_goes_on_when_there_is_room(fresh, tmp_path):
    model = fresh(5)
    fit(model, "PyDataset", None)
    expected = state(model)
    model = fresh(5)
    fit(model, "PyDataset", ksd.callbacks.Resume(tmp_path), epochs=1)
    before = contents(tmp_path)
    with full_disk(1 << 10):
        fit(model, "PyDataset", ksd.callbacks.Resume(tmp_path), epochs=2)
    assert contents(tmp_path) == before
    fit(model, "PyDataset", ksd.callbacks.Resume(tmp_path))
    assert_equal(state(model), expected)


@pytest.mark.once
def test_a_file_gets_its_name_when_it_is_on_disk(checkpoints, monkeypatch):
    """File flushed, renamed, folder flushed: in this order."""
    done = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor):
        fsync(descriptor)
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))

    def record_replace(source, target):
        replace(source, target)
        done.append("renamed")

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    checkpoints.write(Checkpoint(3, 0, [np.zeros(9)], {}))
    name = "epoch_000003_batch_00000000.checkpoint"
    assert done == [name, "renamed", "run"]


def test_checkpoints_of_another_model_are_refused_by_name(tmp_path, messages):
    resume = ksd.callbacks.Resume(tmp_path)
    build(units=2).fit(X, Y, epochs=1, verbose=0, callbacks=[resume])
    other = build(units=1)
    with pytest.raises(ValueError, match=r"None.*another model.*\[3, 2\].*\[3, 1\]"):
        other.fit(X, Y[:, :1], verbose=0, callbacks=[ksd.callbacks.Resume(tmp_path)])
    assert "epoch_000001_batch_00000000.checkpoint: it is of another" in messages[0]


@pytest.mark.once
def test_bad_arguments_and_models_are_refused(tmp_path):
    for bad in (0, 2.5, True, "batch"):
        with pytest.raises(ValueError, match=f"save_freq={bad!r}"):
            ksd.callbacks.Resume(tmp_path, save_freq=bad)
    with pytest.raises(ValueError, match="keep=0"):
        ksd.callbacks.Resume(tmp_path, keep=0)
    resume = ksd.callbacks.Resume(tmp_path)
    assert resume.initial_epoch == 0
    resume.set_model(keras.Sequential([keras.layers.Dense(1)]))
    with pytest.raises(ValueError, match="needs a model that is built"):
        resume.on_train_begin()


def test_shorter_data_than_before_is_an_error(fresh, tmp_path):
    model = fresh(5)
    with pytest.raises(StoppedError):
        fit(model, "arrays", ksd.callbacks.Resume(tmp_path, save_freq=3), Stop(0, 3))
    with pytest.raises(ValueError, match="ended after 2 batches"):
        model.fit(
            X[:8],
            Y[:8],
            batch_size=4,
            verbose=0,
            callbacks=[ksd.callbacks.Resume(tmp_path)],
        )


@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize(("variant", "kills"), [("batches", 24), ("epochs", 10)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_at_random_it_ends_as_if_never_killed(tmp_path, backend, variant, kills):
    require_backend(backend)
    result = run_python(
        *("-m", "tests.callbacks.resume_probe", tmp_path, variant, kills),
        backend=backend,
        OMP_NUM_THREADS="1",
        JAX_COMPILATION_CACHE_DIR=str(tmp_path / "compiled"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["kills"] == kills
    assert found["chains"] >= 1
    assert found["points"] >= 5
    assert found["compared"] > kills
    assert found["difference"] == 0.0


@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_on_two_devices_it_ends_as_if_never_stopped(tmp_path, backend):
    require_backend(backend)
    result = run_python(
        "-m", "tests.callbacks.devices_resume_probe", tmp_path, backend=backend
    )
    difference, skipped = map(float, result.stdout.split()[-2:])
    assert difference == 0.0
    assert skipped >= 1  # The loss scale was searched.


_AUGMENTED_EPOCH = """
import sys
import keras, numpy as np
sys.path.insert(0, "examples")
from shared import augmentation
import keras_selfdistill as ksd

with np.load(sys.argv[1]) as arrays:
    images, labels = arrays["images"], arrays["labels"]

def train(epochs):
    keras.utils.set_random_seed(11)
    layers = keras.layers
    base = keras.Sequential([
        keras.Input((32, 32, 3)),
        layers.RandomFlip(), layers.RandomContrast(0.2),
        layers.Conv2D(8, 3, strides=2, name="tap"), layers.BatchNormalization(),
        layers.ReLU(), layers.Conv2D(16, 3, strides=2), layers.Dropout(0.2),
        layers.GlobalAveragePooling2D(), layers.Dense(100, "softmax"),
    ])
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9),
                  "sparse_categorical_crossentropy")
    data = augmentation.Augmented(images, labels, 50, seed=11)
    model.fit(data.batches(), steps_per_epoch=data.num_batches, epochs=epochs,
              shuffle=False, verbose=0)
    variables = [*model.variables, *model.optimizer.variables]
    return model, [keras.ops.convert_to_numpy(v) for v in variables]

(model, one), (_, other) = train(1), train(1)
print(max(np.abs(a.astype("f8") - b).max() for a, b in zip(one, other, strict=True)))
_, moved = train(2)
print(np.abs(moved[0] - one[0]).max())

# Every image in two epochs; then what the model's own layers make of one batch twice.
numbered = augmentation.Augmented(images, np.arange(len(images)), 50, seed=11)
seen = np.empty((2, *images.shape), "float32")
for epoch in range(2):
    numbered.set_epoch(epoch)
    for index in range(numbered.num_batches):
        batch, rows = numbered[index]
        seen[epoch, rows] = batch
print(np.mean(np.any(seen[0] != seen[1], axis=(1, 2, 3))))
augment = keras.Sequential(model.base.layers[:2])
one, other = (keras.ops.convert_to_numpy(augment(batch, training=True)) for _ in "12")
print(np.mean(np.any(one != other, axis=(1, 2, 3))))
"""


@pytest.mark.long
@pytest.mark.process
@pytest.mark.real_data
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_seed_decides_an_augmented_epoch_of_cifar100(
    tfds_folder,
    tmp_path,
    backend,
):
    require_backend(backend)
    train = cifar100.load(tfds_folder, train_examples=500).train
    np.savez(tmp_path / "cifar.npz", images=train.images, labels=train.labels)
    result = run_python(
        "-c",
        _AUGMENTED_EPOCH,
        tmp_path / "cifar.npz",
        backend=backend,
        OMP_NUM_THREADS="1",  # PyTorch's threads may sum in another order.
    )
    difference, moved, images, augmented = map(float, result.stdout.split()[-4:])
    assert difference == 0.0
    assert moved > 0
    # By chance, one crop and mirroring in 162 is drawn again.
    assert images > 0.95
    assert augmented > 0.95
