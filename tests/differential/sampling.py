"""The cases that are run: which parts of the tables go together, and a sample of them.

`RULES` and `BACKEND_RULES` are the only exclusions: each says why.
"""

import collections
import dataclasses
import functools
import itertools
import random

from .cases import (
    BACKEND,
    DTYPES,
    ENDS,
    FLOATS,
    FORMS,
    LOSSES,
    METRICS,
    OPTIONS,
    PLACES,
    REDUCTIONS,
    Case,
)


def _is_made(kind, loss):
    return isinstance(LOSSES[kind][loss], (type, tuple))


def _is_own(case):
    return case.loss in ("own", "named_ce")


def _has_metric(case, *names):
    return any(name in case.metrics for name in names)


# What is left out, and why: no legal use, one that plain Keras refuses, so that there
# is nothing to compare with, or one more name for another case.
RULES = {
    "soft labels are fractions": (
        lambda case: case.form == "soft" and case.dtype not in FLOATS
    ),
    "numbers are no booleans": (
        lambda case: ENDS[case.end].task == "regression" and case.dtype == "bool"
    ),
    "a string or Keras' own function takes logits for probabilities": (
        lambda case: (
            ENDS[case.end].from_logits
            and not _is_made(case.kind, case.loss)
            and not _is_own(case)
        )
    ),
    "these metrics read probabilities": (
        lambda case: (
            ENDS[case.end].from_logits
            and _has_metric(case, "auc", "multi_auc", "crossentropy", "smoothed")
        )
    ),
    "Keras' F1, R2 and AUC of labels read one row of predictions a sample": (
        lambda case: (
            _has_metric(case, "f1", "r2", "multi_auc")
            and (case.place != "sample" or case.form == "flat")
        )
    ),
    "Keras' IoU counts whole samples, and warns of weights": (
        lambda case: case.weighted_metrics and _has_metric(case, "iou", "mean_iou")
    ),
    "Keras weighs by class what has one class a sample": (
        lambda case: (
            case.weights == "class"
            and (
                case.place != "sample"
                or case.kind not in ("class", "one_hot", "binary")
            )
        )
    ),
    "Keras does not spread a sample's weight over positions": (
        lambda case: case.weights == "sample" and case.place != "sample"
    ),
    "a sample has no positions": (
        lambda case: case.weights == "position" and case.place == "sample"
    ),
    "of one unit and flat labels, Keras takes the mean over the last positions": (
        lambda case: (
            case.form == "flat"
            and ENDS[case.end].units == 1
            and (case.place == "steps" or case.weights == "position")
        )
    ),
    "without weights, both kinds of metrics are the same": (
        lambda case: case.weighted_metrics and case.weights == "none"
    ),
}
BACKEND_RULES = {
    "tensorflow": {
        "TensorFlow looks for the top of float32 alone": (
            lambda case: case.precision == "float64" and _has_metric(case, "top_k")
        ),
    },
    "jax": {
        "JAX has no 64 bits unless the whole process has": (
            lambda case: case.precision == "float64"
        ),
        "Keras clips probabilities below 1e-7, which the wrapper does not": (
            lambda case: (case.end, case.place) == ("many_classes", "pixels")
        ),
    },
    "torch": {
        "Keras has no uint64": lambda case: case.dtype == "uint64",
        "Keras takes one step at a time": lambda case: case.steps_per_execution > 1,
        "Keras cannot train a softmax of pixels: its gradient is not contiguous": (
            lambda case: (
                (case.place, case.kind) == ("pixels", "class")
                and ENDS[case.end].activation == "softmax"
                and not _is_own(case)
            )
        ),
        "Keras multiplies the weights of metrics by the mask of the loss, in place": (
            lambda case: (
                case.weighted_metrics
                and (case.place == "steps" or case.loss == "ignoring")
            )
        ),
    },
}


def excluded(case, backend=BACKEND):
    """Return the reason why a case is left out, or `None`."""
    rules = RULES | BACKEND_RULES[backend]
    return next((reason for reason, applies in rules.items() if applies(case)), None)


def draw(source):
    """Return a case at random, be it excluded or not."""
    end = source.choice(list(ENDS))
    kind = source.choice(ENDS[end].kinds)
    loss = source.choice(list(LOSSES[kind]))
    # A string or function has the one of Keras' default.
    reductions = REDUCTIONS if _is_made(kind, loss) else REDUCTIONS[:1]
    return Case(
        end=end,
        place=source.choice(PLACES),
        kind=kind,
        form=source.choice(FORMS[kind]),
        dtype=source.choice(DTYPES),
        loss=loss,
        reduction=source.choice(reductions),
        metrics=tuple(source.sample(list(METRICS[kind]), 2)),
        **{name: source.choice(values) for name, values in OPTIONS.items()},
    )


def sample(seed, count, backend=BACKEND):
    """Return cases that are not excluded, the same ones for the same seed."""
    source, found = random.Random(seed), {}
    while len(found) < count:
        case = draw(source)
        if not excluded(case, backend):
            found[case] = None
    return list(found)


def pairs(case):
    """Return every two of a case's values, those of different tables together.

    What depends on the kind of labels (forms, losses, metrics) is named with it.
    """
    values = []
    for field in dataclasses.fields(case):
        value = getattr(case, field.name)
        if field.name == "metrics":
            values += [(field.name, case.kind, metric) for metric in value]
        elif field.name in ("form", "loss"):
            values.append((field.name, case.kind, value))
        elif field.name != "kind":
            values.append((field.name, value))
    return {*map(frozenset, itertools.combinations(values, 2))}


@functools.cache
def covering(backend=BACKEND, draws=150_000):
    """Return cases in which every two values meet that ever met in so many draws."""
    source, met, found = random.Random("covering"), set(), []
    for case in (draw(source) for _ in range(draws)):
        if not excluded(case, backend) and not pairs(case) <= met:
            met |= pairs(case)
            found.append(case)
    # Later cases made some of the earlier ones needless.
    counts = collections.Counter(pair for case in found for pair in pairs(case))
    needed = []
    for case in found:
        if any(counts[pair] == 1 for pair in pairs(case)):
            needed.append(case)
        else:
            counts.subtract(pairs(case))
    return needed
