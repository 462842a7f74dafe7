"""`report`: how good every exit is and what it costs, from one pass over data."""

import dataclasses
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import keras
from absl import logging

from keras_selfdistill.costs.input_shapes import shapes_of
from keras_selfdistill.evaluation.data_adapter import DataAdapter
from keras_selfdistill.evaluation.quality import BatchPredictions, Sums, flat_labels
from keras_selfdistill.reporting.latency import WARM_UP, median_milliseconds
from keras_selfdistill.reporting.profile import macs_ratio, profile_at
from keras_selfdistill.reporting.report_result import PLAIN, Report, Row
from keras_selfdistill.reporting.subject import (
    CompiledLogits,
    EvaluatedModel,
    evaluated_model,
)


def report(
    model: Any,
    data: Any,
    *,
    base: Any = None,
    task: str | None = None,
    batch_size: int = 32,
    latency_batch_size: int = 1,
    repeats: int = 20,
    verbose: int = 1,
) -> Report:
    """Measure every exit and the ensemble: how good they are and what they cost.

    The data is read once; all exits answer together. Samples count alike: weights that
    come with the data are not read.

    Args:
        model: A `SelfDistiller`, or a plain functional or Sequential model, which is
            one exit, `final`.
        data: Arrays `(x, y)`; or a `tf.data.Dataset`, a PyTorch `DataLoader`, a
            `keras.utils.PyDataset` or a generator of batches `(x, y)`.
        base: The same network trained plainly, for a row of its own.
        task: Of a plain model whose end does not say what it answers.
        batch_size: Samples that are computed at once, of arrays.
        latency_batch_size: Samples in a call whose latency is measured.
        repeats: How often each is measured; with 0, latency is not.
        verbose: 0 for silence, else a progress bar.

    Raises:
        TypeError: `data` is of no kind that is known, or a model has no graph.
        ValueError: Labels are missing or do not fit the task; or the base does not fit.

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
    subjects = {"": evaluated_model(model, task)}
    if base is not None:
        subjects[PLAIN] = _fitting(base, subjects[""])
    sums, sample, samples = _read(subjects, data, batch_size, verbose)
    costs = {
        key: profile_at(subject.model, shapes_of(subject.base, sample))
        for key, subject in subjects.items()
    }
    of_base = costs[""]["final"]
    sample = [array[:latency_batch_size] for array in sample]
    times = _times(subjects, sample, repeats, verbose)
    rows = []
    for name in sums:
        key, exit_name = (PLAIN, "final") if name == PLAIN else ("", name)
        quality = dataclasses.asdict(sums[name].quality())
        cost = _cost(subjects[key], costs[key], exit_name, of_base)
        rows.append(Row(name=name, **quality, **cost, milliseconds=times.get(name)))
    first = subjects[""]
    return Report(
        model=first.base.name,
        task=first.task.name,
        samples=samples,
        rows=tuple(rows),
        repeats=repeats,
        batch_size=len(sample[0]),
        device=_device(),
    )


def _check_numbers(batch_size, latency_batch_size, repeats):
    if batch_size < 1 or latency_batch_size < 1 or repeats < 0:
        raise ValueError(
            "Batch sizes must be at least 1 and `repeats` at least 0. Received: "
            f"batch_size={batch_size!r}, latency_batch_size={latency_batch_size!r}, "
            f"repeats={repeats!r}."
        )


def _fitting(base, subject):
    """Return the plain base as a subject, if its shapes are those of the other."""
    plain = evaluated_model(base, subject.task.name)
    shapes = [
        [tuple(tensor.shape) for tensor in [*each.base.inputs, each.base.outputs[0]]]
        for each in (plain, subject)
    ]
    if list(plain.logits) != ["final"] or shapes[0] != shapes[1]:
        raise ValueError(
            "`base` must be the same network as the wrapper's, trained plainly. "
            f"Received: {base.name!r} with inputs and output of shapes {shapes[0]}. "
            f"Expected: {shapes[1]}, and no wrapper."
        )
    return plain


def _read(subjects, data, batch_size, verbose):
    """Return (sums by row, first batch, number of samples)."""
    networks = {key: CompiledLogits(subject) for key, subject in subjects.items()}
    task = subjects[""].task
    sums: dict[str, Sums] = {}
    sample, samples = None, 0
    batches, count = _batches(DataAdapter(subjects[""].base), data, batch_size)
    bar = _bar(verbose, count, "batch")
    for number, (arrays, labels) in enumerate(batches, start=1):
        if labels is None:
            raise ValueError(
                "A report needs labels. Received: samples without. Expected: arrays "
                "(x, y), or batches (x, y)."
            )
        if not len(labels):
            continue
        sample = arrays if sample is None else sample
        samples += len(labels)
        expected = flat_labels(labels, task)
        answers = {
            (key or name): BatchPredictions(logits, task)
            # The plain base comes first.
            for key in reversed(networks)
            for name, logits in networks[key](arrays).items()
        }
        for name, each in answers.items():
            final = None if len(answers) == 1 else answers["final"]
            sums.setdefault(name, Sums()).add(each, expected, final)
        bar.update(number, finalize=False)
    if sample is None:
        raise ValueError(
            "A report needs samples. Received: data without any. Expected: at least "
            "one batch; a generator that was read before gives none."
        )
    bar.update(number, finalize=True)
    return sums, sample, samples


def _batches(feeder, data, batch_size) -> tuple[Iterator[Any], int | None]:
    """Return batches of (arrays, labels), and how many there are, if that is known."""
    if isinstance(data, tuple) and len(data) in (2, 3):
        ((arrays, labels),) = feeder.batches(*data[:2])
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
    if isinstance(data, keras.utils.PyDataset):
        return feeder.batches(data), data.num_batches
    try:
        count = len(data)
    except TypeError:  # A generator, or a set that does not know its length.
        count = None
    return feeder.batches(data), count


def _times(subjects, sample, repeats, verbose):
    """Return the median time of every row whose model can be deployed."""
    if not repeats:
        return {}
    calls = {}
    for key, subject in subjects.items():
        by_input = dict(zip(map(id, subject.base.inputs), sample, strict=True))
        for name, model in subject.models.items():
            arrays = [by_input[id(tensor)] for tensor in model.inputs]
            calls[key or name] = (model, arrays)
    bar = _bar(verbose, repeats + WARM_UP, "latency round")
    return median_milliseconds(calls, repeats, bar.update)


def _cost(subject: EvaluatedModel, costs, name, of_base):
    if name not in subject.models:
        unknown: dict[str, Any] = {"unknown": ()}
        keys = ("parameters", "macs", "macs_ratio", "bytes")
        return {**dict.fromkeys(keys), **unknown}
    cost = costs[name]
    ratio = macs_ratio(cost, of_base)
    return {
        "parameters": cost.parameters,
        "macs": cost.macs,
        "macs_ratio": None if math.isnan(ratio) else ratio,
        "unknown": cost.unknown,
        "bytes": _size_on_disk(subject.models[name]),
    }


def _size_on_disk(model):
    """Return the bytes of a model's `.keras` file; `None` if Keras cannot save it."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.keras")
        try:
            model.save(path)
        except (NotImplementedError, TypeError) as error:  # Of a layer's own making.
            logging.warning("%s has no size on disk: %s", model.name, error)
            return None
        return os.path.getsize(path)


class _Silence:
    """A progress bar that shows nothing."""

    def update(self, current, finalize=None):
        """Show nothing."""


def _bar(verbose, target, unit):
    if not verbose:
        return _Silence()
    return keras.utils.Progbar(target, unit_name=unit)


def _device():
    """Return where the backend computes, such as `"tensorflow on CPU:0"`."""
    tensor = keras.ops.ones((1,))
    backend = keras.backend.backend()
    if backend == "jax":
        (device,) = tensor.devices()
        return f"jax on {device.platform}:{device.id}"
    return f"{backend} on {str(tensor.device).rsplit('device:', 1)[-1]}"
