"""Nothing but regular files is read or replaced, and none that changes meanwhile."""

import contextlib
import errno
import io
import os
import pathlib
import tempfile

import h5py
import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from keras_selfdistill.callbacks import checkpoints
from keras_selfdistill.callbacks.checkpoints import Checkpoint, Checkpoints, read
from keras_selfdistill.files import archive as safe_file
from keras_selfdistill.files import regular_files
from keras_selfdistill.files.weights_file import stored_bytes
from tests.fuzz import mutations
from tests.fuzz.corpus import wrappers

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A wrapper's file and an early-exit file, with what loads them."""
    folder = tmp_path_factory.mktemp("saved")
    model = wrappers()["plain"]
    model.save(folder / "a.keras")
    ksd.EarlyExit(model, thresholds=0.5).save(folder / "a.earlyexit")
    return {
        folder / "a.keras": ksd.load_model,
        folder / "a.earlyexit": ksd.EarlyExit.load,
    }


def test_pipes_folders_and_devices_are_no_files(saved, tmp_path):
    """A pipe would wait for ever."""
    for path, load in saved.items():
        pipe = tmp_path / f"pipe{path.suffix}"
        os.mkfifo(pipe)
        (tmp_path / f"link{path.suffix}").symlink_to(pipe)
        for each in (pipe, tmp_path / f"link{path.suffix}", "/dev/zero"):
            with pytest.raises(OSError, match="Not a regular file"):
                load(each)
        # A folder may hold a wrapper, but not an early exit.
        refused = ValueError if path.suffix == ".keras" else IsADirectoryError
        with pytest.raises(refused):
            load(tmp_path)


def test_a_link_that_the_user_names_is_followed(saved, tmp_path):
    """As downloaded files are often kept: a name that leads to the content."""
    for path, load in saved.items():
        link = tmp_path / path.name
        link.symlink_to(path)
        load(link)


def test_what_is_loaded_is_what_was_checked(saved, tmp_path, monkeypatch):
    """Another process writes to the path after the check."""
    keras_load = keras.saving.load_model
    for path, load in saved.items():
        mine = tmp_path / path.name
        mine.write_bytes(path.read_bytes())

        def swapped(*arguments, mine=mine, **options):
            mine.write_bytes(b"changed")
            return keras_load(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(keras.saving, "load_model", swapped)
            load(mine)
        assert mine.read_bytes() == b"changed"


def test_copies_are_removed(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for path, load in saved.items():
        load(path)
        broken = tmp_path / f"broken{path.suffix}"
        broken.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ksd.RefusedFileError):
            load(broken)
        broken.unlink()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError("none")]
)
@pytest.mark.parametrize("where", ["the copy", "the check", "Keras"])
def test_what_the_machine_lacks_is_no_fault_of_the_file(
    saved, monkeypatch, error, where
):
    module, name = {
        "the copy": (regular_files.shutil, "copyfileobj"),
        "the check": (safe_file, "stored_bytes"),
        "Keras": (keras.saving, "load_model"),
    }[where]

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(module, name, fail)
    for path, load in saved.items():
        with pytest.raises(type(error)) as caught:
            load(path)
        assert caught.value is error


def test_saving_replaces_files_alone(saved, tmp_path):
    """Not a folder, nor what a link leads to, nor a device."""
    model = wrappers()["plain"]
    fast = ksd.EarlyExit(model, thresholds=0.5)
    victim = tmp_path / "victim.txt"
    victim.write_text("kept")
    (tmp_path / "link").symlink_to(victim)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    for name in ("link", "folder", "pipe"):
        with pytest.raises(OSError, match="Received"):
            fast.save(tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before
    assert victim.read_text() == "kept"


def test_saving_an_early_exit_replaces_its_like_alone(saved, tmp_path):
    fast = ksd.EarlyExit(wrappers()["plain"], thresholds=0.25)
    keras_file, early_exit_file = saved
    foreign = {
        "notes.txt": b"mine",
        "model.keras": keras_file.read_bytes(),
        "truncated.earlyexit": early_exit_file.read_bytes()[:-200],
    }
    for name, content in foreign.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileExistsError, match=f"Received: path=.*{name}"):
            fast.save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
    own = tmp_path / "own.earlyexit"
    own.touch()  # As a temporary file's name is reserved.
    fast.save(own)
    own.write_bytes(early_exit_file.read_bytes())
    fast.save(own)
    assert list(ksd.EarlyExit.load(own).thresholds.values()) == [0.25]
    assert sorted(tmp_path.iterdir()) == sorted([own, *map(tmp_path.joinpath, foreign)])


