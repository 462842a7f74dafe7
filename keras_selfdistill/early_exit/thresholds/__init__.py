"""From outcomes of every exit to thresholds: NumPy alone. Internal."""

__all__ = [
    "choice",
    "frontier",
    "goal",
    "guarantee",
    "outcomes",
    "sample_size",
    "search",
    "setting",
]
