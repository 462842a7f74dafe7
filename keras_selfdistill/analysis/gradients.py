"""Gradient magnitude by depth.

Zhang et al. (ICCV 2019, section 5): with exits at intermediate layers, layers near the
input get larger gradients than with a single loss at the end.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import keras
import numpy as np

from keras_selfdistill.graph.flatten import flatten
from keras_selfdistill.graph.nodes import model_nodes
from keras_selfdistill.graph.shells import original
from keras_selfdistill.training.distiller import SelfDistiller
from keras_selfdistill.training.logs.log_names import parse_log_names
from keras_selfdistill.training.nonfinite import DeferredUpdates
from keras_selfdistill.utils.table import elided
from keras_selfdistill.utils.type_aliases import (
    Axes,
    Data,
    Figure,
    Labels,
    Tensor,
    TensorStructure,
)
from keras_selfdistill.visualization import style
from keras_selfdistill.visualization.history import History, logs_of


@dataclasses.dataclass(frozen=True, repr=False)
class Gradients:
    """Mean magnitude of the gradient, by depth.

    Args:
        places: Names of the layers or sections, from the input to the output.
        magnitude: Mapping of model names to magnitudes of shape `(places,)`.
    """

    places: tuple[str, ...]
    magnitude: dict[str, np.ndarray]

    def __repr__(self) -> str:
        """Return the names of the models and the number of layers or sections."""
        return f"<Gradients of {elided(self.magnitude)} at {len(self.places)} places>"

    def plot(self, *, ax: Axes = None) -> Figure:
        """Draw the magnitudes by depth, on a logarithmic scale.

        Args:
            ax: Matplotlib axes to draw on.

        Returns:
            The `matplotlib.figure.Figure`.
        """
        ax = style.axes_of(ax)
        numbers = range(1, len(self.places) + 1)
        for name, look in style.series_styles(self.magnitude).items():
            ax.plot(
                numbers,
                self.magnitude[name],
                look.marker + look.line,
                color=look.color,
                linewidth=2,
                label=name,
            )
        ax.set_yscale("log")
        ax.set_ylabel("mean magnitude of the gradient")
        if len(self.places) <= 6:
            ax.set_xticks(numbers, self.places)
        else:
            ax.set_xlabel("layer with a kernel, counted from the input")
            style.whole_numbers(ax.xaxis)
        style.tidy(ax)
        ax.legend(frameon=False)
        return ax.figure


def logged_gradients(histories: Mapping[str, History]) -> Gradients:
    """Return the mean over epochs of the gradient magnitudes logged by section.

    Args:
        histories: Mapping of model names to the `History` that `fit` returned, or to
            its dict, of models compiled with `log_gradients=True`.

    Raises:
        ValueError: A history has no keys `section_1_gradient`, …, or the histories
            have different sections.

    Example:
        >>> history = {"section_1_gradient": [0.1, 0.3], "section_2_gradient": [0.4]}
        >>> found = logged_gradients({"byot": history})
        >>> found.places, found.magnitude["byot"].tolist()
        (('section_1', 'section_2'), [0.2, 0.4])
    """
    means = {}
    for name, history in histories.items():
        logs = logs_of(history)
        means[name] = {
            each.source: float(np.mean(logs[key]))
            for key, each in parse_log_names(logs).items()
            if each.quantity == "gradient" and not each.validation
        }
        if not means[name]:
            raise ValueError(
                f"The history {name!r} has no gradients. Received: keys "
                f"{list(logs)}. Expected: keys section_1_gradient, …, which are "
                "logged after compile(..., log_gradients=True)."
            )
    if len({tuple(each) for each in means.values()}) > 1:
        raise ValueError(
            "The histories must have the same sections. "
            f"Received: { {name: list(each) for name, each in means.items()} }. "
            "Expected: models with the same base, taps and trainable sections."
        )
    return _joined(means)


def gradients_by_depth(
    models: Mapping[str, keras.Model], x: Data, y: Labels, *, batch_size: int = 128
) -> Gradients:
    """Measure the mean gradient magnitude of every layer with a trainable kernel.

    This is |∂loss/∂w| of a batch in training mode, averaged over the trainable weights
    of a layer and over batches. No weight and no moving statistic changes.

    Args:
        models: Mapping of names to compiled functional models or wrappers. The layers
            of a wrapper are those of its base. All models must have the same number
            of layers.
        x: Inputs as arrays.
        y: Labels as arrays.
        batch_size: Number of samples per batch; the last batch may be smaller.

    Raises:
        ValueError: A model is not compiled, has another number of layers or no
            trainable layer; or there are no samples.

    Example:
        >>> layer = keras.layers.Dense(2, name="a")
        >>> base = keras.Sequential([keras.Input((4,)), layer])
        >>> base.compile("sgd", "mse")
        >>> gradients_by_depth({"plain": base}, np.ones((2, 4)), np.ones((2, 2))).places
        ('a',)
    """
    return _joined(
        {
            name: _of_model(model, x, y, batch_size, name)
            for name, model in models.items()
        }
    )


_Loss: TypeAlias = Callable[[list[Tensor]], Tensor]


def _of_model(
    model: keras.Model, x: Data, y: Labels, batch_size: int, name: str
) -> dict[str, float]:
    if not model.compiled:
        raise ValueError(
            f"Gradients need a loss. Received: model {name!r}, which is not compiled. "
            "Call compile(optimizer, loss) first."
        )
    layers = _layers(model)
    variables = [v for layer in layers.values() for v in layer.trainable_variables]
    samples = len(keras.tree.flatten(x)[0])
    if not samples or not layers:
        raise ValueError(
            f"Gradients need samples and trainable weights. Received: {samples} "
            f"samples, and {len(layers)} layers of {name!r} with a trainable kernel. "
            "Expected: at least one of each."
        )
    sums = np.zeros(len(variables))
    starts = range(0, samples, batch_size)
    for start in starts:
        batch = keras.tree.map_structure(
            lambda each, start=start: keras.ops.convert_to_tensor(
                each[start : start + batch_size]
            ),
            (x, y),
        )
        found = _gradients(model, batch, variables)
        sums += [np.abs(each, dtype="float64").sum() for each in found]
    of_variable = dict(zip(map(id, variables), sums / len(starts), strict=True))
    return {
        path: sum(of_variable[id(v)] for v in layer.trainable_variables)
        / sum(int(np.prod(v.shape)) for v in layer.trainable_variables)
        for path, layer in layers.items()
    }


def _layers(model: keras.Model) -> dict[str, keras.Layer]:
    """Return the layers with a trainable kernel, by name, in topological order."""
    flat = model.exit_graph.flat if isinstance(model, SelfDistiller) else flatten(model)
    found: dict[str, keras.Layer] = {}
    for node in model_nodes(flat.model):
        layer = original(node.operation)
        if layer in found.values() or not isinstance(layer, keras.Layer):
            continue
        if any(len(v.shape) > 1 for v in layer.trainable_variables):
            found[node.operation.name] = layer
    return found


def _gradients(
    model: keras.Model,
    batch: tuple[TensorStructure, Tensor],
    variables: Sequence[keras.Variable],
) -> list[np.ndarray]:
    """Return the gradients of the loss of a batch as arrays, zeros for `None`."""
    x, y = batch

    def loss(values: list[Tensor]) -> Tensor:
        # Assignments, such as of moving statistics, are discarded with the scope.
        others = [(v, v.value) for v in model.trainable_variables]
        mapping = {id(v): (v, value) for v, value in others}
        mapping |= {
            id(v): (v, value) for v, value in zip(variables, values, strict=True)
        }
        with DeferredUpdates(mapping.values()):
            if isinstance(model, SelfDistiller):
                return model.run_exits(x, y, None, training=True).loss
            outputs = model(x, training=True)
            return model.compute_loss(x, y, outputs, training=True)

    values = [variable.value for variable in variables]
    found = _BACKENDS[keras.backend.backend()](loss, values)
    return [
        np.zeros(variable.shape)
        if gradient is None
        else keras.ops.convert_to_numpy(keras.ops.cast(gradient, "float32"))
        for variable, gradient in zip(variables, found, strict=True)
    ]


def _on_tensorflow(loss: _Loss, values: list[Tensor]) -> Sequence[Tensor | None]:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        result = loss(values)
    found = tape.gradient(result, values)
    return [None if each is None else tf.convert_to_tensor(each) for each in found]


def _on_jax(loss: _Loss, values: list[Tensor]) -> Sequence[Tensor | None]:
    import jax

    return jax.grad(loss)(values)


def _on_torch(loss: _Loss, values: list[Tensor]) -> Sequence[Tensor | None]:
    import torch

    return torch.autograd.grad(loss(values), values, allow_unused=True)


_BACKENDS = {"tensorflow": _on_tensorflow, "jax": _on_jax, "torch": _on_torch}


def _joined(found: Mapping[str, Mapping[str, float]]) -> Gradients:
    """Return the magnitudes of several models in one object."""
    first, *others = found.values()
    places = tuple(first)
    if any(len(each) != len(places) for each in others):
        raise ValueError(
            "The models must have the same number of layers with a trainable kernel. "
            f"Received: { {name: len(each) for name, each in found.items()} }."
        )
    return Gradients(places, {n: np.array(list(d.values())) for n, d in found.items()})
