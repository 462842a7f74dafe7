"""Requests of many threads against `predict` and NumPy on the outputs of all exits."""

import concurrent.futures
import copy
import gc
import os
import pickle
import queue
import threading
import weakref

import keras
import numpy as np
import pytest
from keras import layers

import keras_selfdistill as ksd
from keras_selfdistill.early_exit.scheduler import SectionQueues
from keras_selfdistill.early_exit.serving import request, worker
from tests.conftest import run_python

SEEN = []  # Names of the dtype policies of threads that score.


@keras.saving.register_keras_serializable(package="tests")
def surest(probabilities):
    """The largest probability, unless a sample is poisoned."""
    SEEN.append(keras.config.dtype_policy().name)
    if np.isnan(probabilities).any():
        raise ArithmeticError("poisoned")
    return probabilities.max(axis=-1)


def make_model():
    keras.utils.set_random_seed(5)
    base = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, "tanh", name="a"),
            layers.Dense(8, "tanh", name="b"),
            layers.Dense(8, "tanh"),
            layers.Dense(4, "softmax"),
        ]
    )
    return ksd.SelfDistiller(base, ["a", "b"], "byot", head="linear")


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(60, 6)).astype("float32")


@pytest.fixture(scope="module")
def outputs(model, x):
    """Outputs of every exit, shape (exits, samples, classes)."""
    found = model.predict(x, verbose=0)
    return np.array([found[name] for name in model.exit_names])


@pytest.fixture
def fast(model, outputs):
    """Samples exit at every exit, and no score is near a threshold."""
    thresholds = []
    for scores in outputs.max(axis=-1)[:-1]:
        scores = np.sort(scores)[25:35]
        at = np.diff(scores).argmax()
        thresholds.append((scores[at] + scores[at + 1]) / 2)
    fast = ksd.EarlyExit(model, surest, thresholds=thresholds)
    yield fast
    fast.close()


def check(fast, outputs, result, rows):
    """Compare the result for some rows with the first exit that is sure enough."""
    limits = [*fast.thresholds.values(), -np.inf]
    scores = outputs.max(axis=-1)
    assert len(result.exits) == len(rows)
    for i, row in enumerate(rows):
        number = next(k for k in range(3) if scores[k, row] >= limits[k])
        assert result.exits[i] == fast.exit_names[number]
        np.testing.assert_allclose(
            result.predictions[i], outputs[number, row], atol=1e-5
        )
        assert result.scores[i] == pytest.approx(scores[number, row], abs=1e-5)


class Gate:
    """Holds a section until it is opened, and counts the rows of every section."""

    def __init__(self, fast, monkeypatch):
        self.entered, self.opened = threading.Event(), threading.Event()
        self.rows = [[], [], []]
        sections = fast._cascade._sections

        def gated(index):
            def call(tensors):
                self.rows[index].append(len(tensors[0]))
                self.entered.set()
                self.opened.wait()
                return sections[index](tensors)

            return call

        monkeypatch.setattr(fast._cascade, "_sections", [*map(gated, range(3))])


@pytest.fixture
def gate(fast, monkeypatch):
    gate = Gate(fast, monkeypatch)
    yield gate
    gate.opened.set()


