"""Flatness of the minimum found by training: accuracy under noise on the weights.

Zhang et al. (ICCV 2019, section 5) add Gaussian noise to the parameters of a network
trained without self-distillation and of one trained with it: the latter loses less
accuracy.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import keras
import numpy as np

from keras_selfdistill.evaluation.data_adapter import correct_predictions
from keras_selfdistill.utils.keras_internals import flatten_layers, parameters
from keras_selfdistill.utils.table import elided
from keras_selfdistill.utils.type_aliases import Axes, Data, Figure, Labels
from keras_selfdistill.visualization import style


@dataclasses.dataclass(frozen=True, repr=False)
class FlatMinima:
    """Accuracy under weight noise.

    Args:
        scales: Standard deviations of the noise, shape `(scales,)`.
        accuracy: Mapping of model names to accuracies of shape `(scales, repeats)`.
        relative: Whether scales are relative to the root mean square of each weight
            tensor.
    """

    scales: np.ndarray
    accuracy: dict[str, np.ndarray]
    relative: bool

    def __repr__(self) -> str:
        """Return the names of the models and the number of scales."""
        return f"<FlatMinima of {elided(self.accuracy)} at {len(self.scales)} scales>"

    def plot(self, *, ax: Axes = None) -> Figure:
        """Draw the mean accuracy and the range of the repeats, by scale of the noise.

        Args:
            ax: Matplotlib axes to draw on.

        Returns:
            The `matplotlib.figure.Figure`.
        """
        ax = style.axes_of(ax)
        for name, look in style.series_styles(self.accuracy).items():
            values = self.accuracy[name]
            ax.fill_between(
                self.scales,
                values.min(axis=1),
                values.max(axis=1),
                color=look.color,
                alpha=0.2,
                linewidth=0,
            )
            ax.plot(
                self.scales,
                values.mean(axis=1),
                look.marker + look.line,
                color=look.color,
                linewidth=2,
                label=name,
            )
        unit = ", as a share of each weight's root mean square" if self.relative else ""
        ax.set_xlabel(f"standard deviation of the noise on the weights{unit}")
        ax.set_ylabel("accuracy (mean and range of the repeats)")
        ax.yaxis.set_major_formatter("{x:.1%}")
        style.tidy(ax)
        ax.legend(frameon=False)
        return ax.figure


def flat_minima(
    models: Mapping[str, keras.Model],
    x: Data,
    y: Labels,
    *,
    scales: Sequence[float] = (0.0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03),
    relative: bool = False,
    repeats: int = 3,
    seed: int = 0,
    batch_size: int = 256,
) -> FlatMinima:
    """Measure accuracy with Gaussian noise on all weights, trainable or frozen.

    Moving statistics get no noise, because training does not choose them by their
    gradient. Models of one architecture get the same noise, scaled for each scale.
    Afterwards, also after an exception, every weight is bit-identical to before.

    Noise of one scale for all weights, as in the paper, affects a network with smaller
    weights more, although batch normalisation lets a network shrink its weights
    without changing its function (Dinh et al., ICML 2017). With `relative`, the noise
    is relative to the root mean square of each weight tensor.

    Args:
        models: Mapping of names to classifiers with one output, such as
            `final_model()` of wrappers.
        x: Inputs, as `predict` takes them.
        y: Class indices of shape `(samples,)`, or one-hot labels of shape
            `(samples, classes)`.
        scales: Standard deviations of the noise.
        relative: Whether scales are relative to the root mean square of each weight
            tensor.
        repeats: Number of noise draws per scale.
        seed: Seed of the noise.
        batch_size: Number of samples per batch.

    Raises:
        ValueError: A model does not predict one class per sample, or has no weights;
            or a label is not a class of the model.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> found = flat_minima({"plain": model}, np.eye(2), [0, 1], scales=[0.0, 0.1])
        >>> found.accuracy["plain"].shape
        (2, 3)
    """
    accuracy = {}
    for name, model in models.items():
        rows = []
        for scale in scales:
            draws = np.random.SeedSequence(seed).spawn(repeats)
            noises = [
                weight_noise(model, scale, relative=relative, seed=d) for d in draws
            ]
            rows.append([_accuracy(model, x, y, n, batch_size) for n in noises])
        accuracy[name] = np.array(rows)
    return FlatMinima(np.asarray(scales, "float64"), accuracy, relative)


def _accuracy(
    model: keras.Model,
    x: Data,
    labels: Labels,
    noise: contextlib.AbstractContextManager,
    batch_size: int,
) -> float:
    with noise:
        outputs = model.predict(x, batch_size=batch_size, verbose=0)
    return float(np.mean(correct_predictions(outputs, labels)))


@contextlib.contextmanager
def weight_noise(
    model: keras.Model,
    scale: float,
    *,
    relative: bool = False,
    seed: int | np.random.SeedSequence = 0,
) -> Iterator[None]:
    """Context manager that adds Gaussian noise to all weights, trainable or frozen.

    Args:
        model: Any built model.
        scale: Standard deviation of the noise.
        relative: Whether the scale is relative to the root mean square of each weight
            tensor.
        seed: Seed of NumPy's generator.

    Raises:
        ValueError: The model has no weights that training could change, or quantized
            ones.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> before = model.get_weights()[0].copy()
        >>> with weight_noise(model, 0.1):
        ...     bool((model.get_weights()[0] == before).any())
        False
        >>> bool((model.get_weights()[0] == before).all())
        True
    """
    random = np.random.default_rng(seed)
    quantized = [
        layer.name
        for layer in flatten_layers(model)
        if layer.quantization_mode is not None
    ]
    if quantized:
        raise ValueError(
            "Noise needs floating-point weights. Received: model "
            f"{model.name!r} with quantized layers {quantized}. Expected: the model "
            "before quantize()."
        )
    variables = parameters(model)
    if not variables:
        raise ValueError(
            f"Noise needs weights. Received: model {model.name!r} without weights that "
            "training could change. Expected: a model with floating-point weights."
        )
    # Copies, because an array of a PyTorch tensor shares the memory of the variable.
    before = [np.array(keras.ops.convert_to_numpy(v.value)) for v in variables]
    try:
        for variable, value in zip(variables, before, strict=True):
            noise = scale * random.standard_normal(value.shape)
            exact = value.astype("float64")
            size = np.sqrt(np.mean(exact**2)) if relative else 1.0
            variable.assign((exact + size * noise).astype(value.dtype))
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