def test_arrays_that_share_their_bytes_are_refused():
    """A small file could else ask for its size, times the number of its arrays."""
    store = io.BytesIO()
    with h5py.File(store, "w") as file:
        for name in "abc":
            file[name] = np.ones(1000, "f4")
        place, other = (file[name].id.get_offset() for name in "ab")
    content = store.getvalue()
    assert stored_bytes(content, "weights") == 3 * 4000
    # Eight bytes in each array's header say where its bytes are.
    one, two = (each.to_bytes(8, "little") for each in (place, other))
    assert content.count(two) == 1
    for target in (one, (place + 4).to_bytes(8, "little")):
        with pytest.raises(ValueError, match="overlap"):
            stored_bytes(content.replace(two, target), "weights")


def test_arrays_beyond_the_end_are_refused():
    store = io.BytesIO()
    with h5py.File(store, "w") as file:
        file["a"] = np.ones(1000, "f4")
        place = file["a"].id.get_offset()
    content = store.getvalue()
    for start, fits in ((len(content) - 4000, True), (len(content) - 3999, False)):
        header = (place.to_bytes(8, "little"), start.to_bytes(8, "little"))
        assert content.count(header[0]) == 1
        if fits:
            assert stored_bytes(content.replace(*header), "weights") == 4000
        else:
            with pytest.raises(ValueError, match=r"be read|beyond its end"):
                stored_bytes(content.replace(*header), "weights")


def test_arrays_in_pieces_are_refused():
    """Keras writes none, and pieces could share their bytes, too."""
    store = io.BytesIO()
    with h5py.File(store, "w") as file:
        file.create_dataset("a", data=np.ones(100, "f4"), chunks=(10,))
    with pytest.raises(ValueError, match="in one piece"):
        stored_bytes(store.getvalue(), "weights")


@pytest.mark.parametrize(
    "dtype",
    [
        h5py.vlen_dtype("u1"),
        h5py.ref_dtype,
        h5py.string_dtype(),
        [("a", h5py.vlen_dtype("u1"))],
        [("a", "f4"), ("b", [("c", h5py.string_dtype())])],
        [("a", "f4"), ("b", "f4")],
        ("f4", (3,)),
    ],
    ids=str,
)
def test_arrays_of_anything_but_numbers_are_refused(dtype):
    """What an array refers to may be larger than its own bytes, as often as it does."""
    store = io.BytesIO()
    with h5py.File(store, "w") as file:
        file["a"] = np.ones(4, "f4")
        # HDF5's type as such; h5py would add the dimensions of the last to the array's.
        kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
        space = h5py.h5s.create_simple((4,))
        stored = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        stored.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # As if it was written.
        h5py.h5d.create(file.id, b"b", kind, space, stored)
        file["c"] = np.ones(4, "f4")
    with pytest.raises(ValueError, match="'b' in weights is not an array"):
        stored_bytes(store.getvalue(), "weights")


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int8", "bool", "c8"])
def test_arrays_of_numbers_are_not_refused(dtype):
    store = io.BytesIO()
    with h5py.File(store, "w") as file:
        file["a"] = np.zeros(4, np.dtype(dtype))
        file["a"].attrs["dtype"] = dtype  # As Keras names bfloat16.
    size = 4 * np.dtype(dtype).itemsize
    assert stored_bytes(store.getvalue(), "weights") == size


