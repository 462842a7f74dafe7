"""The tables of cases: what a training may be made of."""

import dataclasses

import keras
from keras import losses, metrics, ops

INTEGERS = tuple(f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64))
FLOATS = ("float16", "float32", "float64")
BACKEND = keras.backend.backend()


@dataclasses.dataclass(frozen=True)
class End:
    """How a base ends: its task, units, and activation."""

    task: str
    units: int
    activation: str
    kinds: tuple  # What its labels may be: see `Case.kind`.

    @property
    def from_logits(self):
        """Whether losses must be told that outputs are no probabilities."""
        return self.activation == "linear" and self.task != "regression"


ENDS = {
    "multiclass": End("multiclass", 3, "softmax", ("class", "one_hot")),
    "class_logits": End("multiclass", 3, "linear", ("class", "one_hot")),
    # More classes than a byte can count, where labels may be bytes.
    "many_classes": End("multiclass", 256, "softmax", ("class",)),
    "binary": End("binary", 1, "sigmoid", ("binary",)),
    "binary_logits": End("binary", 1, "linear", ("binary",)),
    "multilabel": End("multilabel", 3, "sigmoid", ("labels",)),
    "label_logits": End("multilabel", 3, "linear", ("labels",)),
    "number": End("regression", 1, "linear", ("number",)),
    "numbers": End("regression", 2, "linear", ("numbers",)),
}
# One prediction a sample, one a pixel, or one a time step, some of them masked.
PLACES = ("sample", "pixels", "steps")
# Without an axis of units; with one of length 1; with all units: hard labels, or soft.
FORMS = {
    "class": ("flat", "column"),
    "one_hot": ("rows", "soft"),
    "binary": ("flat", "column", "soft"),
    "labels": ("rows", "soft"),
    "number": ("flat", "column", "soft"),
    "numbers": ("rows", "soft"),
}
DTYPES = ("bool", *INTEGERS, *FLOATS)


