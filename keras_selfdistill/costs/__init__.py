"""Multiply-adds of operations, layers and models.

Public: `register_multiply_adds`, as `keras_selfdistill.register_multiply_adds`; the
rest is internal.
"""

__all__ = [
    "counting",
    "free_operations",
    "input_shapes",
    "layer_rules",
    "operation_rules",
]
