"""How flat the minimum is that training ended in: accuracy under noise on the weights.

Zhang et al. (ICCV 2019, section 5) add Gaussian noise to the parameters of a network
trained plainly and of one that was self-distilled: the latter keeps its accuracy
longer.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_selfdistill.evaluation.data_adapter import right_answers
from keras_selfdistill.utils.keras_internals import parameters
from keras_selfdistill.visualization import style


@dataclasses.dataclass(frozen=True)
class FlatMinima:
    """Accuracy under weight noise.

    Args:
        scales: Standard deviations of the noise, shape `(scales,)`.
        accuracy: Of each model, shape `(scales, repeats)`.
        relative: Whether the scales count in root mean squares of each weight.
    """

    scales: np.ndarray
    accuracy: dict[str, np.ndarray]
    relative: bool

    def plot(self, *, ax: Any = None) -> Any:
        """Draw the mean accuracy, and the range of the repeats, by size of noise.

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
        ax.yaxis.set_major_formatter("{x:.0%}")
        style.tidy(ax)
        ax.legend(frameon=False)
        return ax.figure


def flat_minima(
    models: Mapping[str, keras.Model],
    x: Any,
    y: Any,
    *,
    scales: Sequence[float] = (0.0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03),
    relative: bool = False,
    repeats: int = 3,
    seed: int = 0,
    batch_size: int = 256,
) -> FlatMinima:
    """Measure accuracy while Gaussian noise is on all weights, frozen ones too.

    Not on moving statistics, which training does not choose by their gradient.
    The same draws serve all models of one architecture and, scaled, all sizes of noise.
    Afterwards, also after an exception, every weight is what it was, to the last bit.

    Noise of one size for all weights, as in the paper, means more to a network with
    smaller weights: batch normalisation lets a network shrink them and compute the same
    (Dinh et al., ICML 2017). With `relative`, noise counts in root mean squares of each
    weight tensor.

    Args:
        models: Classifiers with one output, by name: `final_model()` of wrappers.
        x: Inputs, as `predict` takes them.
        y: Class numbers, shape `(samples,)`, or one-hot rows.
        scales: Standard deviations of the noise.
        relative: Whether they count in root mean squares of each weight tensor.
        repeats: Draws of noise for each scale.
        seed: Of the draws.
        batch_size: Samples at once.

    Raises:
        ValueError: A model answers with no class for each sample, or has no weights to
            put noise on, or there are labels that are no classes.

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


def _accuracy(model, x, labels, noise, batch_size):
    with noise:
        outputs = model.predict(x, batch_size=batch_size, verbose=0)
    return float(np.mean(right_answers(outputs, labels)))


@contextlib.contextmanager
def weight_noise(
    model: keras.Model, scale: float, *, relative: bool = False, seed: Any = 0
) -> Iterator[None]:
    """Add Gaussian noise to all weights of a model for a while, frozen ones too.

    Args:
        model: Any built model.
        scale: Standard deviation of the noise.
        relative: Whether it counts in root mean squares of each weight tensor.
        seed: Of NumPy's generator.

    Raises:
        ValueError: The model has no weights that training could change.

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
    variables = parameters(model)
    if not variables:
        raise ValueError(
            f"There is nothing to put noise on. Received: model {model.name!r} without "
            "weights that training could change. Expected: a model with floating-point "
            "weights."
        )
    # Copies: of a PyTorch tensor, NumPy would show the variable's own memory.
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
