"""Multiply-adds of operations, layers and models, and the latency of calls.

Public: `register_macs`, as `keras_selfdistill.register_macs`; the
rest is internal.
"""

__all__ = [
    "counting",
    "free_operations",
    "input_shapes",
    "latency",
    "layer_rules",
    "operation_rules",
]
