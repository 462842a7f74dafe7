"""The graph of a base: its nodes, nested models flattened, where it ends. Internal."""

__all__ = [
    "add_classifier",
    "compare_traces",
    "ends",
    "flatten",
    "layout",
    "nodes",
    "shells",
    "task",
    "trace_calls",
    "trace_layer",
]
