"""What every exit makes of some samples, and what exits cost."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """Scores and correctness of every exit on some samples, and the costs of exits.

    Args:
        scores: Scores of all exits but the last, shape `(samples, exits - 1)`.
        correct: Whether each exit is correct, 0 or 1, shape `(samples, exits)`.
        reference: Whether the base is correct, 0 or 1, shape `(samples,)`.
        costs: Cost of a sample by its exit, ascending, shape `(exits,)`; NaN if
            unknown, which only `choice.choose` accepts.
        latencies: Milliseconds by exit, ascending, shape `(exits,)`, if known.
        fitted: Whether temperatures were fitted on a sample, shape `(samples,)`;
            `None` if on none of them.
    """

    scores: np.ndarray
    correct: np.ndarray
    reference: np.ndarray
    costs: np.ndarray
    latencies: np.ndarray | None = None
    fitted: np.ndarray | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.scores)

    def part(self, rows: np.ndarray) -> "Outcomes":
        """Return the outcomes of some of the samples."""
        return dataclasses.replace(
            self,
            scores=self.scores[rows],
            correct=self.correct[rows],
            reference=self.reference[rows],
            fitted=None if self.fitted is None else self.fitted[rows],
        )

    def by_latency(self) -> "Outcomes":
        """Return the same outcomes with milliseconds as the costs.

        Raises:
            ValueError: They are not known.

        Example:
            >>> scores, correct = np.array([[0.9]]), np.array([[1, 1]])
            >>> costs, latencies = np.array([0.5, 1.0]), np.array([2.0, 3.0])
            >>> found = Outcomes(scores, correct, correct[:, 1], costs, latencies)
            >>> found.by_latency().costs.tolist()
            [2.0, 3.0]
        """
        return dataclasses.replace(self, costs=known_latencies(self.latencies))


def known_latencies(latencies: np.ndarray | None) -> np.ndarray:
    """Return latencies as given, in milliseconds.

    Raises:
        ValueError: There are none.
    """
    if latencies is None:
        raise ValueError(
            "The latencies of the exits are not known. Received: neither `sample` nor "
            "`costs`. Expected: calibrate(..., latency_budget_ms=5, sample=x[:1]) with "
            "a batch of the size used in deployment, or costs={'exit_1': milliseconds, "
            "…} in place of `sample`."
        )
    return latencies


def missing_costs(unknown: Sequence[str]) -> str:
    """Return why the costs of exits are missing, and what to do.

    Args:
        unknown: Names of the layers whose cost is unknown.
    """
    reason = (
        "The cost of exits is not defined, because the base has no multiply-adds "
        "of which it could be a fraction. Choose "
    )
    if unknown:
        reason = (
            "The cost of exits is unknown, because the multiply-adds of some "
            f"layers are: {', '.join(unknown)}. Register them with "
            "keras_selfdistill.register_macs before creating EarlyExit, or choose "
        )
    return (
        f"{reason}an exit by its latency: keras_selfdistill.pick_exit(model, "
        "max_latency_ms=..., sample=x[:1]), or thresholds by calibrate(..., "
        "latency_budget_ms=..., sample=x[:1])."
    )
