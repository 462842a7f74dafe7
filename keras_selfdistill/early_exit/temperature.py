"""Temperature scaling: the exits of an `EarlyExit` with calibrated probabilities."""

import dataclasses
import math
import threading
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from keras_selfdistill.early_exit.cascade import Cascade
from keras_selfdistill.early_exit.scoring import Scorer, softmax
from keras_selfdistill.early_exit.thresholds.choice import Choice, halves
from keras_selfdistill.early_exit.thresholds.outcomes import Outcomes, missing_costs
from keras_selfdistill.early_exit.thresholds.setting import (
    Thresholds,
    checked_thresholds,
)
from keras_selfdistill.training.distiller import SelfDistiller
from keras_selfdistill.utils.type_aliases import Data, Labels

# Of exits that are always right, or no better than chance, none is the best.
_SMALLEST, _LARGEST = 0.05, 20.0
# Beyond, float32 overflows on ordinary logits, or leaves no difference of classes.
_RANGE = 1e-3, 1e3


class ScaledExits:
    """The part of an `EarlyExit` that runs its exits, at their temperatures."""

    def __init__(self, model: SelfDistiller, scorer: Scorer):
        self._model = model
        self._scorer = scorer
        # Held where thresholds and scores change, so that others see both or none.
        self._lock = threading.RLock()
        self._cascade = Cascade(model.exit_graph, scorer)
        if self._cascade.lacks_costs:
            logging.warning("%s", missing_costs(self._cascade.unknown))
        self._outcomes: Outcomes | None = None
        self._thresholds: tuple[float, ...] | None = None
        self.calibration: Choice | None = None

    @property
    def exit_names(self) -> list[str]:
        """Names of the exits, shallow to deep; the last is the last resort."""
        return [*self._model.exit_names[:-1], self._scorer.last_resort]

    @property
    def temperatures(self) -> dict[str, float] | None:
        """Numbers that the exits' logits are divided by, by name; `None` for none.

        `calibrate(temperature=True)` fits them. Set them with one number, or one for
        each of `exit_names`, as a list or a dict by name; from 0.001 to 1000. Scores
        and predictions are then those of the scaled logits; this resets `calibration`
        to `None`, and drops thresholds that `calibrate` chose on other scores. Those
        set by hand stay.
        """
        if self._scorer.temperatures is None:
            return None
        return dict(zip(self.exit_names, self._scorer.temperatures, strict=True))

    @temperatures.setter
    def temperatures(self, temperatures: Thresholds | None) -> None:
        found = None
        if temperatures is not None:
            found = checked_thresholds(
                temperatures, self.exit_names, argument="temperatures"
            )
            low, high = _RANGE
            if not all(low <= each <= high for each in found):
                raise ValueError(
                    "`temperatures` are out of range. Received: temperatures="
                    f"{temperatures!r}. Expected: numbers from {low} to {high:.0f}; 1 "
                    "leaves logits as they are, and more makes exits less sure."
                )
        self._use(self._with_temperatures(found), None)

    def _use(self, cascade: Cascade, outcomes: Outcomes | None) -> None:
        """Run the exits by a cascade; drop thresholds chosen on other scores."""
        with self._lock:
            if self.calibration is not None:
                self._thresholds = None
            self._cascade, self._scorer = cascade, cascade.scorer
            self._outcomes, self.calibration = outcomes, None

    def _with_temperatures(self, temperatures: tuple[float, ...] | None) -> Cascade:
        scorer = dataclasses.replace(self._scorer, temperatures=temperatures)
        return self._cascade.with_scorer(scorer)

    def _fit_temperatures(
        self, x: Data, y: Labels, batch_size: int, seed: int | None
    ) -> tuple[Cascade, Outcomes]:
        """Return a cascade with fitted temperatures, and its outcomes on the data.

        Args:
            x: Samples, as `predict` takes them.
            y: Labels, or `None`.
            batch_size: Number of samples a section processes at once.
            seed: Seed of the halves, to fit on the first only; `None` to fit on all.
        """
        plain = self._with_temperatures((1.0,) * len(self.exit_names))
        outputs, labels = plain.outputs(x, y, batch_size)
        rows = np.arange(len(labels))
        if seed is not None:
            rows, _ = halves(len(labels), seed)
        found = tuple(
            fit_temperature(logits[rows], labels[rows])
            for logits in plain.scorer.logits(outputs)
        )
        scaled = self._with_temperatures(found)
        outcomes = scaled.outcomes(outputs, labels)
        fitted = np.isin(np.arange(len(labels)), rows)
        return scaled, dataclasses.replace(outcomes, fitted=fitted)


def fit_temperature(logits: np.ndarray, labels: Sequence[int] | np.ndarray) -> float:
    """Return the temperature at which the crossentropy of logits is smallest.

    *On Calibration of Modern Neural Networks* (Guo et al., ICML 2017, arXiv
    1706.04599): `T = argmin Σₙ −log softmax(zₙ / T)[yₙ]`. The sum is convex in 1/T,
    whose zero of the derivative Newton's method finds; T stays between 0.05 and 20.

    Args:
        logits: Logits, shape `(samples, classes)`. Classes may be masked by -inf.
            Samples with NaN, +inf, or a right class of -inf are left out, as no
            temperature makes their crossentropy finite.
        labels: Class indices, shape `(samples,)`.

    Example:
        Sure to 88 %, but right in three cases of four, which 75 % would fit:

        >>> logits = np.array([[2.0, 0.0]] * 4)
        >>> print(round(fit_temperature(logits, [0, 0, 0, 1]), 3))
        1.82
    """
    logits = np.asarray(logits, "float64")
    right = np.take_along_axis(logits, np.asarray(labels)[:, None], axis=-1)
    kept = (logits < np.inf).all(axis=-1) & np.isfinite(right[:, 0])
    # Of a masked class the probability is 0, but 0 times infinity is not.
    logits = np.maximum(logits[kept], -1e30) - right[kept]
    low, high, inverse = 1 / _LARGEST, 1 / _SMALLEST, 1.0
    for _ in range(100):
        probabilities = softmax(inverse * logits)
        means = (probabilities * logits).sum(axis=-1)
        slope = means.sum()
        curvature = ((probabilities * logits**2).sum(axis=-1) - means**2).sum()
        if slope > 0:
            high = inverse
        elif slope < 0:
            low = inverse
        before = inverse
        inverse = inverse - slope / curvature if curvature > 0 else inverse
        if not low <= inverse <= high:
            inverse = math.sqrt(low * high)
        if abs(inverse - before) <= 1e-9 * before:
            break
    return float(1 / inverse)


def check_alone(options: Mapping[str, object]) -> None:
    """Check that options which only thresholds need are not given.

    Args:
        options: Arguments of `calibrate` without a goal, by name.

    Raises:
        ValueError: One of them is neither `None` nor false.
    """
    given = [
        name for name, each in options.items() if each is not None and each is not False
    ]
    if given:
        raise ValueError(
            "Without a goal only temperatures are fitted, and no thresholds are "
            f"chosen. Received: {', '.join(given)} with temperature=True and no goal. "
            "Expected: a goal, such as max_accuracy_drop=0.01, or none of "
            f"{', '.join(options)}."
        )


def no_logits() -> ValueError:
    """Return an error that says on what temperatures are fitted."""
    return ValueError(
        "Temperatures are fitted on logits, which are not kept. Received: "
        "temperature=True without x. Expected: calibrate(x, y, temperature=True, …)."
    )
