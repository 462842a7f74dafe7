"""Reports, comparisons and profiles.

Public: `report`, `compare`, `profile` and `pick_exit`, exported by the top-level
package, and the classes of the objects they return; the rest is internal.
"""

__all__ = [
    "compare",
    "comparison_result",
    "evaluated_model",
    "latency",
    "profile",
    "profile_result",
    "report",
    "report_result",
    "report_view",
]
