"""`report`: quality and cost of every exit, from one pass over the data."""

import dataclasses
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from absl import logging

from keras_selfdistill import heads
from keras_selfdistill.costs.counting import Count, macs_ratio
from keras_selfdistill.costs.input_shapes import shapes_of
from keras_selfdistill.costs.latency import WARM_UP, median_milliseconds, model_call
from keras_selfdistill.evaluation.data_adapter import DataAdapter
from keras_selfdistill.evaluation.quality import BatchPredictions, Sums, flat_labels
from keras_selfdistill.reporting.evaluated_model import (
    CompiledLogits,
    EvaluatedModel,
    evaluated_model,
)
from keras_selfdistill.reporting.profile import Cost, Profile, profile_at
from keras_selfdistill.reporting.report_result import PLAIN, Report, Row
from keras_selfdistill.training.distiller import SelfDistiller
from keras_selfdistill.utils.type_aliases import Data


def report(
    model: keras.Model,
    data: Data,
    *,
    base: keras.Model | None = None,
    task: str | None = None,
    batch_size: int = 32,
    latency_batch_size: int = 1,
    repeats: int = 20,
    verbose: int = 1,
) -> Report:
    """Measure the quality and the cost of every exit and of the ensemble.

    The data is read once, and each batch is run once through all exits. All samples
    have the same weight; sample weights in the data are ignored.

    Args:
        model: A `SelfDistiller`, or a plain functional or Sequential model, which has
            the single exit `final`.
        data: Arrays `(x, y)`; or a `tf.data.Dataset`, a PyTorch `DataLoader`, a
            `keras.utils.PyDataset` or a generator of batches `(x, y)`.
        base: The same network trained without self-distillation, for a row of its own.
        task: Task of a plain model whose last layer does not imply one.
        batch_size: Number of samples per batch, if `data` is arrays.
        latency_batch_size: Number of samples in a call whose latency is measured.
        repeats: Number of latency measurements per exit; 0 for none.
        verbose: 0 for no output, 1 for a progress bar.

    Returns:
        A `Report`, which prints as a table.

    Raises:
        TypeError: `data` is of an unknown type, or a model is not functional.
        ValueError: Labels are missing or do not fit the task; or `base` does not have
            the shapes of the wrapper's base.

    Example:
        >>> import keras_selfdistill as ksd
        >>> keras.utils.set_random_seed(0)
        >>> base = ksd.networks.resnet18(width_multiplier=0.125, classes=10)
        >>> model = ksd.SelfDistiller(base, taps=1, recipe="byot")
        >>> x, y = keras.ops.zeros((8, 32, 32, 3)), keras.ops.arange(8)
        >>> found = ksd.report(model, (x, y), repeats=0, verbose=0)
        >>> found["exit_1"].accuracy, round(found["exit_1"].macs_ratio, 2)
        (0.125, 0.54)
        >>> found
        Report('resnet18', 8 samples, rows: ['exit_1', 'final', 'ensemble'])
    """
    _check_numbers(batch_size, latency_batch_size, repeats)
    evaluated = {"": evaluated_model(model, task)}
    if base is not None:
        evaluated[PLAIN] = _evaluated_base(base, evaluated[""])
    sums, sample, samples = _read(evaluated, data, batch_size, verbose)
    costs = {
        key: profile_at(each.model, shapes_of(each.base, sample))
        for key, each in evaluated.items()
    }
    of_base = costs[""]["final"]
    sample = [array[:latency_batch_size] for array in sample]
    times = _times(evaluated, sample, repeats, verbose)
    rows = []
    for name in sums:
        key, exit_name = (PLAIN, "final") if name == PLAIN else ("", name)
        quality = dataclasses.asdict(sums[name].quality())
        cost = _cost(evaluated[key], costs[key], exit_name, of_base)
        rows.append(Row(name=name, **quality, **cost, milliseconds=times.get(name)))
    first = evaluated[""]
    return Report(
        model=first.base.name,
        task=first.task.name,
        samples=samples,
        rows=tuple(rows),
        repeats=repeats,
        batch_size=len(sample[0]),
        device=_device(),
        heads=_other_heads(first.model),
    )


def _other_heads(model: keras.Model) -> str:
    """Return the heads of a wrapper as text, if they are not those of its recipe."""
    if not isinstance(model, SelfDistiller):
        return ""
    own = heads.get(model.recipe.head)
    return "" if model.head == own else f"{model.head}; the recipe's own: {own}"


def _check_numbers(batch_size: int, latency_batch_size: int, repeats: int) -> None:
    if batch_size < 1 or latency_batch_size < 1 or repeats < 0:
        raise ValueError(
            "Batch sizes must be at least 1 and `repeats` at least 0. Received: "
            f"batch_size={batch_size!r}, latency_batch_size={latency_batch_size!r}, "
            f"repeats={repeats!r}."
        )


def _evaluated_base(base: keras.Model, wrapper: EvaluatedModel) -> EvaluatedModel:
    """Return the plain base as an `EvaluatedModel`, if it has the wrapper's shapes."""
    plain = evaluated_model(base, wrapper.task.name)
    shapes = [
        [tuple(tensor.shape) for tensor in [*each.base.inputs, each.base.outputs[0]]]
        for each in (plain, wrapper)
    ]
    if list(plain.logits) != ["final"] or shapes[0] != shapes[1]:
        raise ValueError(
            "`base` must be the same network as the wrapper's base, trained without "
            f"self-distillation. Received: {base.name!r} with inputs and output of "
            f"shapes {shapes[0]}. Expected: shapes {shapes[1]}, and not a wrapper."
        )
    return plain


