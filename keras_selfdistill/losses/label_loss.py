"""The label loss: one Keras loss from the user, applied to every exit."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

from absl import logging
from keras import losses

from keras_selfdistill.graph.task import Task
from keras_selfdistill.losses import focal_loss
from keras_selfdistill.utils.config import unknown_name
from keras_selfdistill.utils.keras_internals import (
    loss_function,
    loss_of_function,
    object_name,
    with_loss_function,
)
from keras_selfdistill.utils.type_aliases import Labels, LossLike, Tensor

_SCALAR_REDUCTIONS = ("sum_over_batch_size", "sum", "mean", "mean_with_sample_weight")

# Loss functions that take class indices, and those that take one-hot labels.
SPARSE_LOSSES = (
    losses.sparse_categorical_crossentropy,
    losses.categorical_generalized_cross_entropy,
)
ONE_HOT_LOSSES = (
    losses.categorical_crossentropy,
    losses.categorical_focal_crossentropy,
    losses.categorical_hinge,
)
_BINARY = (losses.binary_crossentropy, losses.binary_focal_crossentropy)
# Loss functions with `from_logits`, by the activation they apply.
_READS_LOGITS: dict[str, tuple[Any, ...]] = {
    "softmax": (
        losses.sparse_categorical_crossentropy,
        losses.categorical_crossentropy,
        losses.categorical_focal_crossentropy,
    ),
    "sigmoid": _BINARY,
}
# Keras' focal losses clip even with `from_logits`: these replace them.
_UNCLIPPED = {
    losses.binary_focal_crossentropy: focal_loss.binary_focal_crossentropy,
    losses.categorical_focal_crossentropy: focal_loss.categorical_focal_crossentropy,
}
# Tasks that loss functions are for; other losses do not determine the task.
_TASKS = (
    ((*SPARSE_LOSSES, *ONE_HOT_LOSSES, losses.kl_divergence), ("multiclass",)),
    ((*_BINARY, losses.hinge, losses.squared_hinge), ("binary", "multilabel")),
    (
        (
            losses.mean_squared_error,
            losses.mean_absolute_error,
            losses.mean_absolute_percentage_error,
            losses.mean_squared_logarithmic_error,
            losses.huber,
            losses.log_cosh,
            losses.poisson,
            losses.cosine_similarity,
        ),
        ("regression",),
    ),
)
_KERAS = tuple(each for functions, _ in _TASKS for each in functions)


def as_loss(identifier: LossLike, task: Task) -> losses.Loss:
    """Return a Keras loss for anything that `compile` takes as the loss of one output.

    Args:
        identifier: Name, function `(y_true, y_pred) -> per-sample values`, or `Loss`.
        task: Task of the base; with one unit, `"crossentropy"` is the binary one.

    Raises:
        ValueError: The name is unknown, or the loss does not reduce to a scalar.
        TypeError: `identifier` is missing or a collection.

    Example:
        >>> as_loss("ce", Task("binary", 1, "sigmoid")).fn.__name__
        'binary_crossentropy'
    """
    if identifier is None or isinstance(identifier, (dict, list, tuple)):
        raise TypeError(
            "`compile` takes one loss, which is applied to every exit. Received: "
            f"loss={identifier!r}. Expected: the loss that you would pass for the "
            "base, e.g. loss='sparse_categorical_crossentropy'. The recipe weights the "
            "exits."
        )
    if isinstance(identifier, str) and identifier.lower() in ("crossentropy", "ce"):
        single = task.units == 1
        function = losses.binary_crossentropy if single else crossentropy
        return loss_of_function(function, identifier)
    try:
        loss = losses.get(identifier)
    except ValueError as error:
        raise unknown_name("loss", identifier, losses) from error
    if not isinstance(loss, losses.Loss):
        name = identifier if isinstance(identifier, str) else object_name(loss)
        return _named(loss, name)
    if loss.reduction not in _SCALAR_REDUCTIONS:
        raise ValueError(
            "The loss must reduce to a scalar. Received: a loss with "
            f"reduction={loss.reduction!r}. Expected one of {_SCALAR_REDUCTIONS}."
        )
    return loss


def _named(function: Callable[..., Tensor], name: str) -> losses.Loss:
    if (
        isinstance(function, functools.partial)
        and not function.args
        and is_one_of(function.func, _KERAS)
    ):
        return loss_of_function(function.func, name, **function.keywords)
    return loss_of_function(function, name)


def crossentropy(y_true: Labels, y_pred: Tensor, **options: Any) -> Tensor:
    """Return the crossentropy of each sample, for class indices or one-hot labels.

    Args:
        y_true: Labels, shape `(batch, *positions)`, `(batch, *positions, 1)` or
            `(batch, *positions, classes)`.
        y_pred: Outputs, shape `(batch, *positions, classes)`.
        options: Further arguments of Keras' crossentropies.
    """
    if is_sparse(y_true, y_pred):
        return losses.sparse_categorical_crossentropy(y_true, y_pred, **options)
    return losses.categorical_crossentropy(y_true, y_pred, **options)


def is_sparse(labels: Labels, outputs: Tensor) -> bool:
    """Return whether labels are class indices, `(batch,)` or `(batch, 1)`."""
    return len(labels.shape) < len(outputs.shape) or labels.shape[-1] == 1


def on_logits(loss: losses.Loss, task: Task) -> losses.Loss | None:
    """Return the version of a loss that takes logits instead of outputs.

    Computed from probabilities, a crossentropy is clipped at 16.1 and has no gradient
    beyond; only TensorFlow recovers the logits from the graph.

    Args:
        loss: The user's loss; it is not changed.
        task: Task with the activation from logits to outputs.

    Returns:
        A copy of the loss that reads logits; `None` if the loss cannot, already does,
        or expects outputs of another activation.

    Example:
        >>> task = Task("multiclass", 10, "softmax")
        >>> smoothed = losses.CategoricalCrossentropy(label_smoothing=0.1)
        >>> found = on_logits(smoothed, task)
        >>> loss_function(found)[1]["from_logits"], found.label_smoothing
        (True, 0.1)
    """
    readers = _READS_LOGITS.get(task.activation, ())
    function, options = loss_function(loss)
    if function is crossentropy:
        reads = task.activation == "softmax"
    else:
        axes = (-1, 1 + len(task.positions))  # Two names of the last one.
        last = readers is _BINARY or options.get("axis", -1) in axes
        reads = is_one_of(function, readers) and last
    if not reads or options.get("from_logits"):
        return None
    if function in _UNCLIPPED:
        others = {key: each for key, each in options.items() if key != "from_logits"}
        return with_loss_function(loss, _UNCLIPPED[function], others)
    return with_loss_function(loss, function, {**options, "from_logits": True})


def warn_of_logits(loss: losses.Loss, task: Task) -> None:
    """Warn of a crossentropy that takes the logits of the base for probabilities.

    Keras computes it all the same, from clipped logits, which train next to nothing.

    Args:
        loss: The user's loss.
        task: Task of the base.
    """
    function, options = loss_function(loss)
    readers = [each for group in _READS_LOGITS.values() for each in group]
    if (
        task.activation == "linear"
        and task.name != "regression"
        and is_one_of(function, [crossentropy, *readers])
        and not options.get("from_logits")
    ):
        logging.warning(
            "The base ends in logits, which loss %r reads as probabilities. Pass the "
            "loss as an object with from_logits=True, or end the base in softmax or "
            "sigmoid.",
            loss.name,
        )


def check_task(loss: losses.Loss, task: Task) -> None:
    """Refuse a loss that contradicts the task derived from a linear base.

    The task of such a base is ambiguous: its outputs may be logits or numbers. With a
    sigmoid, outputs are between 0 and 1 for every task, and no check is needed.

    Args:
        loss: The user's loss.
        task: Task derived from the end of the base, not requested by the user.

    Raises:
        ValueError: The loss is for another task that the base may have.

    Example:
        >>> check_task(losses.MeanSquaredError(), Task("regression", 1, "linear"))
    """
    meant = [each for each in _tasks_of(loss) if each in task.possible()]
    if task.activation != "linear" or not meant or task.name in meant:
        return
    raise ValueError(
        "The loss contradicts the task of the base. Received: "
        f"loss {loss.name!r}, for task {' or '.join(map(repr, meant))}, and a base "
        f"that ends in activation {task.activation!r} with {task.units} unit(s), which "
        f"is assumed to have task {task.name!r}. Expected: task={meant[0]!r} where the "
        f"base is wrapped or reported on, or task={task.name!r} to confirm."
    )


def _tasks_of(loss: losses.Loss) -> tuple[str, ...]:
    function, _ = loss_function(loss)
    if function is crossentropy:
        return ("multiclass",)
    for functions, tasks in _TASKS:
        if is_one_of(function, functions):
            return tasks
    return ()


def is_one_of(
    function: Callable[..., Tensor], functions: Iterable[Callable[..., Tensor]]
) -> bool:
    """Return whether a function is one of several, by identity."""
    return any(function is each for each in functions)