def test_many_threads_get_what_predict_returns(fast, outputs, x):
    rows = [list(range(i % 57, i % 57 + 1 + i % 3)) for i in range(200)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        futures = list(pool.map(lambda each: fast.submit(x[each], None), rows))
    for each, future in zip(rows, futures, strict=True):
        result = future.result()
        check(fast, outputs, result, each)
        expected = fast.predict(x[each])
        assert list(result.exits) == list(expected.exits)
        np.testing.assert_allclose(result.predictions, expected.predictions, atol=1e-5)
        assert result.macs_ratio == pytest.approx(expected.macs_ratio)
        assert result.predictions.dtype == expected.predictions.dtype
    names = {name for future in futures for name in future.result().exits}
    assert len(names) == 3
    empty = fast.submit(x[:0]).result()
    assert empty.predictions.shape == (0, 4)
    assert empty.macs_ratio == 0.0


def test_requests_join_those_that_are_half_way(fast, gate, outputs, x):
    fast.start(batch_size=16)
    futures = [fast.submit(x[:1])]
    gate.entered.wait()
    futures += [fast.submit(x[i : i + 1]) for i in range(1, 60)]
    gate.opened.set()
    for i, future in enumerate(futures):
        check(fast, outputs, future.result(), [i])
    exits = fast.predict(x).exits
    assert gate.rows[0][:4] == [1, 16, 16, 16]
    batches = sum(np.sum(exits != "exit_1") > 16 * np.arange(4))
    assert batches <= len(gate.rows[1]) <= batches + 4  # Not one a request.


def test_samples_are_copied(fast, gate, outputs, x):
    mine = x[:4].copy()
    future = fast.submit(mine)
    gate.entered.wait()
    second = fast.submit(mine)
    mine[:] = 0.0
    gate.opened.set()
    check(fast, outputs, future.result(), range(4))
    check(fast, outputs, second.result(), range(4))


def test_a_cancelled_request_never_begins(fast, gate, outputs, x):
    fast.start(batch_size=8, max_queued=3)
    first = fast.submit(x[:1])
    gate.entered.wait()
    second, third = fast.submit(x[1:2]), fast.submit(x[2:3])
    assert not first.cancel()
    assert second.cancel()
    gate.opened.set()
    check(fast, outputs, first.result(), [0])
    check(fast, outputs, third.result(), [2])
    assert second.cancelled()
    check(fast, outputs, fast.submit(x[:3]).result(), range(3))  # There is room again.


def test_a_full_queue_raises_or_waits(fast, gate, outputs, x):
    fast.start(batch_size=2, max_queued=3)
    futures = [fast.submit(x[:2])]
    gate.entered.wait()
    futures.append(fast.submit(x[2:3]))
    for options in ({}, {"timeout": 0.01}):
        with pytest.raises(queue.Full, match=r"1 more than 3 .* max_queued"):
            fast.submit(x[3:4], **options)
    with pytest.raises(ValueError, match=r"Received: 4 samples. Expected: at most 3"):
        fast.submit(x[:4])
    # The worker's own thread never waits for itself.
    refused = []

    def again(_):
        for _ in range(9):
            try:
                futures.append(fast.submit(x[:3]))
            except queue.Full as error:
                refused.append(error)

    futures[0].add_done_callback(again)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(fast.submit, x[3:4], None)
        gate.opened.set()
        check(fast, outputs, waiting.result().result(), [3])
    check(fast, outputs, futures[0].result(), range(2))
    check(fast, outputs, futures[1].result(), [2])
    assert refused


@pytest.mark.parametrize("half_way", [False, True])
def test_an_error_reaches_its_own_request_alone(fast, gate, outputs, x, half_way):
    futures = [fast.submit(x[:1])]
    gate.entered.wait()
    poisoned = np.full((1, 6), np.nan if not half_way else 0.0, "float32")
    if half_way:  # Both samples of it are half-way when one of them fails.
        poisoned = np.concatenate([x[5:6], np.full((1, 6), np.nan, "float32")])
    bad = fast.submit(poisoned)
    futures += [fast.submit(x[i : i + 2]) for i in range(1, 9)]
    gate.opened.set()
    with pytest.raises(ArithmeticError, match="poisoned"):
        bad.result()
    check(fast, outputs, futures[0].result(), [0])
    for i, future in enumerate(futures[1:], start=1):
        check(fast, outputs, future.result(), [i, i + 1])
    check(fast, outputs, fast.submit(x[:9]).result(), range(9))


def test_closing_finishes_what_was_accepted(fast, gate, outputs, x):
    with fast as same:
        assert same is fast
        futures = [fast.submit(x[i : i + 1]) for i in range(40)]
        futures[-1].add_done_callback(lambda _: fast.close())  # Waits for nobody.
        gate.opened.set()
    for i, future in enumerate(futures):
        assert future.done()
        check(fast, outputs, future.result(), [i])
    fast.close()
    with pytest.raises(RuntimeError, match=r"submit after close. Expected: start\(\)"):
        fast.submit(x[:1])
    check(fast, outputs, fast.predict(x[:5]), range(5))
    with fast.start(batch_size=4), pytest.raises(RuntimeError, match="close"):
        fast.start()
    with fast:
        check(fast, outputs, fast.submit(x[:5]).result(), range(5))


def test_closed_before_the_first_request(model, x):
    fast = ksd.EarlyExit(model, thresholds=0.5)
    fast.close()
    with pytest.raises(RuntimeError, match="submit after close"):
        fast.submit(x[:1])


@pytest.mark.once
def test_wrong_requests_are_refused_by_submit(fast, model, x):
    threads = threading.active_count()
    for wrong, error, message in (
        (x[0], ValueError, r"Received: \(6,\)\. Expected: \(samples, 6\).*x\[None\]"),
        (x[:, :5], ValueError, r"Received: \(60, 5\)"),
        (iter([x]), TypeError, r"Arrays are needed.*predict reads datasets"),
        ((x, x), ValueError, "1 inputs. Received: 2 arrays"),
        ("x", TypeError, "Arrays are needed"),
    ):
        with pytest.raises(error, match=message):
            fast.submit(wrong)
    for timeout in (-1, "1", float("nan"), 1e10):
        with pytest.raises(ValueError, match="`timeout` is out of range"):
            fast.submit(x, timeout=timeout)
    for options in ({"batch_size": 0}, {"max_queued": 2.5}):
        with pytest.raises(
            ValueError, match=f"`{next(iter(options))}` is out of range"
        ):
            fast.start(**options)
    with pytest.raises(ValueError, match=r"no thresholds yet.*call of submit"):
        ksd.EarlyExit(model).submit(x)
    assert threading.active_count() == threads


def test_requests_keep_the_setting_of_their_submit(fast, gate, outputs, x):
    first = fast.submit(x)
    gate.entered.wait()
    settings = {}
    for threshold in (-np.inf, np.inf, -np.inf):
        fast.thresholds = threshold
        settings[fast.submit(x[:9])] = threshold
    fast.temperatures = 5.0
    fast.thresholds = np.inf
    warm = fast.submit(x[:9])
    fast.temperatures = None
    fast.thresholds = 0.5
    gate.opened.set()
    assert len(set(first.result().exits)) == 3
    for future, threshold in settings.items():
        last = 0 if threshold == -np.inf else 2
        assert set(future.result().exits) == {fast.exit_names[last]}
        np.testing.assert_allclose(
            future.result().predictions, outputs[last][:9], atol=1e-5
        )
    logits = np.log(outputs[2][:9]) / 5
    expected = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(warm.result().predictions, expected, atol=1e-5)


def test_thresholds_may_be_calibrated_meanwhile(model, outputs, x):
    fast = ksd.EarlyExit(model, thresholds=0.5)
    labels = outputs[-1].argmax(axis=-1)
    fast.calibrate(x, labels, macs_budget=9.0)
    stopped, failed = threading.Event(), []

    def submit():
        while not stopped.is_set():
            try:
                fast.submit(x[:3]).result()
            except Exception as error:
                failed.append(error)

    with fast, concurrent.futures.ThreadPoolExecutor(2) as pool:
        done = [pool.submit(submit) for _ in range(2)]
        for _ in range(5):
            fast.calibrate(x, labels, temperature=True, macs_budget=9.0)
            fast.calibrate(x, labels, max_accuracy_drop=0.1)
        stopped.set()
        for each in done:
            each.result()
    assert not failed


def test_the_worker_has_the_settings_of_who_started_it(mixed_precision, x):
    mixed_precision("mixed_bfloat16")
    with ksd.EarlyExit(make_model(), surest, thresholds=0.5) as fast:
        SEEN.clear()
        fast.submit(x[:3]).result()
    assert set(SEEN) == {"mixed_bfloat16"}


def test_a_file_a_pickle_and_a_copy_have_no_worker(fast, gate, outputs, x, tmp_path):
    future = fast.submit(x[:1])
    gate.entered.wait()
    fast.save(tmp_path / "fast.earlyexit")
    copies = [
        ksd.EarlyExit.load(tmp_path / "fast.earlyexit"),
        pickle.loads(pickle.dumps(fast)),
        copy.deepcopy(fast),
    ]
    for each in copies:  # The gate is still shut.
        assert each.thresholds == fast.thresholds
        check(fast, outputs, each.predict(x), range(60))
    with copies[0]:
        check(fast, outputs, copies[0].submit(x[:4]).result(), range(4))
    gate.opened.set()
    check(fast, outputs, future.result(), [0])


def test_a_shallow_copy_shares_the_model_and_takes_no_requests(fast, outputs, x):
    labels = outputs[-1].argmax(axis=-1)
    fast.calibrate(x, labels, macs_budget=9.0)
    fast.thresholds = np.inf
    future = fast.submit(x[:1])
    other = copy.copy(fast)
    assert other.model is fast.model
    other.calibrate(macs_budget=9.0)  # It has the outcomes.
    assert set(fast.thresholds.values()) == {np.inf}
    other.thresholds = -np.inf
    other.close()
    with other.start():
        assert set(other.submit(x[:2]).result().exits) == {"exit_1"}
    assert set(fast.submit(x[:2]).result().exits) == {"final"}
    assert future.result().exits.tolist() == ["final"]


def test_shapes_that_differ_are_not_joined():
    inputs = keras.Input((None, None, 3))
    tap = layers.Conv2D(4, 3, activation="relu", name="tap")(inputs)
    end = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(tap))
    base = keras.Model(inputs, layers.Dense(3, "softmax")(end))
    model = ksd.SelfDistiller(base, ["tap"], "byot", head="linear")
    fast = ksd.EarlyExit(model, thresholds=np.inf)
    images = [np.ones((1, size, 6, 3), "float32") * size for size in (6, 6, 7, 6, 8)]
    with fast:
        futures = [fast.submit(image) for image in images]
    for image, future in zip(images, futures, strict=True):
        np.testing.assert_allclose(
            future.result().predictions, fast.predict(image).predictions, atol=1e-5
        )


