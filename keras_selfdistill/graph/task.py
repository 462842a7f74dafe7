"""The task of a base, and the label shapes it takes: decided in this one place."""

import dataclasses

from keras_selfdistill.utils.config import did_you_mean
from keras_selfdistill.utils.type_aliases import Labels, Shape

TASKS = ("multiclass", "multilabel", "binary", "regression")

# Tasks that an activation allows; the first is the default.
_BY_ACTIVATION = {
    "softmax": ("multiclass",),
    "sigmoid": ("multilabel", "binary", "regression"),
    "linear": ("multiclass", "multilabel", "binary", "regression"),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What a base predicts for each sample.

    Args:
        name: `"multiclass"`: one class of several. `"multilabel"`: each label yes or
            no. `"binary"`: one label yes or no. `"regression"`: numbers.
        units: Number of classes, labels or numbers.
        activation: Name of the Keras activation from logits to outputs.
        positions: Axes between batch and units, such as height and width in
            segmentation; a size may be `None`.
    """

    name: str
    units: int
    activation: str
    positions: Shape = ()

    @property
    def compares(self) -> str:
        """What soft targets compare: `"logits"`, or the `"output"` of a regression."""
        return "output" if self.name == "regression" else "logits"

    def possible(self) -> tuple[str, ...]:
        """Return the tasks that a base with this activation and size may have.

        Example:
            >>> Task("binary", 1, "sigmoid").possible()
            ('binary', 'regression')
        """
        return _possible(self.activation, self.units)

    def check_labels(self, labels: Labels) -> None:
        """Check that labels have a shape that fits the task.

        Args:
            labels: Batch of labels.

        Raises:
            ValueError: `labels` is missing, a collection, or has another shape.

        Example:
            >>> import numpy as np
            >>> Task("multiclass", 10, "softmax").check_labels(np.zeros((8, 10)))
        """
        forms = self._label_forms()
        texts = [str(("batch", *form)).replace("'batch'", "batch") for form in forms]
        expected = (
            f"Expected: one array for all exits, of shape {' or '.join(texts)}, for "
            f"task {self.name!r}."
        )
        if getattr(getattr(labels, "shape", ()), "rank", 0) is None:
            return  # A tf.data.Dataset of unknown rank: the loss checks it.
        if not hasattr(labels, "shape"):
            raise ValueError(
                f"Received labels: {type(labels).__name__}. {expected} The wrapper "
                "passes the same labels to every exit."
            )
        shape = tuple(labels.shape)
        if not any(_fits(shape[1:], form) for form in forms) or not shape:
            raise ValueError(f"Received labels of shape {shape}. {expected}")

    def _label_forms(self) -> list[Shape]:
        """Return the shapes that labels of one sample may have."""
        numbers, single = (*self.positions, self.units), (*self.positions, 1)
        if self.name in ("multilabel", "regression") and self.units > 1:
            return [numbers]
        if self.name == "multiclass":
            return [self.positions, single, numbers]
        return [self.positions, single]


def decide_task(
    activation: str,
    shape: tuple[int | None, ...],
    requested: str | None,
    model_name: str,
) -> Task:
    """Return the task of a base, from its last activation or from the user's request.

    Softmax means multiclass. A sigmoid means binary for one unit, multilabel for
    several. If the base ends without an activation, several units are taken for logits
    of classes and a single one for a number; other tasks must be requested, and so must
    predictions at each position.

    Args:
        activation: Name of the Keras activation in which the base ends.
        shape: Shape of the base's output.
        requested: One of `TASKS`, or `None`.
        model_name: Name of the base, for error messages.

    Raises:
        ValueError: The requested task is unknown or does not fit the activation, or the
            task is ambiguous.

    Example:
        >>> decide_task("sigmoid", (None, 5), None, "tagger").name
        'multilabel'
    """
    positions, units = shape[1:-1], int(shape[-1] or 0)
    fitting = _possible(activation, units)
    received = (
        f"model {model_name!r}, which ends in activation {activation!r} with an output "
        f"of shape {tuple(shape)}"
    )
    if not fitting:
        raise ValueError(
            f"The output is constant: a softmax over one unit is always 1. Received: "
            f"{received}. Expected: activation 'sigmoid' for a binary label, 'linear' "
            "for a number, or a unit for each class."
        )
    if requested is not None and requested not in TASKS:
        raise ValueError(
            f"Unknown task. Received: task={requested!r}. Expected one of {TASKS}."
            f"{did_you_mean(str(requested), TASKS)}"
        )
    if requested is not None and requested not in fitting:
        raise ValueError(
            f"The base does not fit the task. Received: task={requested!r} and "
            f"{received}. Expected one of {fitting}."
        )
    task = requested
    if task is None:
        # One linear unit is more often a number than a logit.
        task = "regression" if (activation, units) == ("linear", 1) else fitting[0]
        if positions and activation == "linear":
            raise ValueError(
                f"The task of the base is ambiguous. Received: {received}. Expected: "
                "an output of shape (batch, classes), or task='multiclass' (or another "
                f"of {TASKS}) if it predicts at each position, or classes=10 to add "
                "pooling and a classifier."
            )
        if task == "regression" and activation != "linear":
            raise ValueError(
                f"Cannot find the logits of the base. Received: {received}. Expected: "
                "softmax, sigmoid or linear. Pass task='regression' if its output is "
                "numbers."
            )
    return Task(task, units, activation, tuple(positions))


def _possible(activation: str, units: int) -> tuple[str, ...]:
    """Return the tasks that an activation and its units allow, the likeliest first."""
    return tuple(
        task
        for task in _BY_ACTIVATION.get(activation, ("regression",))
        if not (task in ("multiclass", "multilabel") and units == 1)
        and not (task == "binary" and units != 1)
    )


def _fits(sizes: Shape, form: Shape) -> bool:
    return len(sizes) == len(form) and all(
        None in pair or pair[0] == pair[1] for pair in zip(sizes, form, strict=True)
    )
