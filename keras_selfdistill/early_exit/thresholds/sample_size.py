"""Checks that there are enough samples to choose thresholds."""

import itertools

from absl import logging

from keras_selfdistill.early_exit.thresholds.guarantee import half_width

# Half the width of the confidence interval of an accuracy: above the first value,
# thresholds are chosen with a warning; above the second, an error is raised.
_PRECISE, _NO_INFORMATION = 0.05, 0.25


def check_samples(samples: int) -> None:
    """Refuse so few samples that 50 % may stand for anything from 25 to 75 %.

    Args:
        samples: Number of samples.

    Raises:
        ValueError: There are too few samples.
    """
    if half_width(0.5, samples) > _NO_INFORMATION:
        least = _samples_needed(0.5, _NO_INFORMATION)
        raise ValueError(
            f"Too few samples to choose thresholds. Received: {samples} samples, on "
            f"which an accuracy of 50 % is known to ±{half_width(0.5, samples):.0%} "
            f"(95 %). Expected: at least {least}, preferably some hundreds; or pass "
            "guarantee=0.95 for a bound that is valid for any number of samples, or "
            "set `thresholds` yourself."
        )


def warn_of_few_samples(accuracy: float, samples: int) -> None:
    """Log a warning if an accuracy is not known to ±5 percentage points.

    Args:
        accuracy: Accuracy on the samples.
        samples: Number of samples.
    """
    width = half_width(accuracy, samples)
    if width > _PRECISE:
        logging.warning(
            "Thresholds were chosen on %d samples, on which their accuracy of %.1f %% "
            "is known to ±%.1f points (95 %%): on other samples it may be far lower. "
            "For ±%.0f points, calibrate on %d samples; for a guaranteed bound, pass "
            "guarantee=0.95.",
            samples,
            100 * accuracy,
            100 * width,
            100 * _PRECISE,
            _samples_needed(accuracy, _PRECISE),
        )


def _samples_needed(accuracy: float, width: float) -> int:
    return next(n for n in itertools.count(1) if half_width(accuracy, n) <= width)
