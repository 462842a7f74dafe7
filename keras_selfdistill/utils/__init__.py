"""Frozen configs, schedules, checks of numbers, text tables, type aliases. Internal."""

__all__ = [
    "config",
    "keras_internals",
    "number_checks",
    "schedules",
    "table",
    "type_aliases",
]
