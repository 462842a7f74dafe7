"""Multiply-adds of operations, layers and models.

Public: `register_macs`, as `keras_selfdistill.register_macs`; the
rest is internal.
"""

__all__ = [
    "counting",
    "free_operations",
    "input_shapes",
    "layer_rules",
    "operation_rules",
]
