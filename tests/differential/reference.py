"""What a case is made of: a wrapper, and the same exits as a plain Keras model by hand.

The plain model knows nothing of the package. Its inputs, labels, weights, losses and
metrics are given for each output by name.
"""

import functools
import math
import types

import keras
import numpy as np
from keras import layers

import keras_selfdistill as ksd

from .cases import BACKEND, ENDS, LOSSES, METRICS

EXITS = ("exit_1", "final")
OUTPUTS = (*EXITS, "ensemble")
LOSS_WEIGHTS = {"exit_1": 0.5, "final": 1.0}
BATCH, SAMPLES = 8, 24
SHAPES = {"sample": (5,), "pixels": (3, 3, 2), "steps": (6,)}
POSITIONS = {"sample": (), "pixels": (3, 3), "steps": (6,)}
RECIPE = ksd.recipes.DeepSupervision(exit_weight=0.5)


def _trunk(place):
    """Return the input of a base, its tap, and its last feature."""
    inputs = keras.Input(SHAPES[place], dtype="int32" if place == "steps" else None)
    x = inputs
    if place == "steps":
        x = layers.Embedding(9, 4, mask_zero=True, name="embedding")(x)
    if place == "pixels":
        tap = layers.Conv2D(4, 2, padding="same", activation="tanh", name="tap")(x)
    else:
        tap = layers.Dense(4, activation="tanh", name="tap")(x)
    x = layers.BatchNormalization(momentum=0.8, name="normalised")(tap)
    regularizer = keras.regularizers.L2(0.01)
    feature = layers.Dense(
        3, activation="relu", kernel_regularizer=regularizer, name="feature"
    )(x)
    return inputs, tap, feature


def base(end, place):
    """Return the model that a user would wrap."""
    inputs, _, feature = _trunk(place)
    end = ENDS[end]
    outputs = layers.Dense(end.units, end.activation, name="end", dtype=_wide())
    return keras.Model(inputs, outputs(feature))


def by_hand(end, place):
    """Return a plain model of the same base with the same exits and the ensemble."""
    inputs, tap, feature = _trunk(place)
    end = ENDS[end]
    logits = {"final": layers.Dense(end.units, name="end", dtype=_wide())(feature)}
    x = layers.Dense(3, activation="relu", name="exit_1_feature")(tap)
    logits["exit_1"] = layers.Dense(end.units, name="exit_1_logits", dtype=_wide())(x)
    logits["ensemble"] = layers.Average(name="mean_logits", dtype=_wide())(
        [logits[name] for name in EXITS]
    )
    outputs = {
        name: layers.Activation(end.activation, name=name, dtype=_wide())(each)
        for name, each in logits.items()
    }
    return keras.Model(inputs, outputs)


def _wide():
    """The dtype of logits and outputs: never less than that of the losses."""
    return keras.config.floatx()


@functools.cache
def models(end, place, precision):
    """Return a pair, built once: a wrapper, and the model by hand."""
    wrapper = ksd.SelfDistiller(
        base(end, place),
        ["tap"],
        RECIPE,
        head="pointwise" if place != "sample" else "linear",
        task=ENDS[end].task,
    )
    plain = by_hand(end, place)
    random = np.random.default_rng(3)
    start = [_start(random, variable) for variable in plain.weights]
    return types.SimpleNamespace(wrapper=wrapper, plain=plain, start=start)


def _start(random, variable):
    """Return first weights that no two layers share, and that tell classes apart."""
    value = random.normal(scale=0.7, size=variable.shape)
    return abs(value) + 0.5 if variable.name in ("gamma", "moving_variance") else value


