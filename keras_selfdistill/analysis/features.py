"""How well the feature of each exit tells the classes apart.

Zhang et al. (ICCV 2019, section 5) explain why a deeper exit is the better teacher:
its features scatter less within classes, more between them, and a linear classifier on
them is more accurate.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_selfdistill.visualization import style


@dataclasses.dataclass(frozen=True)
class Features:
    """Scatter of features and what a linear probe makes of them, by exit.

    Args:
        names: Of the exits.
        within: Mean squared distance of a feature to the mean of its class.
        between: Mean squared distance of that mean to the mean of all.
        probe_accuracy: Of a linear probe, on test samples.
    """

    names: tuple[str, ...]
    within: np.ndarray
    between: np.ndarray
    probe_accuracy: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        """Scatter between classes over that within: free of the features' scale."""
        return self.between / self.within

    def plot(self, *, ax: Any = None) -> Any:
        """Draw the probe's accuracy and the ratio of the scatters, by exit.

        Args:
            ax: Two pairs of matplotlib axes to draw on.

        Returns:
            The `matplotlib.figure.Figure`.
        """
        if ax is None:
            ax = style.new_figure((style.WIDTH, 4.0)).subplots(1, 2)
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


def exit_features(model: Any, x: Any, batch_size: int = 256) -> dict[str, np.ndarray]:
    """Return every exit's feature, the vector before its logits.

    Args:
        model: A `SelfDistiller`. A plain base becomes one untrained, e.g. for the
            feature of its end: `SelfDistiller(base, taps=1, recipe="byot")`.
        x: Inputs, as `predict` takes them.
        batch_size: Samples at once.

    Returns:
        Shape `(samples, width)` of each exit, shallow to deep.
    """
    graph = model._graph
    features = {name: each.feature for name, each in graph.exits.items()}
    network = keras.Model(graph.inputs, features)
    found = network.predict(x, batch_size=batch_size, verbose=0)
    return {name: found[name] for name in features}


def discriminating_features(
    train: Mapping[str, np.ndarray],
    y_train: Any,
    test: Mapping[str, np.ndarray],
    y_test: Any,
    *,
    penalty: float = 1e-2,
) -> Features:
    """Measure how well features tell classes apart.

    Scatter is measured on the test samples. The probe is ridge regression of one-hot
    labels on standardised training features, in closed form, so that nothing has to be
    tuned or to converge.

    Args:
        train: Features of training samples by exit, shape `(samples, width)`: see
            `exit_features`.
        y_train: Their classes, shape `(samples,)`.
        test: Features of other samples.
        y_test: Their classes.
        penalty: Of the probe's squared weights, beside the mean squared error.

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


def scatter(features: Any, labels: Any) -> tuple[float, float]:
    """Return the scatter within and between classes, whose sum is the variance.

    Args:
        features: Shape `(samples, width)`.
        labels: Shape `(samples,)`.

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
    features: Any, labels: Any, others: Any, *, penalty: float = 1e-2
) -> np.ndarray:
    """Fit ridge regression on some features and return the classes of others.

    It minimises mean |W·f + b − onehot|² + penalty · |W|² over standardised f.

    Args:
        features: Shape `(samples, width)`.
        labels: Shape `(samples,)`.
        others: Shape `(more, width)`.
        penalty: Weight of the squared weights; b is free.

    Example:
        >>> probe(np.array([[0.0], [1.0]]), [3, 7], np.array([[0.9], [-1.0]])).tolist()
        [7, 3]
    """
    features = np.asarray(features, "float64")
    classes, numbers = np.unique(np.asarray(labels), return_inverse=True)
    mean, size = features.mean(axis=0), features.std(axis=0)
    size = np.where(size > 0, size, 1.0)  # Units that never change tell nothing.
    x, targets = (features - mean) / size, np.eye(len(classes))[numbers]
    gram = x.T @ x / len(x) + penalty * np.eye(x.shape[1])
    # Standardised features have mean 0, so the free b is the mean of the targets.
    weights = np.linalg.solve(gram, x.T @ (targets - targets.mean(axis=0)) / len(x))
    others = (np.asarray(others, "float64") - mean) / size
    return classes[(others @ weights + targets.mean(axis=0)).argmax(axis=1)]