class Counted(ksd.criteria.Criterion):
    """The exits that a sample has passed, counted in place; at exit 2 for two only."""

    def __call__(self, probabilities, memory):
        if "seen" not in memory:
            memory["seen"] = np.zeros(len(probabilities))
        memory["seen"] += 1
        if memory["seen"][0] > 1 and len(probabilities) != 2:
            raise ArithmeticError("not two samples")
        return memory["seen"].copy()


def test_a_section_that_ran_twice_counts_once(model, x, monkeypatch):
    fast = ksd.EarlyExit(model, Counted(), thresholds=[9.0, 2.0])
    gate = Gate(fast, monkeypatch)
    with fast:
        first = fast.submit(x[:1])
        gate.entered.wait()
        # At exit 2 they fail together, after the memory of both was changed.
        bad, good = fast.submit(x[:1]), fast.submit(x[1:3])
        gate.opened.set()
    for future in (first, bad):
        assert isinstance(future.exception(), ArithmeticError)
    assert good.result().exits.tolist() == ["exit_2", "exit_2"]
    assert good.result().scores.tolist() == [2.0, 2.0]


def test_samples_of_a_failed_request_fail_no_other(fast, gate, outputs, x):
    fast.start(batch_size=4)
    first = fast.submit(x[:1])
    gate.entered.wait()
    # Two samples of it wait when the first four fail, and are in the other's batch.
    bad = fast.submit(np.full((6, 6), np.nan, "float32"))
    good = fast.submit(x[1:2])
    gate.opened.set()
    assert isinstance(bad.exception(), ArithmeticError)
    check(fast, outputs, first.result(), [0])
    check(fast, outputs, good.result(), [1])


