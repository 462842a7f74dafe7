"""Frozen configs, schedules, text tables, type aliases. Internal."""

__all__ = ["config", "keras_internals", "schedules", "table", "type_aliases"]
