"""Frozen configs, schedules, tables of text: what several packages use. Internal."""

__all__ = ["config", "keras_internals", "schedules", "table"]
