"""The progress bar of `fit` and `evaluate`: every exit, within a terminal's width."""

import io
import re
import sys
import time

import keras
import numpy as np
import pytest

import keras_selfdistill as ksd
from keras_selfdistill.training.logs.progress_bar import (
    ProgressBar,
    _fitted,
    with_progress_bar,
)
from keras_selfdistill.training.nonfinite import StopWithoutProgress
from tests.conftest import long_on

X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
Y = np.arange(12) % 3


class Terminal(io.StringIO):
    """An output that a program may take for a terminal."""

    def isatty(self):
        return True

    def shown(self):
        """Return the lines that are left, as a terminal shows them."""
        return [
            line.split("\r")[-1].rstrip() for line in self.getvalue().split("\n")[:-1]
        ]


@pytest.fixture
def terminal(monkeypatch):
    """Return a function that makes the output a terminal of so many columns."""

    def make(columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "stdout", Terminal())
        monkeypatch.setattr("keras_selfdistill.training.logs.progress_bar._INTERVAL", 0)
        return sys.stdout

    return make


def wrapper(exits):
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(4, activation="relu", name=f"layer_{i}")
        for i in range(1, exits + 1)
    ]
    base = keras.Sequential(
        [keras.Input((4,)), *layers, keras.layers.Dense(3, activation="softmax")]
    )
    taps = [f"layer_{i}" for i in range(1, exits)]
    model = ksd.SelfDistiller(base, taps, "byot", head="linear")
    model.compile(
        "sgd", "sparse_categorical_crossentropy", metrics=["accuracy"], run_eagerly=True
    )
    return model


@pytest.fixture(scope="module")
def models():
    return {exits: wrapper(exits) for exits in (2, 4, 12)}


@pytest.mark.once
@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("exits", [2, 4, 12])
def test_no_line_is_wrapped(models, terminal, exits, columns):
    output = terminal(columns)
    history = models[exits].fit(
        X, Y, batch_size=6, epochs=2, validation_data=(X, Y), verbose=1
    )
    updates = output.getvalue().replace("\n", "\r").split("\r")
    assert max(map(len, updates)) < columns
    assert len(updates) > 3 * 2 + 2 * 2
    lines = output.shown()
    assert [line.split(" ")[0] for line in lines] == ["Epoch", "2/2", ""] * 2
    for line in lines[1::3] + lines[2::3]:
        assert re.search(r" loss \d+\.\d{4} accuracy [01]\.\d{4} ensemble [01]\.", line)
    # Cut between two words, and only where not even the times leave enough room.
    assert lines[1].endswith(" …") == (exits == 12)
    assert "nonfinite" not in output.getvalue()
    first = models[exits].exit_names[0]
    keys = {"nonfinite_steps", f"{first}_accuracy", f"val_{first}_accuracy"}
    assert keys <= set(history.history)


@pytest.mark.once
def test_the_bar_and_the_times_give_way_to_the_values():
    progress = ("32/32", "━━━━━━━━━━", "4s 23ms/step")
    lines = [
        _fitted(progress, "loss 8.2 exits 0.27 0.20", size) for size in (99, 50, 35, 30)
    ]
    assert lines == [
        "32/32 ━━━━━━━━━━ 4s 23ms/step loss 8.2 exits 0.27 0.20",
        "32/32 4s 23ms/step loss 8.2 exits 0.27 0.20",
        "32/32 loss 8.2 exits 0.27 0.20",
        "32/32 loss 8.2 exits 0.27 …",
    ]


@pytest.mark.once
def test_the_values_are_those_of_the_logs(models, terminal):
    output = terminal(200)
    logs = models[12].fit(X, Y, batch_size=6, verbose=1).history
    (line,) = output.shown()
    exits = [f"{logs[f'exit_{i:02}_accuracy'][0]:.2f}" for i in range(1, 12)]
    assert line.endswith(
        f" loss {logs['loss'][0]:.4f} accuracy {logs['accuracy'][0]:.4f} "
        f"ensemble {logs['ensemble_accuracy'][0]:.4f} exits {' '.join(exits)}"
    )


@pytest.mark.once
def test_skipped_steps_are_shown(models, terminal):
    model, output = models[2], terminal(100)
    bias = model.base.layers[-1].bias
    bias.assign([np.inf, 0, 0])
    with pytest.raises(FloatingPointError):
        model.fit(X, Y, batch_size=6, verbose=1)
    bias.assign([0, 0, 0])
    # Keras may read the logs of a step while the next one runs.
    assert re.search("nonfinite_steps [12] ", output.getvalue())


