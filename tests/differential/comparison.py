"""Three steps of both models of a case, and what differs after them."""

import contextlib

import keras
import numpy as np

from .reference import (
    BATCH,
    CLASS_WEIGHTS,
    EXITS,
    LOSS_WEIGHTS,
    OUTPUTS,
    SAMPLES,
    compile_both,
    data,
    held_out,
    models,
    weight_of_each,
)

# Relative and absolute, by precision: both models compute the same in the same order,
# but for the last bits that a compiler, or log-softmax in place of a logarithm, moves.
TOLERANCE = {
    "float32": (1e-4, 1e-5),
    "float64": (1e-5, 1e-6),  # Keras' metrics stay in float32.
    "mixed_float16": (1e-2, 2e-3),
    "mixed_bfloat16": (5e-2, 1e-2),
}


def differences(case):
    """Return a line for everything in which the wrapper differs from the plain model.

    That is every weight after three steps, every log of `fit` and of `evaluate`, and
    every name of a log that one of them alone has.
    """
    with _precision(case.precision):
        pair = models(case.end, case.place, case.precision)
        _reset(pair)
        compile_both(pair, case)
        found = _run(pair, case)
    relative, absolute = TOLERANCE[case.precision]
    return [
        f"{name}: {ours} by the wrapper, {theirs} by hand"
        for name, ours, theirs in found
        if ours is None
        or theirs is None
        or not np.allclose(ours, theirs, relative, absolute, equal_nan=True)
    ]


@contextlib.contextmanager
def _precision(name):
    """Set a precision for all that is made inside."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    if name == "float64":
        keras.config.set_floatx(name)
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def _reset(pair):
    """Give both models the weights that the plain one began with."""
    pair.plain.set_weights(pair.start)
    for layer in _weighted_layers(pair):
        pair.wrapper.get_layer(layer.name).set_weights(layer.get_weights())


def _weighted_layers(pair):
    return [layer for layer in pair.plain.layers if layer.weights]


def _run(pair, case):
    """Return triples of name, the wrapper's value and the plain model's."""
    unseen = held_out(case)
    found = _same_logs("fit", *_train(pair, case, unseen))
    for layer in _weighted_layers(pair):
        own = pair.wrapper.get_layer(layer.name).get_weights()
        for variable, ours, theirs in zip(
            layer.weights, own, layer.get_weights(), strict=True
        ):
            found.append((f"{layer.name}/{variable.name}", ours, theirs))
    moved = max(
        np.abs(after - before).max()
        for before, after in zip(pair.start, pair.plain.get_weights(), strict=True)
    )
    found.append(("whether anything was trained", moved > 1e-3, True))
    return found + _same_logs("evaluate", *_evaluate(pair, unseen))


def _train(pair, case, unseen):
    """Fit both models, and return the logs of each."""
    x, y, weights = data(case, SAMPLES, seed=1)
    both = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    own, by_output = {}, {}
    if case.weights == "class":
        own["class_weight"] = CLASS_WEIGHTS
        weights = weight_of_each(y)
    elif weights is not None:
        own["sample_weight"] = weights
    if weights is not None:
        by_output["sample_weight"] = dict.fromkeys(OUTPUTS, weights)
    if case.validation:
        given = [each for each in unseen if each is not None]
        own["validation_data"] = tuple(given)
        by_output["validation_data"] = (
            given[0],
            *(dict.fromkeys(OUTPUTS, each) for each in given[1:]),
        )
    labels = dict.fromkeys(OUTPUTS, y)
    return (
        _last(pair.wrapper.fit(x, y, **both, **own)),
        _last(pair.plain.fit(x, labels, **both, **by_output)),
    )


def _last(history):
    return {name: values[-1] for name, values in history.history.items()}


def _evaluate(pair, unseen):
    """Evaluate both models, and return the logs of each."""
    x, y, weights = unseen
    both = {"batch_size": BATCH, "verbose": 0, "return_dict": True}
    named = None if weights is None else dict.fromkeys(OUTPUTS, weights)
    labels = dict.fromkeys(OUTPUTS, y)
    return (
        pair.wrapper.evaluate(x, y, sample_weight=weights, **both),
        pair.plain.evaluate(x, labels, sample_weight=named, **both),
    )


def _same_logs(where, ours, theirs):
    """Return triples of all logs, those of the plain model renamed as documented."""
    theirs = dict(theirs)
    for prefix in ("", "val_") if "val_loss" in theirs else ("",):
        theirs[f"{prefix}label_loss"] = sum(
            LOSS_WEIGHTS[name] * theirs.pop(f"{prefix}{name}_loss") for name in EXITS
        )
    theirs = {name.replace("final_", "", 1): each for name, each in theirs.items()}
    if where == "fit":
        theirs["nonfinite_steps"] = 0.0
    names = sorted({*ours, *theirs})
    return [(f"{where} {name}", ours.get(name), theirs.get(name)) for name in names]