def held_out(case):
    """Return the samples of an evaluation, the last batch of which is smaller.

    Not so if compiled: in a graph of TensorFlow, Keras does not know the size of a
    batch, and its means of each output's loss weigh all batches alike.
    """
    return data(case, 2 * BATCH - (0 if is_compiled(case) else BATCH // 2), seed=2)


def is_compiled(case):
    """Whether steps are compiled: on JAX always, where that takes less time."""
    return case.compiled or BACKEND == "jax"


def data(case, samples, seed):
    """Return inputs, labels and weights of samples, of positions, or `None`."""
    random = np.random.default_rng(seed)
    end, shape = ENDS[case.end], (samples, *POSITIONS[case.place])
    x = random.normal(size=(samples, *SHAPES[case.place]))
    if case.place == "steps":
        x = random.integers(1, 9, size=x.shape)
        x[:, 4:] *= random.integers(0, 2, size=(samples, 1))  # Padding, of token 0.
    y = _labels(case, end, shape, random).astype(case.dtype)
    weights = {
        "none": lambda: None,
        "class": lambda: None,
        "sample": lambda: random.uniform(0.2, 2.0, size=samples),
        "position": lambda: random.uniform(0.2, 2.0, size=shape),
    }[case.weights]()
    return x.astype("int32" if case.place == "steps" else "float32"), y, weights


def _labels(case, end, shape, random):
    if case.form == "soft":
        units = (end.units,)
        y = random.uniform(0.05, 0.95, size=(*shape, *units))
        return y / y.sum(-1, keepdims=True) if case.kind == "one_hot" else y
    if case.kind in ("class", "one_hot"):
        top = {"bool": 2, "int8": min(end.units, 128)}.get(case.dtype, end.units)
        y = random.integers(0, top, size=shape)
        if case.form == "rows":
            return np.eye(end.units)[y]
    else:
        top = 4 if end.task == "regression" else 2
        units = (end.units,) if case.form == "rows" else ()
        y = random.integers(0, top, size=(*shape, *units))
    return y[..., None] if case.form == "column" else y


CLASS_WEIGHTS = {0: 0.4, 1: 1.7, 2: 0.9}


def weight_of_each(y):
    """Return what class weights mean, by hand."""
    if y.ndim > 1:
        y = y.argmax(-1) if y.shape[-1] > 1 else y[:, 0]
    return np.array([CLASS_WEIGHTS.get(round(float(label)), 1.0) for label in y])


def make_loss(case):
    """Return a new loss, as a user would pass it."""
    made = LOSSES[case.kind][case.loss]
    if not isinstance(made, (type, tuple)):
        return made
    kind, options = made if isinstance(made, tuple) else (made, {})
    options = {"reduction": case.reduction, **options}
    if ENDS[case.end].from_logits:
        options["from_logits"] = True
    return kind(**options)


def make_metrics(case):
    """Return new metrics, as a user would pass them."""
    found = []
    for name in case.metrics:
        made = METRICS[case.kind][name]
        if isinstance(made, (type, tuple)):
            kind, options = made if isinstance(made, tuple) else (made, {})
            if name in ("iou", "mean_iou") and kind is not keras.metrics.BinaryIoU:
                options = {"num_classes": ENDS[case.end].units, **options}
            made = kind(name=name, **options)
        found.append(made)
    return found


def compile_both(pair, case):
    """Compile the wrapper as its base would be, and the plain model by output."""
    argument = "weighted_metrics" if case.weighted_metrics else "metrics"
    options = {"run_eagerly": not is_compiled(case)}
    pair.wrapper.compile(
        make_optimizer(case),
        make_loss(case),
        **{argument: make_metrics(case)},
        **options,
        steps_per_execution=case.steps_per_execution,
    )
    # One step at a time, which is the same: on TensorFlow, Keras' loop over several
    # does not wait for the weights of the step before. In 25 runs of one case, the loss
    # of the plain model was another one 7 times, that of the wrapper never.
    pair.plain.compile(
        make_optimizer(case),
        loss={name: make_loss(case) for name in EXITS},
        loss_weights=LOSS_WEIGHTS,
        **{argument: {name: make_metrics(case) for name in OUTPUTS}},
        **options,
    )


def make_optimizer(case):
    """Return a new optimizer: one whose steps grow with the gradient, and are small.

    The scale is one at which no case overflows: of a step that does, the wrapper keeps
    no moving statistics, as it documents, and Keras does.
    """
    positions = math.prod(POSITIONS[case.place])
    optimizer = keras.optimizers.SGD(
        0.05 / (BATCH * positions) if case.reduction == "sum" else 0.05,
        momentum=0.5,
        use_ema=case.ema,
        ema_momentum=0.7,
        gradient_accumulation_steps=case.accumulation
        if case.accumulation > 1
        else None,
    )
    if case.precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
    return optimizer
