"""Read samples from arrays, datasets, loaders and generators, as NumPy arrays."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_selfdistill.backend.tensors import to_numpy
from keras_selfdistill.utils.config import did_you_mean
from keras_selfdistill.utils.type_aliases import Data, Labels, SymbolicTensor, Tensor


class Targets(NamedTuple):
    """What a batch has beside its inputs.

    Args:
        samples: Number of samples.
        labels: Labels, if there are any.
        sample_weight: Sample weights as they were given, if there are any.
    """

    samples: int
    labels: np.ndarray | None = None
    sample_weight: Tensor | None = None


class DataAdapter:
    """Converts user data into lists of arrays, one for each input of a base.

    Args:
        base: Functional or Sequential model.
    """

    def __init__(self, base: keras.Model) -> None:
        self._inputs = list(base.inputs)
        structure = None if isinstance(base, keras.Sequential) else base.input
        self._keys = [tensor.name for tensor in self._inputs]
        if isinstance(structure, dict):
            names = {id(tensor): name for name, tensor in structure.items()}
            self._keys = [names[id(tensor)] for tensor in self._inputs]

    def batches(
        self, x: Data, y: Labels | None = None, sample_weight: Tensor | None = None
    ) -> Iterator[tuple[list[np.ndarray], Targets]]:
        """Yield batches: arrays, one for each input of the base, and their targets.

        Args:
            x: Array; tuple, list or dict of arrays if the base has several inputs; or
                a `tf.data.Dataset`, a PyTorch `DataLoader`, a `keras.utils.PyDataset`
                or a generator of batches `x`, `(x, y)` or `(x, y, sample_weight)`.
            y: Labels, only if `x` holds arrays.
            sample_weight: Sample weights, only if `x` holds arrays.

        Raises:
            ValueError: Shapes, numbers of samples or keys do not match.
            TypeError: `x` is of an unknown type.
        """
        if self._is_arrays(x):
            yield self._checked(x, y, sample_weight)
            return
        for name, value in (("y", y), ("sample_weight", sample_weight)):
            if value is not None:
                raise ValueError(
                    f"`{name}` is only allowed with arrays. Received: x="
                    f"{type(x).__name__} and {name}={type(value).__name__}. Expected: "
                    "an x that yields (inputs, labels) or (inputs, labels, sample "
                    f"weights), and no {name}."
                )
        for batch in _iterate(x):
            # As in Keras: a tuple is (x, y, sample_weight); loaders also yield lists.
            if isinstance(batch, (tuple, list)):
                yield self._checked(*batch[:3])
            else:
                yield self._checked(batch)

    def arrays(self, x: Data) -> list[np.ndarray]:
        """Return one batch of arrays, one for each input; raise for all other data."""
        if not self._is_arrays(x):
            raise TypeError(
                f"Arrays are needed. Received: x of type {type(x).__name__}. Expected: "
                "an array with a batch axis, or a tuple or dict of arrays for several "
                "inputs. predict reads datasets."
            )
        return self._checked(x)[0]

    def _is_arrays(self, x: Data) -> bool:
        if isinstance(x, Mapping) or _is_array(x):
            return True
        # A list may also be a list of batches; only arrays can be the inputs.
        return isinstance(x, (tuple, list)) and all(map(_is_array, x)) and bool(x)

    def _checked(
        self, x: Data, y: Labels | None = None, sample_weight: Tensor | None = None
    ) -> tuple[list[np.ndarray], Targets]:
        arrays = [
            _as_input(value, tensor, key)
            for value, tensor, key in zip(
                self._in_order(x), self._inputs, self._keys, strict=True
            )
        ]
        rows = {key: len(array) for key, array in zip(self._keys, arrays, strict=True)}
        if y is not None:
            y = to_numpy(y)
            rows["labels"] = len(y)
        if len(set(rows.values())) > 1:
            raise ValueError(
                "All inputs and labels must have the same number of samples. Received: "
                f"{', '.join(f'{count} of {key!r}' for key, count in rows.items())}."
            )
        return arrays, Targets(rows[self._keys[0]], y, sample_weight)

    def _in_order(self, x: Data) -> list[Any]:
        if isinstance(x, Mapping):
            missing = [key for key in self._keys if key not in x]
            if missing:
                raise ValueError(
                    f"An input is missing. Received: a dict with keys {list(x)}. "
                    f"Expected: {self._keys}.{did_you_mean(missing[0], map(str, x))}"
                )
            return [x[key] for key in self._keys]
        values = list(x) if isinstance(x, (tuple, list)) else [x]
        if len(values) != len(self._inputs):
            raise ValueError(
                f"The base has {len(self._inputs)} inputs. Received: {len(values)} "
                f"arrays. Expected: one for each of {self._keys}, as a tuple in this "
                "order or as a dict."
            )
        return values


def _is_array(x: Data) -> bool:
    shaped = hasattr(x, "shape") and hasattr(x, "dtype")
    return shaped and not isinstance(x, keras.utils.PyDataset)


def _iterate(x: Data) -> Iterator[Any]:
    if isinstance(x, keras.utils.PyDataset):
        return (x[i] for i in range(x.num_batches))
    if isinstance(x, (str, bytes, list, tuple)) or not hasattr(x, "__iter__"):
        raise TypeError(
            f"Cannot read samples. Received: x={x!r:.80} of type {type(x).__name__}. "
            "Expected: an array, a tuple or dict of arrays for several inputs, a "
            "tf.data.Dataset, a PyTorch DataLoader, a keras.utils.PyDataset or a "
            "generator of batches."
        )
    return iter(x)


def _as_input(value: Tensor, tensor: SymbolicTensor, key: str) -> np.ndarray:
    array = to_numpy(value)
    wanted = tuple(tensor.shape[1:])
    fits = array.ndim == len(wanted) + 1 and all(
        size in (None, actual)
        for size, actual in zip(wanted, array.shape[1:], strict=False)
    )
    if not fits:
        sizes = ", ".join(str(size) for size in ("samples", *wanted))
        hint = " Add the batch axis: x[None]." if array.shape == wanted else ""
        raise ValueError(
            f"Input {key!r} has the wrong shape. Received: {array.shape}. Expected: "
            f"({sizes}).{hint}"
        )
    return np.asarray(array, dtype=keras.backend.standardize_dtype(tensor.dtype))


def class_indices(batches: Sequence[np.ndarray | None], classes: int) -> np.ndarray:
    """Return the labels of all batches as class indices, shape `(samples,)`.

    Args:
        batches: Labels of each batch: class indices, `(samples,)` or `(samples, 1)`, or
            one-hot labels, `(samples, classes)`.
        classes: Number of classes.

    Raises:
        ValueError: There are no labels, or they are not class labels.

    Example:
        >>> class_indices([np.array([[0, 1], [1, 0]])], 2).tolist()
        [1, 0]
    """
    given = [labels for labels in batches if labels is not None]
    if not given or len(given) < len(batches):
        raise ValueError(
            "Samples with labels are needed. Received: "
            f"{'no labels' if batches else 'no samples'}. Expected: arrays as two "
            "arguments, x and y, or a dataset of (inputs, labels)."
        )
    labels = np.concatenate(given)
    if labels.dtype.kind not in "biuf":
        raise ValueError(
            f"Labels must be numbers. Received: dtype {labels.dtype}. Expected: class "
            f"indices from 0 to {classes - 1}, or one-hot labels."
        )
    if labels.ndim == 2 and labels.shape[1] == classes:
        labels = labels.argmax(axis=-1)
    elif labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"Labels have the wrong shape. Received: {labels.shape}. Expected: class "
            f"indices of shape (samples,) or one-hot labels of shape (samples, "
            f"{classes}), of at least one sample."
        )
    if not np.isin(labels, np.arange(classes)).all():
        raise ValueError(
            f"Labels are out of range. Received: values from {labels.min()} to "
            f"{labels.max()}. Expected: integers from 0 to {classes - 1}."
        )
    return labels


def sample_weights(batches: Sequence[Targets]) -> np.ndarray:
    """Return the sample weights of all batches, shape `(samples,)`.

    As in Keras, samples without a weight have weight 1.

    Args:
        batches: Targets with weights of shape `(samples,)` or `(samples, 1)`, or with
            none.

    Raises:
        ValueError: The weights are not one number of at least 0 for each sample.

    Example:
        >>> weighted = Targets(2, sample_weight=np.array([0.5, 2.0]))
        >>> sample_weights([weighted, Targets(2)]).tolist()
        [0.5, 2.0, 1.0, 1.0]
    """
    return np.concatenate([_weights_of(*targets) for targets in batches])


def _weights_of(samples: int, _: Labels, weights: Tensor | None) -> np.ndarray:
    if weights is None:
        return np.ones(samples)
    weights = to_numpy(weights)
    numbers = weights.dtype.kind in "biuf"
    if not numbers or weights.shape not in ((samples,), (samples, 1)):
        raise ValueError(
            "Sample weights do not match the samples. Received: shape "
            f"{weights.shape} and dtype {weights.dtype}. Expected: one number for each "
            f"sample, shape ({samples},)."
        )
    if not (weights >= 0).all():
        raise ValueError(
            "Sample weights are out of range. Received: values from "
            f"{weights.min()} to {weights.max()}. Expected: numbers of at least 0."
        )
    return weights.reshape(samples).astype("float64")


def correct_predictions(outputs: Tensor, labels: Labels) -> np.ndarray:
    """Return which samples a classifier predicts correctly, shape `(samples,)`.

    A prediction with a NaN is never correct.

    Args:
        outputs: Logits or probabilities, shape `(samples, classes)`.
        labels: Class indices or one-hot labels, as in `class_indices`.

    Raises:
        ValueError: The shapes do not match, or labels are out of range.

    Example:
        >>> correct_predictions(np.eye(3), [0, 1, 0]).tolist()
        [True, True, False]
    """
    labels = np.asarray(labels)
    if getattr(outputs, "ndim", None) != 2 or outputs.shape[1] < 2:
        raise ValueError(
            "A classifier with one output is needed. Received: outputs of shape "
            f"{keras.tree.map_structure(np.shape, outputs)}. Expected: shape (samples, "
            "classes), of two classes or more. For a wrapper, pass its final_model(), "
            "exit_model(name) or ensemble_model()."
        )
    if len(outputs) != len(labels):
        raise ValueError(
            "Each sample needs a label. Received: outputs of shape "
            f"{tuple(outputs.shape)} and labels of shape {labels.shape}. Expected: the "
            "same number of samples."
        )
    return best_classes(outputs) == class_indices([labels], outputs.shape[1])


def best_classes(outputs: Tensor) -> np.ndarray:
    """Return the index of the largest output, -1 where one is NaN.

    Args:
        outputs: Logits or probabilities, shape `(..., classes)`.

    Example:
        >>> best_classes(np.array([[0.2, 0.8], [np.nan, 0.5]])).tolist()
        [1, -1]
    """
    outputs = np.asarray(outputs)
    return np.where(np.isnan(outputs).any(axis=-1), -1, outputs.argmax(axis=-1))