def test_workers_that_were_closed_are_not_kept(model, x):
    fast = ksd.EarlyExit(model, thresholds=0.5)
    workers = []
    for _ in range(3):
        with fast.start():
            workers.append(weakref.ref(fast._worker))
    gc.collect()
    assert [each() is not None for each in workers] == [False, False, True]


@pytest.mark.parametrize("place", ["take", "put"])
def test_an_error_outside_of_a_section_ends_no_service(
    fast, gate, outputs, x, monkeypatch, place
):
    broken = [MemoryError("no memory")]
    method = getattr(SectionQueues, place)

    def fails_once(self, *arguments):
        if broken:
            raise broken.pop()
        return method(self, *arguments)

    first = fast.submit(x[:1])
    gate.entered.wait()
    monkeypatch.setattr(SectionQueues, place, fails_once)
    others = [fast.submit(x[:9]) for _ in range(3)]
    gate.opened.set()
    failed = [each for each in [first, *others] if each.exception() is not None]
    assert 1 <= len(failed) < 5
    assert not broken
    assert all(isinstance(each.exception(), MemoryError) for each in failed)
    for _ in range(3):  # The samples of what failed take no room.
        check(fast, outputs, fast.submit(x).result(), range(60))


@pytest.mark.parametrize("logged", [True, False])
def test_a_callback_that_raises_harms_no_request(
    fast, gate, outputs, x, monkeypatch, logged
):
    def leave(*_):
        raise SystemExit if logged else ValueError("no log")

    if not logged:
        monkeypatch.setattr(request.logging, "exception", leave)
    first = fast.submit(x[:1])
    gate.entered.wait()
    futures = [fast.submit(x[i : i + 1]) for i in range(9)]
    for each in [first, *futures]:
        each.add_done_callback(leave)
    gate.opened.set()
    for i, each in enumerate(futures):
        check(fast, outputs, each.result(), [i])
    check(fast, outputs, fast.submit(x[:5]).result(), range(5))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_worker_that_broke(fast, gate, x, monkeypatch):
    def broken(*_):
        raise OSError("broken")

    first = fast.submit(x[:1])
    gate.entered.wait()
    monkeypatch.setattr(worker.Worker, "_takes", broken)
    others = [fast.submit(x[:9]) for _ in range(9)]
    gate.opened.set()
    for future in [first, *others]:
        assert isinstance(future.exception(), OSError) or future is first
    with pytest.raises(RuntimeError, match="broke by the error above") as raised:
        fast.submit(x[:1])
    assert isinstance(raised.value.__cause__, OSError)
    monkeypatch.undo()
    fast.close()
    assert len(fast.start().submit(x[:2]).result().exits) == 2