def _read(
    evaluated: Mapping[str, EvaluatedModel], data: Data, batch_size: int, verbose: int
) -> tuple[dict[str, Sums], list[np.ndarray], int]:
    """Return the sums by row, the first batch and the number of samples."""
    logits_of = {key: CompiledLogits(each) for key, each in evaluated.items()}
    task = evaluated[""].task
    sums: dict[str, Sums] = {}
    sample, samples = None, 0
    batches, count = _batches(DataAdapter(evaluated[""].base), data, batch_size)
    bar = _bar(verbose, count, "batch")
    for number, (arrays, labels) in enumerate(batches, start=1):
        if labels is None:
            raise ValueError(
                "A report needs labels. Received: samples without labels. Expected: "
                "arrays (x, y), or batches (x, y)."
            )
        if not len(labels):
            continue
        sample = arrays if sample is None else sample
        samples += len(labels)
        expected = flat_labels(labels, task)
        predictions = {
            (key or name): BatchPredictions(logits, task)
            for key in reversed(logits_of)  # The plain base comes first.
            for name, logits in logits_of[key](arrays).items()
        }
        for name, each in predictions.items():
            final = None if len(predictions) == 1 else predictions["final"]
            sums.setdefault(name, Sums()).add(each, expected, final)
        bar.update(number, finalize=False)
    if sample is None:
        raise ValueError(
            "A report needs samples. Received: data without samples. Expected: at "
            "least one batch; a generator can be read only once."
        )
    bar.update(number, finalize=True)
    return sums, sample, samples


def _batches(
    adapter: DataAdapter, data: Data, batch_size: int
) -> tuple[Iterator[Any], int | None]:
    """Return batches of (arrays, labels), and their number; `None` if unknown."""
    if isinstance(data, tuple) and len(data) in (2, 3):
        ((arrays, targets),) = adapter.batches(*data[:2])
        labels = targets.labels
        starts = range(0, len(arrays[0]), batch_size)
        parts = (slice(start, start + batch_size) for start in starts)
        batches = (
            (
                [array[part] for array in arrays],
                None if labels is None else labels[part],
            )
            for part in parts
        )
        return batches, len(starts)
    if isinstance(data, (tuple, list, Mapping)) or hasattr(data, "dtype"):
        raise TypeError(
            f"Cannot read samples with labels. Received: data={data!r:.80} of type "
            f"{type(data).__name__}. Expected: a tuple (x, y) of arrays, or batches."
        )
    batches = ((arrays, targets.labels) for arrays, targets in adapter.batches(data))
    if isinstance(data, keras.utils.PyDataset):
        return batches, data.num_batches
    try:
        count = len(data)
    except TypeError:  # A generator, or a dataset of unknown length.
        count = None
    return batches, count


def _times(
    evaluated: Mapping[str, EvaluatedModel],
    sample: Sequence[np.ndarray],
    repeats: int,
    verbose: int,
) -> dict[str, float]:
    """Return the median latency of every row whose model can be deployed."""
    if not repeats:
        return {}
    calls = {}
    for key, each in evaluated.items():
        by_input = dict(zip(map(id, each.base.inputs), sample, strict=True))
        for name, model in each.models.items():
            arrays = [by_input[id(tensor)] for tensor in model.inputs]
            calls[key or name] = model_call(model, arrays)
    bar = _bar(verbose, repeats + WARM_UP, "latency round")
    return median_milliseconds(calls, repeats, bar.update)


def _cost(
    model: EvaluatedModel, costs: Profile, name: str, of_base: Cost
) -> dict[str, Any]:
    if name not in model.models:
        keys = ("parameters", "macs", "macs_ratio", "bytes")
        return {**dict.fromkeys(keys), "unknown": ()}
    cost = costs[name]
    ratio = macs_ratio(*(Count(each.macs, each.unknown) for each in (cost, of_base)))
    return {
        "parameters": cost.parameters,
        "macs": cost.macs,
        "macs_ratio": None if math.isnan(ratio) else ratio,
        "unknown": cost.unknown,
        "bytes": _size_on_disk(model.models[name]),
    }


def _size_on_disk(model: keras.Model) -> int | None:
    """Return the bytes of a model's `.keras` file; `None` if Keras cannot save it."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.keras")
        try:
            model.save(path)
        except (NotImplementedError, TypeError) as error:  # A layer of the user's.
            logging.warning("Keras cannot save %s, no file size: %s", model.name, error)
            return None
        return os.path.getsize(path)


class _Silence:
    """A progress bar that shows nothing."""

    def update(self, current: int, finalize: bool | None = None) -> None:
        """Show nothing."""


def _bar(verbose: int, target: int | None, unit: str) -> Any:
    if not verbose:
        return _Silence()
    return keras.utils.Progbar(target, unit_name=unit)


def _device() -> str:
    """Return the backend and its default device, such as `"tensorflow on CPU:0"`."""
    tensor = keras.ops.ones((1,))
    backend = keras.backend.backend()
    if backend == "jax":
        (device,) = tensor.devices()
        return f"jax on {device.platform}:{device.id}"
    return f"{backend} on {str(tensor.device).rsplit('device:', 1)[-1]}"
