"""Frozen configs, schedules, numbers, initializers, tables, type aliases. Internal."""

__all__ = [
    "config",
    "initializers",
    "keras_internals",
    "number_checks",
    "schedules",
    "table",
    "type_aliases",
]
