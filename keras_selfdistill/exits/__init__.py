"""Placing exits and attaching them to a base.

Public: `suggest_taps`, as `keras_selfdistill.suggest_taps`; the rest is internal.
"""

__all__ = [
    "attach",
    "block_ends",
    "exit_tensors",
    "head_budget",
    "named_taps",
    "placement",
    "sections",
    "suggestion",
    "tap_latency",
]
