"""From outcomes and latencies of every exit to thresholds. Internal."""

__all__ = [
    "choice",
    "exit_latency",
    "frontier",
    "goal",
    "guarantee",
    "outcomes",
    "sample_size",
    "search",
    "setting",
]
