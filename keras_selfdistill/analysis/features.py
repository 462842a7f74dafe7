"""How well the features of each exit separate the classes.

Zhang et al. (ICCV 2019, section 5) explain why a deeper exit is the better teacher:
its features scatter less within classes and more between them, and a linear classifier
on them is more accurate.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from keras_selfdistill.training.distiller import SelfDistiller
from keras_selfdistill.utils.table import elided
from keras_selfdistill.utils.type_aliases import Axes, Data, Figure, Labels, Tensor
from keras_selfdistill.visualization import style


@dataclasses.dataclass(frozen=True, repr=False)
class Features:
    """Scatter of the features of each exit, and the accuracy of a linear probe.

    Args:
        names: Names of the exits.
        within: Mean squared distance of a feature to the mean of its class, shape
            `(exits,)`.
        between: Mean squared distance of the class means to the mean of all features,
            shape `(exits,)`.
        probe_accuracy: Accuracy of a linear probe on the test samples, shape
            `(exits,)`.
    """

    names: tuple[str, ...]
    within: np.ndarray
    between: np.ndarray
    probe_accuracy: np.ndarray

    def __repr__(self) -> str:
        """Return the names of the exits."""
        return f"<Features of {elided(self.names)}>"

    @property
    def ratio(self) -> np.ndarray:
        """Ratio `between / within`, which does not depend on the scale of features."""
        return self.between / self.within

    def plot(self, *, ax: Sequence[Axes] | None = None) -> Figure:
        """Draw the accuracy of the probe and the ratio of the scatters, by exit.

        Args:
            ax: Two Matplotlib axes to draw on.

        Returns:
            The `matplotlib.figure.Figure`.
        """
        if ax is None:
            ax = style.new_figure((style.WIDTH, 4.0)).subplots(1, 2)
        ax = style.several_axes(ax, 2)
        styles = style.exit_styles(self.names)
        colors = [styles[name].color for name in self.names]
        panels = (
            (self.probe_accuracy, "accuracy of a linear probe", "{:.1%}"),
            (self.ratio, "scatter between classes / within", "{:.2f}"),
        )
        for each, (values, title, form) in zip(ax, panels, strict=True):
            bars = each.barh(self.names, values, color=colors)
            each.bar_label(
                bars, [form.format(v) for v in values], padding=3, fontsize=9
            )
            each.set_title(title, fontsize=10)
            each.invert_yaxis()
            each.margins(x=0.18)
            style.tidy(each)
            each.grid(visible=False, axis="y")
        ax[0].xaxis.set_major_formatter("{x:.0%}")
        return ax[0].figure


def exit_features(
    model: SelfDistiller, x: Data, batch_size: int = 256
) -> dict[str, np.ndarray]:
    """Return the feature of every exit, which is the vector before its logits.

    Args:
        model: A `SelfDistiller`. To get the features of the end of a plain base, wrap
            it without training: `SelfDistiller(base, taps=1, recipe="byot")`.
        x: Inputs, as `predict` takes them.
        batch_size: Number of samples per batch.

    Returns:
        Mapping of exit names, shallow to deep, to features of shape
        `(samples, width)`.
    """
    graph = model.exit_graph
    features = {name: each.feature for name, each in graph.exits.items()}
    network = keras.Model(graph.inputs, features)
    found = network.predict(x, batch_size=batch_size, verbose=0)
    return {name: found[name] for name in features}


def discriminating_features(
    train: Mapping[str, np.ndarray],
    y_train: Labels,
    test: Mapping[str, np.ndarray],
    y_test: Labels,
    *,
    penalty: float = 1e-2,
) -> Features:
    """Measure how well features separate the classes.

    Scatter is measured on the test samples. The probe is ridge regression of one-hot
    labels on standardised training features, solved in closed form, so it needs no
    tuning and always converges.

    Args:
        train: Mapping of exit names to features of the training samples, shape
            `(samples, width)`, as `exit_features` returns them.
        y_train: Class indices of the training samples, shape `(samples,)`.
        test: Mapping of exit names to features of the test samples.
        y_test: Class indices of the test samples.
        penalty: Weight of the squared weights of the probe, added to the mean squared
            error.

    Example:
        >>> some, y = {"final": np.array([[0.0], [0.2], [1.0], [1.2]])}, [0, 0, 1, 1]
        >>> found = discriminating_features(some, y, some, y)
        >>> found.within.round(3).tolist(), found.between.round(3).tolist()
        ([0.01], [0.25])
        >>> found.probe_accuracy.tolist()
        [1.0]
    """
    y_train, y_test = (np.asarray(y).reshape(-1) for y in (y_train, y_test))
    scatters = np.array([scatter(features, y_test) for features in test.values()])
    accuracy = [
        np.mean(probe(train[name], y_train, test[name], penalty=penalty) == y_test)
        for name in test
    ]
    return Features(tuple(test), scatters[:, 0], scatters[:, 1], np.array(accuracy))


def scatter(features: Tensor, labels: Labels) -> tuple[float, float]:
    """Return the scatter within and between classes, whose sum is the variance.

    Args:
        features: Features of shape `(samples, width)`.
        labels: Class indices of shape `(samples,)`.

    Example:
        >>> scatter(np.array([[0.0], [2.0], [10.0], [12.0]]), [0, 0, 1, 1])
        (1.0, 25.0)
    """
    features = np.asarray(features, "float64")
    classes, numbers = np.unique(np.asarray(labels), return_inverse=True)
    sums = np.zeros((len(classes), features.shape[1]))
    np.add.at(sums, numbers, features)
    means = (sums / np.bincount(numbers)[:, None])[numbers]
    within = ((features - means) ** 2).sum(axis=1).mean()
    between = ((means - features.mean(axis=0)) ** 2).sum(axis=1).mean()
    return float(within), float(between)


def probe(
    features: Tensor, labels: Labels, others: Tensor, *, penalty: float = 1e-2
) -> np.ndarray:
    """Fit a linear probe by ridge regression and return its predictions.

    It minimises mean |W·f + b − onehot|² + penalty · |W|² over standardised f.

    Args:
        features: Training features of shape `(samples, width)`.
        labels: Class indices of the training features, shape `(samples,)`.
        others: Features to classify, shape `(others, width)`.
        penalty: Weight of |W|²; b is not penalised.

    Returns:
        Predicted class indices of shape `(others,)`.

    Example:
        >>> probe(np.array([[0.0], [1.0]]), [3, 7], np.array([[0.9], [-1.0]])).tolist()
        [7, 3]
    """
    features = np.asarray(features, "float64")
    classes, numbers = np.unique(np.asarray(labels), return_inverse=True)
    mean, size = features.mean(axis=0), features.std(axis=0)
    size = np.where(size > 0, size, 1.0)  # Constant units become 0.
    x, targets = (features - mean) / size, np.eye(len(classes))[numbers]
    gram = x.T @ x / len(x) + penalty * np.eye(x.shape[1])
    # Standardised features have mean 0, so b is the mean of the targets.
    weights = np.linalg.solve(gram, x.T @ (targets - targets.mean(axis=0)) / len(x))
    others = (np.asarray(others, "float64") - mean) / size
    return classes[(others @ weights + targets.mean(axis=0)).argmax(axis=1)]