def test_the_thread_ends_with_its_object(model, x):
    fast = ksd.EarlyExit(model, thresholds=np.inf)
    future = fast.submit(x[:5])
    thread = fast._worker._thread
    del fast
    gc.collect()
    thread.join()
    assert set(future.result().exits) == {"final"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
@pytest.mark.filterwarnings("ignore")  # Forking beside threads is what is tested.
def test_a_fork_does_not_wait_for_a_thread_that_it_lacks(fast, x):
    fast.submit(x[:1]).result()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            fast.submit(x[:1])
            message = "accepted"
        except RuntimeError as error:
            message = str(error)
        fast.close()  # Returns.
        os.write(write, message.encode())
        os._exit(0)
    os.waitpid(child, 0)
    found = os.read(read, 1000).decode()
    os.close(read)
    os.close(write)
    assert "runs in another process" in found
    assert len(fast.submit(x[:1]).result().exits) == 1


AT_EXIT = """
import keras, numpy as np
import keras_selfdistill as ksd
base = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="a"),
    keras.layers.Dense(4), keras.layers.Dense(3, "softmax")])
model = ksd.SelfDistiller(base, ["a"], "byot", head="linear")
fast = ksd.EarlyExit(model, thresholds=np.inf)
for i in range(40):
    future = fast.submit(np.ones((1, 6)))
future.add_done_callback(lambda each: print(each.result().exits[0], "at the end"))
raise SystemExit(3)
"""


@pytest.mark.process
@pytest.mark.long
def test_a_program_that_ends_finishes_its_requests():
    result = run_python("-c", AT_EXIT, check=False)
    assert (result.returncode, result.stdout) == (3, "final at the end\n")
    assert "Traceback" not in result.stderr
