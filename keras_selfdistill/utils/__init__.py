"""Frozen configs, schedules, checks, tables, optional packages. Internal."""

__all__ = [
    "config",
    "image_format",
    "initializers",
    "keras_internals",
    "number_checks",
    "optional_packages",
    "schedules",
    "table",
    "type_aliases",
]
