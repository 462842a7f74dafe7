"""Accuracy of early exit at shares of the base's multiply-adds."""

from typing import Any

import keras
import numpy as np

import keras_selfdistill as ksd
from shared import cifar100

BUDGETS = (0.25, 0.5, 0.75)
BATCH_SIZE = 250


def frontier(
    model: keras.Model,
    calibration: cifar100.Split | None,
    evaluated: cifar100.Split,
) -> dict[str, Any] | None:
    """Returns what early exit reaches within each budget; `None` where nothing exits.

    A threshold on the largest probability, which all exits share, is chosen for the
    highest accuracy whose mean multiply-adds, heads included, are within the budget.

    Args:
        model: A trained network.
        calibration: Images that no training saw, to choose thresholds on. `None`: one
            half of the evaluated images, for the other half, and the other way round.
        evaluated: Images to evaluate early exit on.

    Returns:
        The number of images that thresholds are chosen on, the multiply-adds of each
        exit, and by budget `None`, if it is less than the first exit takes, or
        accuracy, multiply-adds, and the thresholds.
    """
    if not isinstance(model, ksd.SelfDistiller) or not model.has_early_exits:
        return None
    pairs = [(calibration, evaluated)]
    if calibration is None:
        even, odd = (
            cifar100.Split(*(each[start::2] for each in evaluated)) for start in (0, 1)
        )
        pairs = [(even, odd), (odd, even)]
    fast = ksd.EarlyExit(model)
    found = [_of_budgets(fast, *pair) for pair in pairs]
    return {
        "calibrated_on": len(pairs[0][0].labels),
        "macs_ratios": fast.macs_ratios,
        "within": {
            f"{budget:.0%}": _mean([each[budget] for each in found])
            for budget in BUDGETS
        },
    }


def _of_budgets(fast, calibration, evaluated):
    """Returns the logs of early exit by budget."""
    x, y = cifar100.normalize(calibration.images), calibration.labels
    # Any goal: what the exits predict is kept for the next ones.
    fast.calibrate(x, y, target_accuracy=0.0, batch_size=BATCH_SIZE)
    x, y = cifar100.normalize(evaluated.images), evaluated.labels
    found = {}
    for budget in BUDGETS:
        found[budget] = None
        if budget >= min(fast.macs_ratios.values()):
            threshold = fast.calibrate(macs_budget=budget).thresholds["exit_1"]
            logs = fast.evaluate(x, y, BATCH_SIZE, verbose=0, return_dict=True)
            # JSON has no infinity, and scores are from 0 to 1.
            logs["threshold"] = float(np.clip(threshold, 0, 2))
            found[budget] = logs
    return found


def _mean(logs):
    """Returns the means of accuracy and multiply-adds, and all thresholds."""
    if None in logs:
        return None
    means = {
        name: float(np.mean([each[name] for each in logs]))
        for name in ("accuracy", "macs_ratio")
    }
    return {**means, "thresholds": [each["threshold"] for each in logs]}