class SquaredGap(metrics.Metric):
    """A user's metric with an argument that its config does not hold."""

    def __init__(self, unit=0, name="gap", **kwargs):
        super().__init__(name=name, **kwargs)
        self.unit = unit
        self.total = self.add_weight(name="total", initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        gap = ops.square(ops.cast(y_pred[..., self.unit], self.dtype) - 0.25)
        if sample_weight is not None:
            sample_weight = ops.cast(sample_weight, self.dtype)
            gap = gap * ops.reshape(
                sample_weight, (*sample_weight.shape, *[1] * 3)[: len(gap.shape)]
            )
        self.total.assign_add(ops.sum(gap))

    def result(self):
        return ops.multiply(self.total, 1.0)


def own_distance(y_true, y_pred):
    """A user's loss and metric: a plain function of what it is given."""
    y_true = ops.cast(y_true, y_pred.dtype)
    if len(y_true.shape) < len(y_pred.shape):
        y_true = ops.expand_dims(y_true, -1)
    return ops.mean(ops.abs(y_pred - y_true), axis=-1)


def own_crossentropy(y_true, y_pred):
    """A user's loss of labels by number."""
    y_true = ops.cast(y_true, "int32")
    chosen = ops.one_hot(
        ops.squeeze(y_true, -1) if len(y_true.shape) == len(y_pred.shape) else y_true,
        y_pred.shape[-1],
        dtype=y_pred.dtype,
    )
    return 1.0 - ops.sum(chosen * y_pred, axis=-1)


def ce(y_true, y_pred):
    """A user's loss whose name is one of Keras' shorthands."""
    return 2.0 * own_distance(y_true, y_pred)


# By kind of labels. Strings and functions are passed as they are; classes are made
# with the case's reduction and, if the base ends in logits, `from_logits`.
_YES_NO = {
    "string": "binary_crossentropy",
    "shorthand": "crossentropy",
    "function": losses.binary_crossentropy,
    "own": own_distance,
    "object": losses.BinaryCrossentropy,
    "smoothed": (losses.BinaryCrossentropy, {"label_smoothing": 0.2}),
    "focal": losses.BinaryFocalCrossentropy,
}
_NUMBERS = {
    "string": "mse",
    "long_string": "mean_absolute_error",
    "function": losses.mean_squared_error,
    "own": own_distance,
    "named_ce": ce,
    "object": losses.MeanSquaredError,
    "huber": (losses.Huber, {"delta": 0.3}),
    "log_cosh": losses.LogCosh,
}
LOSSES = {
    "class": {
        "string": "sparse_categorical_crossentropy",
        "shorthand": "crossentropy",
        "short": "ce",
        "function": losses.sparse_categorical_crossentropy,
        "own": own_crossentropy,
        "object": losses.SparseCategoricalCrossentropy,
        "ignoring": (losses.SparseCategoricalCrossentropy, {"ignore_class": 1}),
    },
    "one_hot": {
        "string": "categorical_crossentropy",
        "shorthand": "crossentropy",
        "short": "ce",
        "function": losses.categorical_crossentropy,
        "own": own_distance,
        "named_ce": ce,
        "object": losses.CategoricalCrossentropy,
        "smoothed": (losses.CategoricalCrossentropy, {"label_smoothing": 0.2}),
        "focal": losses.CategoricalFocalCrossentropy,
    },
    "binary": _YES_NO,
    "labels": _YES_NO,
    "number": _NUMBERS,
    "numbers": _NUMBERS,
}
REDUCTIONS = ("sum_over_batch_size", "sum", "mean", "mean_with_sample_weight")

_CLASS_METRICS = {
    "accuracy": "accuracy",
    "acc": "acc",
    "own": own_crossentropy,
    "user": (SquaredGap, {"unit": 1}),
}
_ROW_METRICS = {
    "accuracy": "accuracy",
    "acc": "acc",
    "auc": (metrics.AUC, {"num_thresholds": 7}),
    "own": own_distance,
    "user": (SquaredGap, {"unit": 1}),
    "precision": (metrics.Precision, {"class_id": 1, "thresholds": 0.4}),
    "recall": (metrics.Recall, {"class_id": 2, "thresholds": 0.3}),
}
METRICS = {
    "class": {
        **_CLASS_METRICS,
        "string": "sparse_categorical_accuracy",
        "crossentropy": "sparse_categorical_crossentropy",
        "top_k": (metrics.SparseTopKCategoricalAccuracy, {"k": 2}),
        "mean_iou": (metrics.MeanIoU, {"sparse_y_pred": False}),
        "iou": (metrics.IoU, {"target_class_ids": [0, 2], "sparse_y_pred": False}),
    },
    "one_hot": {
        **_ROW_METRICS,
        "string": "categorical_accuracy",
        "f1": (metrics.F1Score, {"average": "macro"}),
        "top_k": (metrics.TopKCategoricalAccuracy, {"k": 2}),
        "iou": (metrics.OneHotIoU, {"target_class_ids": [0, 2]}),
        "smoothed": (metrics.CategoricalCrossentropy, {"label_smoothing": 0.2}),
    },
    "binary": {
        "accuracy": "accuracy",
        "acc": "acc",
        "auc": (metrics.AUC, {"num_thresholds": 7}),
        "own": own_distance,
        "user": SquaredGap,
        "string": "binary_accuracy",
        "f1": (metrics.F1Score, {"threshold": 0.45}),
        "precision": metrics.Precision,
        "iou": (metrics.BinaryIoU, {"target_class_ids": [1], "threshold": 0.45}),
    },
    "labels": {
        **_ROW_METRICS,
        "string": "binary_accuracy",
        "f1": (metrics.F1Score, {"threshold": 0.45, "average": "weighted"}),
        "multi_auc": (
            metrics.AUC,
            {"num_thresholds": 7, "multi_label": True, "num_labels": 3},
        ),
    },
    "number": {
        "string": "mse",
        "own": own_distance,
        "user": SquaredGap,
        "root": metrics.RootMeanSquaredError,
        "r2": metrics.R2Score,
    },
    "numbers": {
        "string": "mae",
        "own": own_distance,
        "user": (SquaredGap, {"unit": 1}),
        "root": metrics.RootMeanSquaredError,
        "r2": (metrics.R2Score, {"class_aggregation": "variance_weighted_average"}),
        "cosine": metrics.CosineSimilarity,
    },
}

OPTIONS = {
    "weights": ("none", "none", "sample", "position", "class"),
    "weighted_metrics": (False, True),
    "validation": (False, False, True),
    "accumulation": (1, 2),
    "steps_per_execution": (1, 1, 1, 2),
    "ema": (False, False, True),
    "precision": ("float32",) * 4 + ("mixed_float16", "mixed_bfloat16", "float64"),
    "compiled": (False,) * 19 + (True,),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One training; every field is a key or a value of the tables above."""

    end: str
    place: str
    kind: str
    form: str
    dtype: str
    loss: str
    reduction: str
    metrics: tuple
    weights: str
    weighted_metrics: bool
    validation: bool
    accumulation: int
    steps_per_execution: int
    ema: bool
    precision: str
    compiled: bool

    def __str__(self):
        return "-".join(
            name
            if value is True
            else f"{name}={'+'.join(value) if isinstance(value, tuple) else value}"
            for name, value in dataclasses.asdict(self).items()
            if (name != "kind" and value not in ("none", 1, False)) or value is True
        )


def _needs_logits(case):
    made = isinstance(LOSSES[case.kind][case.loss], (type, tuple))
    return ENDS[case.end].from_logits and not made


def _wants_probabilities(case):
    chosen = {"auc", "multi_auc", "crossentropy", "smoothed"} & set(case.metrics)
    return ENDS[case.end].activation == "linear" and chosen
