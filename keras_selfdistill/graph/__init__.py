"""The graph of a base: its nodes, nested models flattened, where it ends. Internal."""

__all__ = [
    "add_classifier",
    "ends",
    "flatten",
    "layout",
    "nodes",
    "open_layer",
    "same_work",
    "shells",
    "task",
]