@pytest.mark.parametrize("attribute", [False, True])
def test_a_file_of_references_to_one_list_is_refused(saved, tmp_path, attribute):
    """They would take as many megabytes as there are: a file of two took gigabytes."""
    (path,) = (each for each in saved if each.suffix == ".keras")
    parts = dict(mutations.parts_of(path.read_bytes()))
    forged = mutations.references(parts[mutations.WEIGHTS], attribute=attribute)
    with h5py.File(io.BytesIO(forged), "r") as file:
        found = []
        file.visititems(lambda name, each: found.append(each))
        found = [each for each in found if hasattr(each, "shape")]
        if attribute:
            (values,) = (each.attrs["dtype"][:2] for each in found if each.attrs)
        else:
            (values,) = (
                each[...].reshape(-1)[:2]["a"] for each in found if each.dtype.hasobject
            )
        assert [len(each) for each in values] == [10**6 + 3] * 2
    parts[mutations.WEIGHTS] = forged
    (tmp_path / "a.keras").write_bytes(mutations.archive_of(parts.items()))
    with pytest.raises(ksd.RefusedFileError, match=r"not a string|not an array"):
        ksd.load_model(tmp_path / "a.keras")


def test_a_file_of_overlapping_arrays_is_refused(saved, tmp_path):
    (path,) = (each for each in saved if each.suffix == ".keras")
    parts = dict(mutations.parts_of(path.read_bytes()))
    overlapping = mutations.overlap(parts[mutations.WEIGHTS])
    parts[mutations.WEIGHTS] = overlapping
    (tmp_path / "a.keras").write_bytes(mutations.archive_of(parts.items()))
    with pytest.raises(ksd.RefusedFileError, match="overlap"):
        ksd.load_model(tmp_path / "a.keras")


def accept(checkpoint):
    pass


def write(folder, epoch, batch=0):
    Checkpoints(folder, keep=2).write(Checkpoint(epoch, batch, [np.zeros(2)], {}))


NAME = "epoch_{:06d}_batch_00000000{}.checkpoint".format


def test_resume_removes_its_own_checkpoints_alone(tmp_path):
    write(tmp_path, 1)
    foreign = [
        NAME(1, "_best"),
        NAME(1, "") + "~",
        "epoch_1_batch_0.checkpoint",
        "epoch_0000001_batch_00000000.checkpoint",
        "epoch_000001_batch_00000000.checkpoint.checkpoint",
        "epoch_x_batch_y.checkpoint",
    ]
    for name in foreign:
        (tmp_path / name).write_bytes((tmp_path / NAME(1, "")).read_bytes())
    (tmp_path / NAME(0, "")).mkdir()
    (tmp_path / "victim").write_text("kept")
    (tmp_path / "epoch_000000_batch_00000001.checkpoint").symlink_to("victim")
    (tmp_path / "epoch_000000_batch_00000002.checkpoint").write_text("my notes")
    foreign += [NAME(0, ""), "victim"]
    foreign += [f"epoch_000000_batch_0000000{i}.checkpoint" for i in (1, 2)]
    for epoch in range(2, 6):
        write(tmp_path, epoch)
    assert {each.name for each in tmp_path.iterdir()} == {
        *foreign,
        NAME(4, ""),
        NAME(5, ""),
    }


def test_the_newest_is_that_of_the_largest_numbers(tmp_path):
    """Names sort by letters, too, but only below a million epochs."""
    for epoch in (999_999, 1_000_000):
        write(tmp_path, epoch)
    assert Checkpoints(tmp_path, 2).newest(accept).epoch == 1_000_000
    write(tmp_path, 1_000_001)
    assert not (tmp_path / "epoch_999999_batch_00000000.checkpoint").exists()


def test_links_and_pipes_named_like_checkpoints_are_not_read(tmp_path):
    outside = tmp_path / "outside"
    run = tmp_path / "run"
    write(outside, 7)
    write(run, 1)
    (run / NAME(7, "")).symlink_to(outside / NAME(7, ""))
    os.mkfifo(run / NAME(8, ""))
    assert Checkpoints(run, 2).newest(accept).epoch == 1
    for name in (NAME(7, ""), NAME(8, "")):
        with pytest.raises(OSError, match=r"regular|symbolic"):
            read(run / name)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("moment", ["opened", "read"])
