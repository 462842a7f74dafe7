"""Reports, comparisons and profiles.

Public: `report`, `compare`, `profile` and `pick_exit`, as names of the package, and
what they return; the rest is internal.
"""

__all__ = [
    "compare",
    "comparison_result",
    "latency",
    "profile",
    "report",
    "report_result",
    "report_view",
    "subject",
]