@pytest.mark.once
def test_a_file_has_one_line_of_an_epoch(models, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    models[4].fit(X, Y, batch_size=6, epochs=2, verbose=1)
    lines = sys.stdout.getvalue().splitlines()
    assert [line.split(" ")[0] for line in lines] == ["Epoch", "2/2"] * 2
    assert "\r" not in sys.stdout.getvalue()


@long_on("jax")
def test_it_is_shown_where_keras_shows_its_own(models, terminal):
    model = models[2]
    output = terminal(100)
    model.fit(X, Y, verbose=0)
    model.evaluate(X, Y, verbose=0)
    assert output.getvalue() == ""
    model.fit(X, Y, verbose=2)
    assert output.getvalue().count("\n") == 1
    model.evaluate(X, Y, 4)
    assert output.shown()[-1].startswith("3/3 ━")
    assert "accuracy 0." in output.shown()[-1]
    output = terminal(100)
    model.fit(X, Y, callbacks=keras.callbacks.ProgbarLogger(), verbose=1)
    assert "exit_1_accuracy: " in output.getvalue()
    assert " exits 0." not in output.getvalue()


@pytest.mark.once
def test_the_log_takes_it_where_the_user_sends_keras_there(models, terminal, caplog):
    output = terminal(100)
    keras.config.disable_interactive_logging()
    try:
        with caplog.at_level("INFO", logger="absl"):
            models[2].fit(X, Y, verbose=1)
    finally:
        keras.config.enable_interactive_logging()
    assert output.getvalue() == ""
    assert "ensemble 0." in caplog.text


@pytest.mark.once
def test_metrics_stand_as_they_were_compiled(terminal):
    model, output = wrapper(2), terminal(200)
    model.compile("sgd", "categorical_crossentropy", metrics=["mse", "mae"])
    logs = model.fit(X, np.eye(3)[Y], verbose=1).history
    (line,) = output.shown()
    assert line.endswith(
        f" mse {logs['mse'][0]:.4f} mae {logs['mae'][0]:.4f} ensemble "
        f"{logs['ensemble_mse'][0]:.4f}/{logs['ensemble_mae'][0]:.4f} exits "
        f"{logs['exit_1_mse'][0]:.2f}"
    )


@pytest.mark.parametrize("verbose", [1, 2])
def test_a_metric_with_a_value_for_each_class_is_shown_by_its_mean(terminal, verbose):
    model, output = wrapper(2), terminal(200)
    metrics = [keras.metrics.F1Score(name="f1")]
    model.compile("sgd", "categorical_crossentropy", metrics=metrics, run_eagerly=True)
    logs = model.fit(X, np.eye(3)[Y], verbose=verbose).history
    assert f" f1 {np.mean(logs['f1'][0]):.4f} " in output.shown()[-1]
    model.evaluate(X, np.eye(3)[Y], None, verbose)


@pytest.mark.once
def test_an_output_without_these_characters_gets_others(models, monkeypatch):
    content = io.BytesIO()
    output = io.TextIOWrapper(content, encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", output)
    # Where the line is too long, the bar is left out.
    monkeypatch.setenv("COLUMNS", "200")
    models[2].fit(X, Y, verbose=1)
    assert content.getvalue().startswith(b"1/1 ?")


@pytest.mark.once
def test_a_file_is_no_notebook(models, monkeypatch):
    class OutStream(Terminal):
        def isatty(self):
            return False

    monkeypatch.setattr("keras_selfdistill.training.logs.progress_bar._INTERVAL", 0)
    for module, rewritten in (("ipykernel.iostream", True), ("io", False)):
        OutStream.__module__ = module
        monkeypatch.setattr(sys, "stdout", OutStream())
        models[2].fit(X, Y, verbose=1)
        assert ("\r" in sys.stdout.getvalue()) == rewritten


@pytest.mark.once
def test_the_time_of_a_step_with_several_steps_in_a_call(models, monkeypatch):
    now = iter([0.0, 10.0, 30.0, 30.0])
    bar = ProgressBar()
    bar.set_params({"verbose": 2, "epochs": 1, "steps": 100})
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    bar.on_epoch_begin(0)
    bar.on_train_batch_end(49, {})
    bar.on_train_batch_end(99, {})
    assert bar._progress()[2] == "30s 400ms/step"


def test_the_bar_keeps_no_backend_waiting():
    """Else Keras would wait for the logs of each step."""
    callbacks = with_progress_bar([StopWithoutProgress()], 1)
    synchronous = keras.callbacks.CallbackList(callbacks)
    alone = keras.callbacks.CallbackList([])
    assert synchronous._async_train == alone._async_train
    assert synchronous._async_test == alone._async_test


def test_evaluate_takes_arguments_by_position(models, terminal):
    model = models[2]
    terminal(100)
    weights = np.arange(len(X)).astype("float32")
    by_name = model.evaluate(X, Y, sample_weight=weights, return_dict=True, verbose=0)
    found = model.evaluate(X, Y, 4, 0, weights, None, None, True)
    assert found == pytest.approx(by_name, rel=1e-5)
    bad = keras.callbacks.CallbackList([], model=model)
    with pytest.raises(ValueError, match="Labels are out of range"):
        model.evaluate(X, Y + 3, callbacks=bad, verbose=0)