def test_an_error_of_the_machine_is_not_taken_for_a_checkpoints(
    tmp_path, monkeypatch, number, moment
):
    """Else the training would go on from an older one, and remove the newest."""
    write(tmp_path, 1)
    write(tmp_path, 2)
    newest = tmp_path / NAME(2, "")
    name = {"opened": "open_regular", "read": "sha256"}[moment]
    real, done = getattr(checkpoints, name), []

    def fails(*arguments, **options):
        done.append(arguments)
        if len(done) == 1:
            raise OSError(number, os.strerror(number), str(newest))
        return real(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, name, fails)
        with pytest.raises(OSError, match=os.strerror(number)):
            Checkpoints(tmp_path, 2).newest(accept)
    assert Checkpoints(tmp_path, 2).newest(accept).epoch == 2


def test_writing_a_checkpoint_follows_no_link(tmp_path, monkeypatch):
    victim = tmp_path / "victim.txt"
    victim.write_text("kept")
    run = tmp_path / "run"
    write(run, 2)
    (run / NAME(3, "")).symlink_to(victim)
    with pytest.raises(FileExistsError, match="a link"):
        write(run, 3)
    replacing = checkpoints.replacing

    @contextlib.contextmanager
    def attacked(path):
        with replacing(path) as new:
            new.symlink_to(victim)
            yield new

    monkeypatch.setattr(checkpoints, "replacing", attacked)
    with pytest.raises(FileExistsError, match="File exists"):
        write(run, 4)
    assert victim.read_text() == "kept"
    assert Checkpoints(run, 2).newest(accept).epoch == 2
    assert sorted(each.name for each in run.iterdir()) == [NAME(2, ""), NAME(3, "")]


def test_a_later_one_that_came_meanwhile_does_not_displace_a_new_one(tmp_path):
    for keep in (1, 2):
        folder = tmp_path / str(keep)
        writer = Checkpoints(folder, keep)
        writer.write(Checkpoint(1, 0, [], {}))
        Checkpoints(folder, keep).write(Checkpoint(9, 0, [], {}))
        for epoch in (2, 3):
            writer.write(Checkpoint(epoch, 0, [], {}))
        expected = [NAME(epoch, "") for epoch in range(4 - keep, 4)] + [NAME(9, "")]
        assert sorted(each.name for each in folder.iterdir()) == expected


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_what_would_end_a_training_is_an_error_before_it(tmp_path, kind):
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse", run_eagerly=True)
    data = np.ones((4, 2)), np.ones((4, 1))
    resume = ksd.callbacks.Resume(tmp_path)
    model.fit(*data, epochs=1, verbose=0, callbacks=[resume])
    make = {
        "folder": pathlib.Path.mkdir,
        "link": lambda path: path.symlink_to(tmp_path / "nowhere"),
        "pipe": os.mkfifo,
    }[kind]
    make(tmp_path / NAME(0, ""))  # No checkpoint will have this name.
    model.fit(*data, epochs=2, verbose=0, callbacks=[resume])
    make(tmp_path / NAME(4, ""))
    before = model.get_weights()
    with pytest.raises(FileExistsError, match=f"Received: .*{NAME(4, '')}"):
        model.fit(*data, epochs=4, verbose=0, callbacks=[resume])
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    (tmp_path / NAME(2, "")).unlink()
    (tmp_path / NAME(1, "")).unlink()
    with pytest.raises(FileExistsError, match=NAME(0, "")):
        model.fit(*data, epochs=4, verbose=0, callbacks=[resume])


def test_a_checkpoint_under_another_ones_name_is_refused(tmp_path):
    write(tmp_path, 2)
    (tmp_path / NAME(2, "")).rename(tmp_path / NAME(9, ""))
    with pytest.raises(ValueError, match="it contains epoch 2, batch 0"):
        Checkpoints(tmp_path, 2).newest(accept)
    pathlib.Path(tmp_path / NAME(9, "")).rename(tmp_path / "mine.checkpoint")
    assert read(tmp_path / "mine.checkpoint").epoch == 2
