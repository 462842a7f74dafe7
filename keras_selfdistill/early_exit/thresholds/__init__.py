"""From outcomes of every exit to thresholds: NumPy alone. Internal."""

__all__ = ["choice", "frontier", "guarantee", "sample_size", "search"]
