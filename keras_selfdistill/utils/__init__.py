"""Frozen configs, schedules, number checks, tables, optional packages. Internal."""

__all__ = [
    "config",
    "initializers",
    "keras_internals",
    "number_checks",
    "optional_packages",
    "schedules",
    "table",
    "type_aliases",
]
